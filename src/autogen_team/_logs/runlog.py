"""The log of a run: lines that this process logs while the run is open, on disk at once and uploaded soon after.

Each process writes its own file, `<host>-<pid>.log` in the folder that the run event names, so no line is lost when a
process is killed. The process that opened the run uploads all files of that folder, including those of forked workers.
Uploaded files are removed when the run ends.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Literal, Protocol

from autogen_team._logs.faults import Faults
from autogen_team._logs.file import File
from autogen_team._logs.upload import Upload
from autogen_team._process import grace, identity, run_events
from autogen_team._process.folders import private_folder
from autogen_team._process.forking import start_afresh_after_fork

if TYPE_CHECKING:
    from pathlib import Path

SEGMENT = 16 * 2**20
"""Size in bytes at which a new segment starts, so that a long log is never uploaded as a whole again."""
PATIENCE = 10.0
"""Seconds that the end of a run waits for the upload of the rest of its log."""

_report = logging.getLogger("autogen_team")


class Render(Protocol):
    """Renders a line that did not come from loguru, with its newline."""

    def __call__(self, level: str, message: str, exception: BaseException | None = None) -> bytes:
        """Return the line in the format of the log."""
        ...


class RunLogs(run_events.Listener):
    """The logs of all runs that this process has open; a listener of `run_events`."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self._open: tuple[RunLog, ...] = ()
        self.after_fork()
        start_afresh_after_fork(self)

    def after_fork(self) -> None:
        """Create a new lock: a thread of the parent may hold the old one."""
        self._lock = threading.Lock()

    @property
    def has_any(self) -> bool:
        """Whether any run is open, so that a line for `write` is worth rendering."""
        return bool(self._open)

    def write(self, line: bytes) -> None:
        """Append the line to the logs of the runs that the calling thread belongs to."""
        logs = self._open
        thread = threading.get_ident()
        has_own = len(logs) > 1 and any(log.thread == thread for log in logs)
        for log in logs:
            # A thread with its own runs does not write to the runs of other threads, except to the main thread's.
            if not has_own or log.thread == thread or log.is_shared:
                log.write(line)

    def run_started(self, run: run_events.Run) -> None:
        """Start the log of the run."""
        if run.log_folder is not None:
            self._add(RunLog(run, run.log_folder, self._render))

    def run_ending(self, run: run_events.Run, end: run_events.End) -> None:
        """Write how the run ended unless it is FINISHED, close its log, and wait up to `PATIENCE` for the upload."""
        for log in self._forget(run):
            if end.status != "FINISHED":
                text = f"the run {run.name} ended as {end.status}: {end.reason}"
                log.write(self._render("ERROR", text, end.exception))
            log.finish(PATIENCE)

    def run_joined(self, run: run_events.Run, *, brings_log: bool) -> None:
        """Start a log for the lines of this process; with `brings_log`, this process also uploads it."""
        if run.log_folder is not None:
            log = RunLog(run, run.log_folder, self._render, brings="own" if brings_log else None)
            log.is_shared = True
            self._add(log)

    def run_left(self, run: run_events.Run) -> None:
        """Close the log of the run, and wait up to `PATIENCE` seconds for the upload."""
        for log in self._forget(run):
            log.finish(PATIENCE)

    def close(self) -> None:
        """Close the logs of runs that are still open."""
        for log in self._forget():
            log.finish(PATIENCE)

    def _add(self, log: RunLog) -> None:
        with self._lock:
            self._open = (*self._open, log)

    def _forget(self, run: run_events.Run | None = None) -> list[RunLog]:
        with self._lock:
            found = [log for log in self._open if run is None or log.run.run_id == run.run_id]
            self._open = tuple(log for log in self._open if log not in found)
        return found


class RunLog:
    """The log of one run in this process."""

    def __init__(
        self, run: run_events.Run, folder: Path, render: Render, *, brings: Literal["all", "own"] | None = "all"
    ) -> None:
        """Write below `folder`, and upload the files of all processes there, of this process (`own`), or none."""
        self.run = run
        self._render = render
        self.thread = threading.get_ident()
        self.is_shared = threading.current_thread() is threading.main_thread()
        """Whether threads that have their own runs write to this log too."""
        self._folder = folder
        self._faults = Faults(str(folder))
        self._file: File | None = None
        self._has_ended = False
        self._begin()
        self._upload: Upload | None = None
        if brings is not None:
            self._upload = Upload(
                folder, lambda path: run.attach(path, run_events.LOG_ARTIFACTS), writer=self, only_own=brings == "own"
            )
            self._upload.start()
        start_afresh_after_fork(self)

    def after_fork(self) -> None:
        """Write to the child's own file; the process that opened the run uploads it."""
        self._upload = None
        if self._file is not None:
            self._file.close()
            self._file = None
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.RLock()  # a signal handler may log in the middle of a write
        attempt = f"-attempt-{self.run.attempt}" if self.run.attempt > 1 else ""
        self.stem = identity.process_name() + attempt
        self._number = 1
        self._size = 0

    @property
    def path(self) -> Path:
        """The file that is being written."""
        return self._folder / (self.stem + (f"_{self._number:04d}" if self._number > 1 else "") + ".log")

    def write(self, line: bytes) -> None:
        """Append the line; report a fault once, and count lost lines."""
        is_first = False
        with self._lock:
            if self._has_ended:  # the run ended after this thread had found it open
                return
            try:
                if self._file is None:
                    self._file = self._new_file()
                self._file.append(line)
                if self._faults.lost:
                    self._file.append(self._render("WARNING", self._faults.over()))
            except Exception as error:
                is_first = self._faults.count(error)
            self._size += len(line)
            if self._size >= SEGMENT:
                self.begin_segment()
        if is_first:
            self._faults.report()

    def begin_segment(self) -> None:
        """Close the current segment, if there is one; the next line starts another."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None
                self._number += 1
                self._size = 0

    def finish(self, timeout: float) -> None:
        """Close the log, and wait `timeout` seconds for its upload; without success, the log stays on disk."""
        timeout = grace.bounded(timeout)
        with self._lock:
            self._has_ended = True
            if self._file is not None:
                self._file.close()
                self._file = None
        self._faults.close()
        if self._upload is not None and not self._upload.finish(timeout):
            _report.warning(
                "the log of run %s was not uploaded within %g s; it is in %s",
                self.run.run_id,
                timeout,
                self._folder,
            )

    def _new_file(self) -> File:
        private_folder(self._folder)
        return File(str(self.path), mode=0o600)
