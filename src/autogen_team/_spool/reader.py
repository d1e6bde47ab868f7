"""Reads a journal: each complete entry once and in order, even from damaged files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import UnionType

from autogen_team._spool import records
from autogen_team._spool.records import Entry

_LONGEST_HEADER = 2**16
_HEADER: dict[str, type | UnionType] = {
    "version": int,
    "host": str,
    "pid": int,
    "started": float | None,
    "boot": str,
    "uri": str,
}
"""Fields of the header in every format of the journal, whatever else a later format adds or drops."""


def segment_name(number: int) -> str:
    """Return the file name of a segment."""
    return f"{number:06d}.jsonl"


def acked(folder: Path) -> int:
    """Return the number of the last entry that the store has accepted; 0 if that cannot be read."""
    found = records.parse(_bytes(folder / "acked").rstrip(b"\n"))
    return 0 if found is None else int(found["n"])


def acknowledge(folder: Path, number: int) -> None:
    """Note that the store has accepted the entries up to `number` of a journal whose process is dead."""
    with suppress(OSError):
        (folder / "acked").write_bytes(records.acked_line(number))


def header(folder: Path) -> Entry | None:
    """Return the first entry of the first segment, which describes the journal's process; None if it cannot be read."""
    for path in sorted(folder.glob("*.jsonl"))[:1]:
        with suppress(OSError), path.open("rb") as file:
            found = records.parse(file.readline(_LONGEST_HEADER).rstrip(b"\n"))
            return found if found is not None and is_header(found) else None
    return None


def is_header(entry: Entry) -> bool:
    """Return whether the entry is a header, which describes the journal's process."""
    return entry["op"] == "journal" and all(isinstance(entry.get(name), kind) for name, kind in _HEADER.items())


def read(folder: Path) -> list[Entry]:
    """Return the entries of a journal that is no longer written, including those that the store has accepted.

    Segments are ordered by their content, not by their file names.
    """
    segments = [whole for path in sorted(folder.glob("*.jsonl")) if (whole := list(_whole(_bytes(path))))]
    segments.sort(key=lambda segment: segment[0]["n"])
    found: dict[int, Entry] = {}
    for segment in segments:
        for entry in segment:
            found.setdefault(entry["n"], entry)
    return [found[number] for number in sorted(found)]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _whole(data: bytes) -> Iterator[Entry]:
    # A segment that was not closed ends in NUL bytes.
    for line in data.replace(b"\0", b"").split(b"\n"):
        entry = records.parse(line)
        if entry is not None:
            yield entry


class Follower:
    """Reads a journal while this or another process writes it.

    It keeps the current segment open, so that it can finish reading a segment that was removed.
    """

    def __init__(self, folder: Callable[[], Path | None], after: int = 0) -> None:
        """Start after entry number `after`; `folder` returns None until the journal's folder exists."""
        self._folder = folder
        self._path: Path | None = None
        self._descriptor: int | None = None
        self._offset = 0
        self._suspect = -1
        self.number = after
        """The number of the last entry that was read."""
        self.is_behind = False
        """Whether the last call of `read` left entries for the next one."""

    def read(self, limit: int) -> list[Entry]:
        """Return about `limit` bytes of the next entries; an empty list if there are none yet."""
        while True:
            following = self._following()  # looked up before the read: a segment with a successor is complete
            found, used = self._entries(limit, is_complete=following is not None)
            if found or (not used and following is None):
                return found
            if not used and following is not None:
                self._open(following)

    def close(self) -> None:
        """Close the segment."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _following(self) -> Path | None:
        """Return the segment after the current one; at first, the oldest that exists."""
        if self._path is None:
            folder = self._folder()
            return None if folder is None else min(folder.glob("*.jsonl"), default=None)
        path = self._path.with_name(segment_name(int(self._path.stem) + 1))
        if path.exists():
            return path
        if self._path.exists():
            return None
        later = (one for one in self._path.parent.glob("*.jsonl") if one > path)
        return min(later, default=None)  # a journal with a limit has removed those in between

    def _open(self, path: Path) -> None:
        self.close()
        self._path, self._offset, self._suspect = path, 0, -1
        with suppress(FileNotFoundError):  # removed since, because the store has accepted all its entries
            self._descriptor = os.open(path, os.O_RDONLY)

    def _entries(self, limit: int, *, is_complete: bool) -> tuple[list[Entry], int]:
        """Return the next entries of the current segment, and the number of bytes read for them."""
        if self._descriptor is None:
            return [], 0
        data = os.pread(self._descriptor, limit, self._offset)
        goes_on = len(data) == limit and data[-1] != 0  # NUL bytes are the space of later entries
        self.is_behind = is_complete or goes_on
        whole = data[: data.rfind(b"\n") + 1]
        if not whole:
            is_longer = goes_on
            return self._entries(2 * limit, is_complete=is_complete) if is_longer else ([], 0)
        lines = whole.split(b"\n")[:-1]
        found, used = [], 0
        for at, line in enumerate(lines):
            is_whole = records.is_whole(line)
            if not is_whole and not is_complete and not self._is_broken(self._offset + used, lines[at + 1 :]):
                break
            used += len(line) + 1
            entry = records.parse(line)
            if entry is None:
                self.number += is_whole  # an intact line took a number, even if it does not parse
            elif entry["n"] > self.number:
                self.number = entry["n"]
                found.append(entry)
        self._offset += used
        return found, used

    def _is_broken(self, place: int, later: list[bytes]) -> bool:
        """Return whether a torn line stays torn: it was torn at the last read too, and intact lines follow."""
        was_seen, self._suspect = self._suspect == place, place
        return was_seen and any(map(records.is_whole, later))
