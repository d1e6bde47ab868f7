"""Upload the files that wait beside journals, several at a time, and retry after an outage.

The job uploads its small files, a process of the agent uploads the others (`serve`), and `recovery` uploads the files
of dead processes. One process at a time uploads the files beside a journal, and holds the lock of their folder. Only
the job needs no lock for its own files.
"""

from __future__ import annotations

import json
import os
import posixpath
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path

from mlflow.entities import LoggedModelStatus

from autogen_team._process.threads import spawn
from autogen_team._redact import mask
from autogen_team._ship import files, mlflow_backend, refused
from autogen_team._ship.backend import Unreachable
from autogen_team._ship.error_text import with_kind
from autogen_team._spool import files as spool
from autogen_team._spool import journal
from autogen_team._spool.files import Waiting

AT_ONCE = 4
"""Number of files that are uploaded at the same time."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0
"""Seconds between attempts while uploads fail; the pause doubles from the first value to the second."""
_SPREAD = 0.5, 1.5
_MOST = 512
"""Maximum number of uploads considered in one round."""
_POLL = 0.1
"""Polling interval in seconds for files of another process."""
_LINGER = 60.0
"""Seconds that the agent's uploader stays without work, so that MLflow is not loaded again for each file."""
_READ_TIMEOUT = 120
"""Seconds that a server may take to store a file, as in MLflow; requests of the job itself have a shorter limit."""
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_PATIENCE = 30.0
"""Seconds to wait for another process that uploads the files beside a journal."""


@dataclass
class _Task:
    """A started upload."""

    waiting: Waiting
    left: int
    """Number of its files that are neither uploaded nor given up."""
    fault: Exception | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Uploads:
    """Uploads to one store, on background threads."""

    def __init__(self, uri: str, state: Path, on_refused: Callable[[Waiting, str], object]) -> None:
        """Upload to the store `uri`; call `on_refused` with rejected files and a message about them."""
        self._uri = uri
        self._state = state
        self._on_refused = on_refused
        self._tasks: dict[Path, _Task] = {}
        self._known: dict[Path, Waiting] = {}
        """The uploads of the last call of `start`."""
        self._queue: deque[tuple[_Task, str]] = deque()
        self._lock = threading.Lock()
        self._threads = 0
        self._not_before = 0.0
        self._pause = _FIRST_PAUSE
        self.fault = ""
        """Why the last upload failed; empty if it succeeded."""
        self.failures = 0
        self.refused = 0
        """Number of uploads that the store has rejected for good."""
        self.rate = 0.0
        """Bytes per second since the first of the current or latest uploads began; 0 until an upload has ended."""
        self._sent, self._began = 0, 0.0
        self._lacking: set[str] = set()
        """URIs of runs and models with rejected files."""
        self.moved = threading.Event()
        """Set whenever an upload has ended."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being uploaded."""
        return not self._tasks

    def start(self, found: Iterable[Waiting]) -> None:
        """Start the uploads that can start now; the uploads of each process are in the order in which it logged them.

        An upload waits for earlier uploads of its process to the same file. An upload is dropped if later uploads
        replace all its files.
        """
        if time.monotonic() < self._not_before:
            return
        known, self._known = self._known, {}
        for one in islice(found, _MOST):  # a known upload has its order and targets in memory
            self._known[one.place] = known.get(one.place, one)
        for _, of_process in groupby(self._known.values(), lambda one: one.place.parent):
            blocked: set[str] = set()
            for one in self._without_replaced(list(of_process)):
                with suppress(FileNotFoundError):  # it was just uploaded
                    if one.place not in self._tasks and not _is_blocked(one, blocked):
                        self._begin(one)
                    blocked |= one.targets

    def wait(self, timeout: float) -> None:
        """Wait until an upload has ended, at most `timeout` seconds."""
        self.moved.wait(timeout)
        self.moved.clear()

    def _without_replaced(self, found: list[Waiting]) -> list[Waiting]:
        replaced: set[str] = set()
        kept = []
        for one in reversed(found):
            with suppress(FileNotFoundError):
                if one.targets <= replaced and one.place not in self._tasks:
                    one.remove()
                    continue
                replaced |= one.targets
                kept.append(one)
        return kept[::-1]

    def _begin(self, one: Waiting) -> None:
        names = one.files() if "status" not in one.order else [""]
        if not names:  # all files were uploaded, but the process ended before it removed the folder
            one.remove()
            return
        if self.is_idle:
            self._sent, self._began = 0, time.monotonic()
        task = self._tasks[one.place] = _Task(one, len(names))
        with self._lock:
            self._queue.extend((task, name) for name in names)
            missing = max(0, min(AT_ONCE - self._threads, len(names)))
            self._threads += missing
        for _ in range(missing):
            if spawn(self._work, name="autogen_team-upload") is None:
                self._work()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._threads -= 1
                    return
                task, name = self._queue.popleft()
            if task.fault is None:
                try:
                    self._upload(task.waiting, name)
                except Exception as error:
                    task.fault = error
            with task.lock:
                task.left -= 1
                is_last = not task.left
            if is_last:
                try:
                    self._end(task)
                except Exception as error:  # the upload stays in its folder and is retried
                    self._failed(mask(with_kind(error)))
                finally:
                    del self._tasks[task.waiting.place]
                    self.moved.set()

    def _upload(self, one: Waiting, name: str) -> None:
        if "status" in one.order:
            status = LoggedModelStatus(one.order["status"])
            if one.order["root"] in self._lacking:
                status = LoggedModelStatus.FAILED
            mlflow_backend.plain_store(self._uri).finalize_logged_model(one.order["model"], status)
            return
        repository = files.repository_at(one.order["root"], self._uri)
        folder = posixpath.join(one.order.get("path") or "", posixpath.dirname(name)).rstrip("/")
        path = one.content / name
        files.send(repository, path, folder or None)
        path.unlink(missing_ok=True)

    def _end(self, task: _Task) -> None:
        one, fault = task.waiting, task.fault
        if fault is None:
            one.remove()
            self.fault, self._pause = "", _FIRST_PAUSE
            self._sent += one.size
            self.rate = self._sent / (time.monotonic() - self._began)
            return
        reason = mask(with_kind(fault))
        if files.is_final(fault, self._uri):
            self.refused += 1
            self._lacking.add(one.order["root"])
            self._on_refused(one, refused.note_files(self._state, one, reason))
            return
        self._failed(reason)

    def _failed(self, reason: str) -> None:
        self.fault, self.failures = reason, self.failures + 1
        self._not_before = time.monotonic() + self._pause * random.uniform(*_SPREAD)  # noqa: S311  # nosec B311
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)


