"""Lines in a file: appended whole, by any number of processes, to whatever the path names at the moment."""

from __future__ import annotations

import contextlib
import os
from os import F_OK, access, write
from pathlib import Path
from time import monotonic

_COMPARE = 1.0
"""Seconds between two looks at whether the path names another file by now."""
_BURST = 32
"""Lines in quick succession, after which the file is no longer looked for before each, but every `_TRUST` seconds."""
_TRUST = 0.001
_NONE = (-1, (0, 0))


class File:
    """A file that lines are appended to.

    Each line is one `write` in append mode, which local file systems do not mix with those of other processes. A file
    that is deleted or moved away is made anew; what a burst of lines has written to a deleted one is written again.
    """

    def __init__(self, path: str, *, mode: int = 0o666) -> None:
        self._mode = mode
        self._fd, self._identity = _NONE
        self._folder, self._folder_identity = _NONE
        self._torn = False
        self._looked = self._compared = self._trusted_until = 0.0
        self._quick = 0
        self._unseen: list[bytes] = []
        self._open(path)

    def write(self, line: bytes, moment: object = None) -> None:  # noqa: ARG002 - for those that rotate
        """Append the line.

        Raises:
            OSError: it could not be written, or only its beginning; the next line then begins on a line of its own.

        """
        now = monotonic()
        is_trusted = now < self._trusted_until
        if not is_trusted:
            self._look(now)
        try:
            self.append(line)
        except OSError:
            self._trusted_until = 0.0
            raise
        if is_trusted:
            self._unseen.append(line)

    def append(self, line: bytes) -> None:
        """Append the line without a look at what has become of the file."""
        written = 0 if self._torn else write(self._fd, line)
        if written != len(line):
            self._append_rest(b"\n" + line if self._torn else line[written:])

    def close(self) -> None:
        """Close the file; writing to it opens it again."""
        try:
            if self._unseen:
                self._look(monotonic())
        finally:
            self._close()

    def after_fork(self) -> None:
        """Leave it to the parent to write again what has been deleted."""
        self._unseen = []

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self._fd).st_size

    def _append_rest(self, rest: bytes) -> None:
        self._torn = True
        while rest:
            rest = rest[write(self._fd, rest) :]
        self._torn = False

    def _open(self, path: str) -> None:
        folder, name = os.path.split(path)
        Path(folder).mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, self._mode)
        self._close()
        self.path = path
        self._fd, self._identity = fd, _identity(os.fstat(fd))
        self._torn = False
        # From an open folder a name is looked up quicker than a whole path.
        folder_fd = os.open(folder, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
        self._folder, self._folder_identity = folder_fd, _identity(os.fstat(folder_fd))
        self._name = os.fsencode(name)

    def _look(self, now: float) -> None:
        """Make sure that the file is there, and that the lines since the last look are in it."""
        if (
            self._fd < 0
            or not access(self._name, F_OK, dir_fd=self._folder)
            or (now - self._compared > _COMPARE and self._is_replaced(now))
        ):
            self._reopen()
        self._unseen.clear()
        self._quick = self._quick + 1 if now - self._looked < 2 * _TRUST else 0
        self._looked = now
        if self._quick > _BURST:
            self._trusted_until = now + _TRUST

    def _reopen(self) -> None:
        is_deleted = self._is_deleted()
        try:
            self._open(self.path)
        except OSError:
            # Moved away, and no new one can be made: then the lines still go where it was moved to.
            if self._fd < 0 or is_deleted:
                raise
        else:
            for line in self._unseen if is_deleted else ():
                self.append(line)

    def _is_deleted(self) -> bool:
        try:
            return self._fd >= 0 and os.fstat(self._fd).st_nlink == 0
        except OSError:  # somebody has closed it
            self._fd = -1
            return False

    def _close(self) -> None:
        mine = ((self._fd, self._identity), (self._folder, self._folder_identity))
        self._fd, self._identity = self._folder, self._folder_identity = _NONE
        self._trusted_until = 0.0
        for fd, identity in mine:
            # What turns a process into a daemon closes all files, and our numbers may be somebody else's by now.
            with contextlib.suppress(OSError):
                if fd >= 0 and _identity(os.fstat(fd)) == identity:
                    os.close(fd)

    def _is_replaced(self, now: float) -> bool:
        self._compared = now
        return self._is_another()

    def _is_another(self) -> bool:
        try:
            return _identity(os.stat(self.path)) != self._identity  # noqa: PTH116 - a hot path
        except FileNotFoundError:
            return True


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
