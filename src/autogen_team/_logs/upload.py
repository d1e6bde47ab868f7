"""Uploads the files of a folder to a run while they grow: soon after each line, but never a long log twice."""

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

from autogen_team._process.threads import spawn
from autogen_team._redact import mask

if TYPE_CHECKING:
    from collections.abc import Callable

SLACK = 8 * 2**20
"""Number of bytes that may be uploaded repeatedly, enough for a short log."""
WORTH = 64 * 2**10
"""Minimum size in bytes of a separate segment."""

_report = logging.getLogger("autogen_team")


class Writer(Protocol):
    """The writer of this process's files in the folder, one after another."""

    @property
    def stem(self) -> str:
        """The common prefix of its file names: the first file adds `.log`, the others `_`, a number and `.log`."""
        ...

    @property
    def path(self) -> Path:
        """The file that is being written."""
        ...

    def begin_segment(self) -> None:
        """Close the current file; the next line starts another."""
        ...


def pause(age: float) -> float:
    """Return the seconds to wait before the next check, `age` seconds after the start of the run.

    One second at first, 31 after half an hour: Metaflow's curve (`metaflow/mflog`), because people watch a run closely
    at its beginning.
    """
    return 1.0 + 30.0 / (1.0 + math.exp(9.0 - 0.01 * age))


class Upload:
    """A thread that uploads files that have grown.

    A file that still grows must be uploaded as a whole each time. To keep this cheap, all repeated uploads together are
    limited to `SLACK` bytes plus half the length of the log. Beyond that, the file is closed and another one started.
    """

    def __init__(self, folder: Path, attach: Callable[[Path], None], writer: Writer, *, only_own: bool = False) -> None:
        """Upload the files of the folder; with `only_own`, only those of `writer`."""
        self._folder = folder
        self._only_own = only_own
        self._attach = attach
        self._writer = writer
        self._uploaded: dict[str, int] = {}
        self._repeated = 0
        self._last_call = threading.Event()
        self._done = threading.Event()
        self._failing = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = spawn(self._run, name="autogen_team-run-log")
        if self._thread is None:
            self._done.set()

    def finish(self, timeout: float) -> bool:
        """Upload the rest, and return whether everything has arrived within `timeout` seconds."""
        self._last_call.set()
        return self._done.wait(timeout) and not self._failing and self._thread is not None

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
                if size != self._uploaded.get(path.name, 0):
                    self._upload(path, size, total=sum(sizes.values()), final=final)
            self._failing = False
        except Exception as error:
            if not self._failing:
                _report.warning("the log of the run could not be uploaded: %s", mask(str(error)))
            self._failing = True

    def _files(self) -> list[Path]:
        return [path for path in sorted(self._folder.glob("*.log")) if not self._only_own or self._is_own(path)]

    def _is_own(self, path: Path) -> bool:
        return path.name.startswith((self._writer.stem + ".", self._writer.stem + "_"))

    def _upload(self, path: Path, size: int, *, total: int, final: bool) -> None:
        current = self._writer.path
        is_own = self._is_own(path)
        if final or (is_own and path != current):  # the file no longer grows
            self._attach(path)
            self._uploaded[path.name] = size
        elif not is_own:  # a file of another process: uploaded again once its size has doubled
            if size >= 2 * self._uploaded.get(path.name, 0):
                self._upload_copy(path)
        elif self._repeated + size <= SLACK + total // 2:
            self._repeated += self._upload_copy(path)
        elif size >= WORTH:
            self._writer.begin_segment()
            self._upload(path, path.stat().st_size, total=total, final=True)

    def _upload_copy(self, path: Path) -> int:
        """Upload a copy, since not every store accepts a growing file; return the bytes uploaded."""
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copy(path, folder))
            size = copy.stat().st_size
            self._attach(copy)
        self._uploaded[path.name] = size
        return size

    def _clean_up(self) -> None:
        """Remove the files that have arrived in full."""
        with contextlib.suppress(OSError):
            for path in self._files():
                if path.stat().st_size == self._uploaded.get(path.name):
                    path.unlink()
            self._folder.rmdir()
