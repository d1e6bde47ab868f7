"""A log file that several processes rotate, compress and clean up concurrently, without losing a line.

loguru's own rotation renames a file while other processes still write to it. Up to a third of their lines are lost when
the next rename, or the compression, hits that file.

Here every line is written under a lock on the file itself (`flock`), after a check that the path still names that file.
So the process that holds the lock may rename the file. No process writes to the old file afterwards, so it can be
compressed at any time. The settings `rotation`, `retention` and `compression` take loguru's values, with loguru's
meaning.
"""

from __future__ import annotations

import glob
import os
from fcntl import LOCK_EX, LOCK_UN, flock
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autogen_team._logs import loguru_internals
from autogen_team._logs.faults import report
from autogen_team._logs.file import File

if TYPE_CHECKING:
    from collections.abc import Callable


class RotatingFile(File):
    """A file that is replaced by a new one when it is full or old; its path may contain `{time}`."""

    def __init__(
        self, template: str, rotation: str | int | None, retention: str | int | None, compression: str | None
    ) -> None:
        """Open the file.

        Raises:
            ValueError: loguru does not know the value of rotation, retention or compression.
            OSError: the file cannot be opened.

        """
        self._template = template
        self._rules = loguru_internals.rules(template, rotation, retention, compression)
        self._due: Callable[[Any, int, str], bool] | None = None
        self._writing = False
        super().__init__(loguru_internals.path_now(template))

    def write(self, line: bytes, moment: Any = None) -> None:
        """Append the line, to a new file if this one is full."""
        if self._writing:  # a signal handler logs while we hold the lock
            self.append(line)
            return
        self._writing = True
        try:
            self._lock_current()
            if self._is_full(line, moment):
                self._rotate()
            self.append(line)
        finally:
            self._writing = False
            self._unlock()

    def after_fork(self) -> None:
        """Close the file, to be reopened: the lock belongs to the open file, which a child shares with its parent."""
        super().after_fork()
        self._writing = False
        self._close()

    def close(self) -> None:
        """Close the file; compress and clean up now if it does not rotate, as loguru does."""
        if self._fd >= 0 and self._rules.new_due is None:
            try:
                self._lock_current()
                self._pack(self.path)
            finally:
                self._unlock()
            self._clean_up()
        self._close()

    def _close(self) -> None:
        super()._close()
        self._due = None

    def _lock_current(self) -> None:
        """Lock the file that the path names now."""
        while True:
            if self._fd < 0:
                self._open(self.path)
            self._lock()
            if not self._is_another():
                return
            self._unlock()
            self._close()

    def _lock(self) -> None:
        try:  # without `suppress`, which costs a microsecond for each line
            flock(self._fd, LOCK_EX)
        except OSError:
            return  # a file system without locks; a single process is still safe

    def _unlock(self) -> None:
        try:
            flock(self._fd, LOCK_UN)
        except OSError:
            return  # as above

    def _is_full(self, line: bytes, moment: Any) -> bool:
        if self._rules.new_due is None:
            return False
        if self._due is None:
            self._due = self._rules.new_due()
        size = self.size
        return self._due(moment, size + len(line), self.path) and size > 0

    def _rotate(self) -> None:
        """Start a new file, and keep it locked."""
        full, new = self.path, loguru_internals.path_now(self._template)
        if new == full:
            full = loguru_internals.set_aside_name(full)
            Path(self.path).rename(full)
        self._unlock()
        self._close()
        self._open(new)
        loguru_internals.note_birth(new)
        self._pack(full)
        self._clean_up(but=new)  # loguru cleans up before there is a new file
        self._lock_current()

    def _pack(self, path: str) -> None:
        if self._rules.compress is not None:
            try:
                self._rules.compress(path)
            except FileNotFoundError:
                pass  # another process already removed it
            except Exception as error:
                report("cannot compress the log file %s: %s", path, error)

    def _clean_up(self, *, but: str = "") -> None:
        if self._rules.retain is not None:
            found = {name for pattern in self._rules.patterns for name in glob.glob(pattern) if Path(name).is_file()}  # noqa: PTH207 - loguru's patterns are whole paths
            found = {name for name in found if os.path.abspath(name) != but}  # noqa: PTH100 - links stay as they are
            try:
                self._rules.retain(sorted(found))
            except FileNotFoundError:
                pass  # as above
            except OSError as error:
                report("cannot remove old log files of %s: %s", self.path, error)
