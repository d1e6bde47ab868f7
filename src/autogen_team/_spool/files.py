"""Files that wait beside a journal for their upload; this module does not import MLflow.

Each call that logs files creates one folder, `<journal>/files/<number>-<bytes>`. It holds the files in `content/` and
their destination in `order.json`. The folder gets this name when it is complete: the files are in place before the call
returns, and a reader never sees a part of them. The suffix `.own` marks small uploads, which the job does itself; the
agent's uploader does the others. An uploaded file is removed, and the folder with its last file.
"""

from __future__ import annotations

import os
import posixpath
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from autogen_team._process.folders import open_private, private_folder

_FOLDER = "files"
_CONTENT, _ORDER, _RATE = "content", "order.json", "rate"
_OWN, _PART, _NOTE = ".own", ".part", ".note"


@dataclass(frozen=True)
class Waiting:
    """Files of one logging call that wait for their upload."""

    place: Path
    number: int
    size: int
    """Total bytes of the files at the time of the call."""
    is_own: bool
    """Whether the job itself uploads the files, as long as it lives."""

    @cached_property
    def order(self) -> dict[str, Any]:
        """Destination of the files: `root`, the URI of the run's or model's artifacts, and `path`, a folder below it.

        An order without files holds the `status` to set on a `model` after the uploads before it.

        Raises:
            FileNotFoundError: the files have been uploaded in the meantime.

        """
        found: dict[str, Any] = orjson.loads((self.place / _ORDER).read_bytes())
        return found

    @property
    def content(self) -> Path:
        """The folder that holds the files."""
        return self.place / _CONTENT

    def files(self) -> list[str]:
        """Return the paths of the files that are not uploaded yet, relative to `content`, with forward slashes."""
        found = []
        for folder, _, names in os.walk(self.content):
            inner = Path(folder).relative_to(self.content)
            found += [(inner / name).as_posix() for name in names]
        return sorted(found)

    @cached_property
    def targets(self) -> frozenset[str]:
        """Destination URIs of the files, as of the first access; for a status, the URI of the model."""
        if "status" in self.order:
            return frozenset({self.order["root"]})
        root = posixpath.join(self.order["root"].rstrip("/"), self.order.get("path") or "").rstrip("/")
        return frozenset(f"{root}/{name}" for name in self.files())

    def remove(self) -> None:
        """Remove the folder and the files left in it."""
        gone = self.place.with_name(self.place.name + _PART)
        with suppress(FileNotFoundError):
            self.place.rename(gone)  # in one step, so a reader sees all of the folder or nothing
            shutil.rmtree(gone, ignore_errors=True)


def folder_of(journal_folder: Path) -> Path:
    """Return the folder for the files that wait beside a journal; it may not exist."""
    return journal_folder / _FOLDER


def put(journal_folder: Path, number: int, source: Path, order: dict[str, Any], *, own_below: int) -> Waiting | None:
    """Copy a file, or the content of a folder, for a later upload; return None if the folder has no files.

    Where the file system supports it, the copy shares its blocks with the original until one of the two changes. The
    job itself uploads a copy of fewer than `own_below` bytes.

    Raises:
        OSError: the source cannot be read, or the copy cannot be written.
        UnicodeEncodeError: the name of a file is not valid UTF-8.

    """
    part = private_folder(folder_of(journal_folder)) / f"{number:06d}{_PART}"
    part.mkdir(mode=0o700)
    try:
        size = _copy_all(source, part / _CONTENT)
        if size is None:
            shutil.rmtree(part)
            return None
        (part / _ORDER).write_bytes(orjson.dumps(order))
        is_own = size < own_below
        place = part.with_name(f"{number:06d}-{size}{_OWN if is_own else ''}")
        part.rename(place)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return Waiting(place, number, size, is_own)


def put_status(journal_folder: Path, number: int, order: dict[str, Any], *, is_own: bool) -> None:
    """Record the `status` to set on the model of an order after the uploads before it.

    Raises:
        OSError: the order cannot be written.

    """
    part = private_folder(folder_of(journal_folder)) / f"{number:06d}{_PART}"
    part.mkdir(mode=0o700)
    (part / _ORDER).write_bytes(orjson.dumps(order))
    part.rename(part.with_name(f"{number:06d}-0{_OWN if is_own else ''}"))


def _copy_all(source: Path, content: Path) -> int | None:
    """Copy a file or a folder, and return its size in bytes; None for a folder without files."""
    if not source.is_dir():
        content.mkdir(mode=0o700)
        return _copy(source, content / source.name)
    size = None
    for folder, _, names in os.walk(source):  # like MLflow, do not follow links to folders
        for name in names:
            target = content / Path(folder).relative_to(source) / name
            private_folder(target.parent)
            size = (size or 0) + _copy(Path(folder, name), target)
    return size


def _copy(source: Path, target: Path) -> int:
    target.name.encode()  # raise now: a name that is not valid UTF-8 cannot be uploaded
    with source.open("rb", buffering=0) as read, open_private(target, "wb") as written:
        with suppress(OSError, AttributeError):  # an old kernel, between file systems; macOS
            # Share the blocks where the file system supports it. `shutil.copyfile` would reopen the new file. ext4
            # would then write all of it to the disk before it is closed, which takes twice as long.
            while os.copy_file_range(read.fileno(), written.fileno(), 2**30):
                pass
        shutil.copyfileobj(read, written, 2**20)  # the rest
        return os.fstat(written.fileno()).st_size


def waiting(journal_folder: Path) -> list[Waiting]:
    """Return the uploads that wait beside a journal, in the order of the calls that logged them."""
    found = []
    with suppress(FileNotFoundError), os.scandir(folder_of(journal_folder)) as entries:
        for entry in entries:
            name = entry.name.removesuffix(_OWN)
            number, dash, size = name.partition("-")
            if dash and number.isdecimal() and size.isdecimal():
                found.append(Waiting(Path(entry.path), int(number), int(size), name != entry.name))
    return sorted(found, key=lambda one: one.number)


def beside_all(journals: Path) -> Iterator[Waiting]:
    """Yield the uploads that wait beside all journals of a folder."""
    with suppress(FileNotFoundError):
        for path in journals.iterdir():
            yield from waiting(path)


def note(journal_folder: Path, text: str) -> None:
    """Leave a message for the job to log, because the agent's uploader has no log of its own."""
    with suppress(OSError):
        (folder_of(journal_folder) / f"{time.time_ns()}{_NOTE}").write_text(text, encoding="utf-8")


def notes(journal_folder: Path) -> Iterator[str]:
    """Yield the messages left for the job, and remove them."""
    for path in sorted(folder_of(journal_folder).glob(f"*{_NOTE}")):
        with suppress(OSError):
            text = path.read_text(encoding="utf-8")
            path.unlink()
            yield text


def note_rate(journal_folder: Path, rate: float) -> None:
    """Record the upload rate of a journal's files, in bytes per second."""
    with suppress(OSError):
        (folder_of(journal_folder) / _RATE).write_text(f"{rate:.0f}", encoding="utf-8")


def rate(journal_folder: Path) -> float | None:
    """Return the last upload rate of a journal's files, in bytes per second; None before the first upload."""
    with suppress(OSError, ValueError):
        return float((folder_of(journal_folder) / _RATE).read_text(encoding="utf-8")) or None
    return None
