"""Brings the files of a folder to a run while they are written: soon after each line, and never a long log twice."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from autogen_team.io._redact import mask

if TYPE_CHECKING:
    from collections.abc import Callable

SLACK = 8 * 2**20
"""Bytes that may be brought again and again, as a short log is."""
WORTH = 64 * 2**10
"""Bytes that make a file of its own."""

_report = logging.getLogger("autogen_team")


class Writer(Protocol):
    """Whoever writes files there, one after the other."""

    @property
    def stem(self) -> str:
        """What its files are called: this, for all but the first `_` and a number, and `.log`."""
        ...

    @property
    def path(self) -> Path:
        """The file that is written now."""
        ...

    def begin_segment(self) -> None:
        """Write no more to that file."""
        ...


def pause(age: float) -> float:
    """Return how many seconds to wait before looking again, `age` seconds after the start of the run.

    Every second at first, every 31 seconds after half an hour: Metaflow's curve (`metaflow/mflog`), because a person
    watches a run closely at its beginning.
    """
    return 1.0 + 30.0 / (1.0 + math.exp(9.0 - 0.01 * age))


class Upload:
    """A thread that copies what has grown.

    A file that still grows has to be brought as a whole again. So that this stays cheap, all such repetitions together
    may have `SLACK` bytes and half of the length of the log; beyond that the file is closed and another begun.
    """

    def __init__(self, folder: Path, attach: Callable[[Path], None], writer: Writer, *, only_own: bool = False) -> None:
        """Bring the files of the folder; with `only_own` no others than those of `writer`."""
        self._folder = folder
        self._only_own = only_own
        self._attach = attach
        self._writer = writer
        self._brought: dict[str, int] = {}
        self._repeated = 0
        self._last_call = threading.Event()
        self._done = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="autogen_team-run-log", daemon=True)

    def start(self) -> None:
        """Begin to look for news."""
        try:
            self._thread.start()
        except RuntimeError:  # no thread can be started any more: the interpreter is going down
            self._done.set()

    def finish(self, timeout: float) -> bool:
        """Bring what is left, and tell whether all has arrived within `timeout` seconds."""
        self._last_call.set()
        return self._done.wait(timeout) and not self._failing and self._thread.ident is not None

    def _run(self) -> None:
        began = time.monotonic()
        try:
            while not self._last_call.wait(pause(time.monotonic() - began)):
                self._look(final=False)
            self._look(final=True)
            self._clean_up()
        finally:
            self._done.set()

    def _look(self, *, final: bool) -> None:
        try:
            sizes = {path: path.stat().st_size for path in self._files()}
            for path, size in sizes.items():
                if size != self._brought.get(path.name, 0):
                    self._bring(path, size, total=sum(sizes.values()), final=final)
            self._failing = False
        except Exception as error:
            if not self._failing:
                _report.warning("the log of the run cannot be attached to it: %s", mask(str(error)))
            self._failing = True

    def _files(self) -> list[Path]:
        return [path for path in sorted(self._folder.glob("*.log")) if not self._only_own or self._is_own(path)]

    def _is_own(self, path: Path) -> bool:
        return path.name.startswith((self._writer.stem + ".", self._writer.stem + "_"))

    def _bring(self, path: Path, size: int, *, total: int, final: bool) -> None:
        current = self._writer.path
        is_own = self._is_own(path)
        if final or (is_own and path != current):  # it grows no more
            self._attach(path)
            self._brought[path.name] = size
        elif not is_own:  # a file of another process: once it has doubled, it is worth the way
            if size >= 2 * self._brought.get(path.name, 0):
                self._bring_copy(path)
        elif self._repeated + size <= SLACK + total // 2:
            self._repeated += self._bring_copy(path)
        elif size >= WORTH:
            self._writer.begin_segment()
            self._bring(path, path.stat().st_size, total=total, final=True)

    def _bring_copy(self, path: Path) -> int:
        """Bring a file that may grow on the way, which not every store would take; return what was brought."""
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copy(path, folder))
            size = copy.stat().st_size
            self._attach(copy)
        self._brought[path.name] = size
        return size

    def _clean_up(self) -> None:
        """Remove what has arrived in full."""
        with contextlib.suppress(OSError):
            for path in self._files():
                if path.stat().st_size == self._brought.get(path.name):
                    path.unlink()
            self._folder.rmdir()
