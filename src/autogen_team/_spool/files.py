"""Files that wait beside a journal until they are uploaded; nothing here loads MLflow.

Each call that logs files makes one folder, `<journal>/files/<number>-<bytes>`, with what was logged in `content/` and
where it goes in `order.json`. The folder is renamed to this name once it is complete, so files are here before the call
returns, and half of them are never taken for all. `.own` at the end of the name marks small ones, which the job uploads
itself; the agent's uploader takes the others. A file that has arrived is removed, and the folder with its last file.
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
    """Files that one call has logged."""

    place: Path
    number: int
    size: int
    """Bytes when they were logged."""
    is_own: bool
    """Whether the job uploads them itself, unless it dies."""

    @cached_property
    def order(self) -> dict[str, Any]:
        """Where the files go: `root`, the address of the run's or model's artifacts, and `path`, a folder there.

        Or, without files, the `status` that a `model` gets once the files before have arrived.

        Raises:
            FileNotFoundError: they have been uploaded meanwhile.

        """
        found: dict[str, Any] = orjson.loads((self.place / _ORDER).read_bytes())
        return found

    @property
    def content(self) -> Path:
        """The folder that holds the files."""
        return self.place / _CONTENT

    def files(self) -> list[str]:
        """Return the paths of the files that have not arrived yet, relative to `content`, with slashes."""
        found = []
        for folder, _, names in os.walk(self.content):
            inner = Path(folder).relative_to(self.content)
            found += [(inner / name).as_posix() for name in names]
        return sorted(found)

    @cached_property
    def targets(self) -> frozenset[str]:
        """The addresses of the files, as they were when this was asked first; for a status, that of the model."""
        if "status" in self.order:
            return frozenset({self.order["root"]})
        root = posixpath.join(self.order["root"].rstrip("/"), self.order.get("path") or "").rstrip("/")
        return frozenset(f"{root}/{name}" for name in self.files())

    def remove(self) -> None:
        """Remove what is left."""
        gone = self.place.with_name(self.place.name + _PART)
        with suppress(FileNotFoundError):
            self.place.rename(gone)  # in one step, so that a reader sees all of it or nothing
            shutil.rmtree(gone, ignore_errors=True)


def folder_of(journal_folder: Path) -> Path:
    """Return the folder with all files that wait beside a journal; it need not exist."""
    return journal_folder / _FOLDER


def put(journal_folder: Path, number: int, source: Path, order: dict[str, Any], *, own_below: int) -> Waiting | None:
    """Copy a file, or the content of a folder, so that it waits; return None if the folder has no files.

    Where the file system can, the copy shares its blocks with the original until one of them is changed. It is the
    job's own if it has fewer bytes than `own_below`.

    Raises:
        OSError: the source cannot be read, or the copy not be written.
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
    """Note the `status` that the model of an order gets once the files before have arrived.

    Raises:
        OSError: it cannot be written.

    """
    part = private_folder(folder_of(journal_folder)) / f"{number:06d}{_PART}"
    part.mkdir(mode=0o700)
    (part / _ORDER).write_bytes(orjson.dumps(order))
    part.rename(part.with_name(f"{number:06d}-0{_OWN if is_own else ''}"))


def _copy_all(source: Path, content: Path) -> int | None:
    """Copy, and return the number of bytes; None for a folder without files."""
    if not source.is_dir():
        content.mkdir(mode=0o700)
        return _copy(source, content / source.name)
    size = None
    for folder, _, names in os.walk(source):  # as MLflow does: links to folders are not followed
        for name in names:
            target = content / Path(folder).relative_to(source) / name
            private_folder(target.parent)
            size = (size or 0) + _copy(Path(folder, name), target)
    return size


def _copy(source: Path, target: Path) -> int:
    target.name.encode()  # a name that is not text cannot be sent, so the error is raised now
    with source.open("rb", buffering=0) as read, open_private(target, "wb") as written:
        with suppress(OSError, AttributeError):  # on an old kernel from one file system to another, or macOS
            # Shares the blocks where the file system can. `shutil.copyfile` would open the new file once more, and
            # ext4 then writes all of it to the disk before it is closed, which takes twice as long.
            while os.copy_file_range(read.fileno(), written.fileno(), 2**30):
                pass
        shutil.copyfileobj(read, written, 2**20)  # what is left
        return os.fstat(written.fileno()).st_size


def waiting(journal_folder: Path) -> list[Waiting]:
    """Return what waits beside a journal, in the order in which it was logged."""
    found = []
    with suppress(FileNotFoundError), os.scandir(folder_of(journal_folder)) as entries:
        for entry in entries:
            name = entry.name.removesuffix(_OWN)
            number, dash, size = name.partition("-")
            if dash and number.isdecimal() and size.isdecimal():
                found.append(Waiting(Path(entry.path), int(number), int(size), name != entry.name))
    return sorted(found, key=lambda one: one.number)


def beside_all(journals: Path) -> Iterator[Waiting]:
    """Yield what waits beside all journals of a folder."""
    with suppress(FileNotFoundError):
        for path in journals.iterdir():
            yield from waiting(path)


def note(journal_folder: Path, text: str) -> None:
    """Leave a text for the job, which logs it: another process uploads its files, and has no log."""
    with suppress(OSError):
        (folder_of(journal_folder) / f"{time.time_ns()}{_NOTE}").write_text(text, encoding="utf-8")


def notes(journal_folder: Path) -> Iterator[str]:
    """Yield the texts that were left for the job, and remove them."""
    for path in sorted(folder_of(journal_folder).glob(f"*{_NOTE}")):
        with suppress(OSError):
            text = path.read_text(encoding="utf-8")
            path.unlink()
            yield text


def note_rate(journal_folder: Path, rate: float) -> None:
    """Note how fast the files of a journal are uploaded, in bytes per second."""
    with suppress(OSError):
        (folder_of(journal_folder) / _RATE).write_text(f"{rate:.0f}", encoding="utf-8")


def rate(journal_folder: Path) -> float | None:
    """Return how fast the files of a journal were uploaded last, in bytes per second; None if none has been."""
    with suppress(OSError, ValueError):
        return float((folder_of(journal_folder) / _RATE).read_text(encoding="utf-8")) or None
    return None
