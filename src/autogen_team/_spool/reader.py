"""Read a journal: every whole entry, in order and once, whatever has happened to the files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import UnionType

from autogen_team._spool import records
from autogen_team._spool.journal import Journal
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


def acked(folder: Path) -> int:
    """Return the number of the last entry that the store has taken; 0, as if it had none, if that cannot be read."""
    found = records.parse(_bytes(folder / "acked").rstrip(b"\n"))
    return 0 if found is None else int(found["n"])


def header(folder: Path) -> Entry | None:
    """Return the first entry of the first segment, which describes the journal's process; None if it cannot be read."""
    for path in sorted(folder.glob("*.jsonl"))[:1]:
        with suppress(OSError), path.open("rb") as file:
            found = records.parse(file.readline(_LONGEST_HEADER).rstrip(b"\n"))
            return found if found is not None and is_header(found) else None
    return None


def is_header(entry: Entry) -> bool:
    """Tell whether the entry is a header, which describes the journal's process."""
    return entry["op"] == "journal" and all(isinstance(entry.get(name), kind) for name, kind in _HEADER.items())


def read(folder: Path) -> list[Entry]:
    """Return the entries of a journal that is not written any more, including those that the store has taken.

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
    """Reads the journal of this process while it is written.

    The follower holds the current segment open, so that removing files from the folder takes nothing from it.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._segment = 1
        self._descriptor: int | None = None
        self._offset = 0
        self._rest = b""
        self.number = 0
        """The number of the last line that was read, whether it held an entry or not."""

    def read(self, limit: int) -> list[Entry] | None:
        """Return the next entries, about `limit` bytes of them; None if there are no more."""
        while True:
            segment, position = self._journal.end()
            is_current = segment == self._segment
            data = self._next(limit, position if is_current else None)
            if data:
                whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
                if newline:
                    lines = whole.split(b"\n")
                    self.number += len(lines)
                    return [entry for line in lines if (entry := records.parse(line)) is not None]
            elif is_current:
                return None
            else:
                self.close()
                self._segment, self._offset, self._rest = self._segment + 1, 0, b""

    def close(self) -> None:
        """Close the segment."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _next(self, limit: int, position: int | None) -> bytes:
        length = limit if position is None else min(limit, position - self._offset)
        if self._descriptor is None and self._journal.folder is not None:
            with suppress(FileNotFoundError):  # it was read to its end, and has been removed since
                self._descriptor = os.open(self._journal.path(self._segment), os.O_RDONLY)
        if length <= 0 or self._descriptor is None:
            return b""
        data = os.pread(self._descriptor, length, self._offset)
        self._offset += len(data)
        return data