def _is_blocked(one: Waiting, before: set[str]) -> bool:
    """Return whether an upload must wait for files that were logged before."""
    if "status" in one.order:
        return any(address.startswith(one.order["root"]) for address in before)
    return bool(one.targets & before)


def finish(folder: Path, uri: str, state: Path, root_of: Callable[[str], str]) -> int:
    """Upload all files that wait beside the journal of a dead process, and return the number of rejected uploads.

    `root_of` returns the URI of the artifacts of a run that began while its store was unreachable.

    Raises:
        Unreachable: an upload failed, but another attempt may succeed; or another process is uploading the files.

    """
    if not spool.waiting(folder):
        return 0
    lock = _take_lock(folder, _PATIENCE)
    if lock is None:
        raise Unreachable("another process is uploading its files")
    try:
        uploads = Uploads(uri, state, lambda _one, _text: None)
        while found := [_placed(one, root_of) for one in spool.waiting(folder)]:
            uploads.start(found)
            uploads.wait(_POLL)
            if uploads.fault and uploads.is_idle:
                raise Unreachable(uploads.fault)
        return uploads.refused
    finally:
        os.close(lock)


def _placed(one: Waiting, root_of: Callable[[str], str]) -> Waiting:
    """Set the URI of an upload if its run began while the store was unreachable."""
    with suppress(FileNotFoundError):
        if "run" in one.order:
            one.order["root"] = root_of(one.order.pop("run"))
    return one


def _take_lock(folder: Path, patience: float) -> int | None:
    deadline = time.monotonic() + patience
    while (lock := journal.take_lock(spool.folder_of(folder))) is None and time.monotonic() < deadline:
        time.sleep(_POLL)
    return lock


def serve(state: str) -> None:
    """Upload the larger files that wait beside journals.

    The environment names the store. Each line of standard input is a JSON object with the `folder` of a journal and the
    current `environment` of its job. Returns when standard input ends, or some time after the last upload.
    """
    _bound_requests()
    server = _Server(os.environ["MLFLOW_TRACKING_URI"], Path(state))
    spawn(server.listen, name="autogen_team-orders")
    server.run()


def _bound_requests() -> None:
    chosen = int(os.environ.get(_TIMEOUT) or 0)
    os.environ[_TIMEOUT] = str(max(_READ_TIMEOUT, chosen))


class _Server:
    """The agent's uploader for jobs that share an environment."""

    def __init__(self, uri: str, state: Path) -> None:
        self._uploads = Uploads(uri, state, self._refused)
        self._environment: dict[str, str] | None = None
        self._folders: list[Path] = []
        self._locks: dict[Path, int] = {}
        self._is_over = False
        self._is_failing = False
        self._rate = 0.0

    def listen(self) -> None:
        """Read the folders and renewed credentials from standard input."""
        for line in sys.stdin.buffer:
            order = json.loads(line)
            if Path(order["folder"]) not in self._folders:
                self._folders.append(Path(order["folder"]))
            if self._environment not in (None, order["environment"]):
                os.environ.update(order["environment"])
                _bound_requests()
                files.repository_at.cache_clear()
            self._environment = order["environment"]
        self._is_over = True

    def run(self) -> None:
        """Upload until no file has waited for a while."""
        idle_since = time.monotonic()
        while time.monotonic() < idle_since + _LINGER and not (self._is_over and not self._locks):
            found = [one for folder in list(self._folders) for one in self._found(folder)]
            if found:
                self._uploads.start(found)
                idle_since = time.monotonic()
            self._tell()
            self._uploads.wait(_POLL)

    def _found(self, folder: Path) -> list[Waiting]:
        """Return the uploads that wait beside a journal; hold its lock as long as there are any."""
        found = [one for one in spool.waiting(folder) if not one.is_own]
        if found and folder not in self._locks:
            with suppress(OSError):
                lock = journal.take_lock(spool.folder_of(folder))
                if lock is not None:
                    self._locks[folder] = lock
        elif not found and folder in self._locks:
            os.close(self._locks.pop(folder))
        if not folder.exists():
            self._folders.remove(folder)
        return found if folder in self._locks else []

    def _tell(self) -> None:
        """Tell the jobs once why their uploads fail, and record the upload rate for `status`."""
        fault, rate = self._uploads.fault, self._uploads.rate
        if fault and not self._is_failing:
            for folder in self._locks:
                spool.note(folder, f"files cannot be uploaded: {fault}. They wait on disk, and the agent retries")
        self._is_failing = bool(fault)
        if rate != self._rate:
            self._rate = rate
            for folder in self._locks:
                spool.note_rate(folder, rate)

    @staticmethod
    def _refused(one: Waiting, text: str) -> None:
        spool.note(one.place.parent.parent, text)
