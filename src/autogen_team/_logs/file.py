"""A log file to which any number of processes append whole lines; it is reopened if its path changes."""

from __future__ import annotations

import contextlib
import os
from os import F_OK, access, write
from pathlib import Path
from time import monotonic

_COMPARE = 1.0
"""Interval in seconds of checks whether the path names another file."""
_BURST = 32
"""Number of lines in quick succession after which we check the file every `_TRUST` seconds, not before each line."""
_TRUST = 0.001
_NONE = (-1, (0, 0))


class File:
    """A file that lines are appended to.

    Each line is one `write` in append mode. Local file systems do not mix it with the writes of other processes. If the
    file is deleted or moved, a new one is created. Lines that a burst has written to a deleted file are written again.
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

    def write(self, line: bytes, moment: object = None) -> None:  # noqa: ARG002 - for files that rotate
        """Append the line.

        Raises:
            OSError: the line was not written, or only its beginning was; the next line then starts on a new line.

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
        """Append the line without checking that the path still names this file."""
        written = 0 if self._torn else write(self._fd, line)
        if written != len(line):
            self._append_rest(b"\n" + line if self._torn else line[written:])

    def close(self) -> None:
        """Close the file; the next `write` opens it again."""
        try:
            if self._unseen:
                self._look(monotonic())
        finally:
            self._close()

    def after_fork(self) -> None:
        """Forget recent lines: if the file is deleted, the parent writes them again."""
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
        # Looking up a name in an open folder is faster than resolving the whole path.
        folder_fd = os.open(folder, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
        self._folder, self._folder_identity = folder_fd, _identity(os.fstat(folder_fd))
        self._name = os.fsencode(name)

    def _look(self, now: float) -> None:
        """Make sure that the file exists, and holds the lines written since the last check."""
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
            # The file was moved, and no new one can be created: lines still go to the moved file.
            if self._fd < 0 or is_deleted:
                raise
        else:
            for line in self._unseen if is_deleted else ():
                self.append(line)

    def _is_deleted(self) -> bool:
        try:
            return self._fd >= 0 and os.fstat(self._fd).st_nlink == 0
        except OSError:  # other code has closed it
            self._fd = -1
            return False

    def _close(self) -> None:
        mine = ((self._fd, self._identity), (self._folder, self._folder_identity))
        self._fd, self._identity = self._folder, self._folder_identity = _NONE
        self._trusted_until = 0.0
        for fd, identity in mine:
            # Code that daemonizes the process closes all files, so our descriptors may refer to other files by now.
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
