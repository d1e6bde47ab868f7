"""Uploads the files that wait beside journals, several at a time, and tries again after an outage.

The job runs it for its small files, a process of the agent's for the others (`serve`), and `recovery` for what dead
processes have left. What waits beside one journal is uploaded by one process at a time, which holds the lock of the
folder; only the job needs no lock for its own.
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
"""Files that are uploaded at the same time."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0
"""Seconds between attempts while uploads fail; the pause doubles from the first value to the second."""
_SPREAD = 0.5, 1.5
_MOST = 512
"""Uploads that are looked at in one round."""
_GLANCE = 0.1
"""Polling interval in seconds for files of another process."""
_LINGER = 60.0
"""Seconds for which the agent's uploader stays when nothing waits, so that a job need not load MLflow for each file."""
_READ_TIMEOUT = 120
"""Seconds that a server may take to store a file, as in MLflow; requests of the job itself are bounded more tightly."""
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_PATIENCE = 30.0
"""Seconds to wait for another process that uploads the files beside a journal."""


@dataclass
class _Task:
    """An upload that has been started."""

    waiting: Waiting
    left: int
    """How many of its files have been neither uploaded nor given up."""
    fault: Exception | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Uploads:
    """Uploads to one store; threads of its own do the work."""

    def __init__(self, uri: str, state: Path, on_refused: Callable[[Waiting, str], object]) -> None:
        """Upload to the store `uri`; `on_refused` is called with files that it has refused, and a text about them."""
        self._uri = uri
        self._state = state
        self._on_refused = on_refused
        self._tasks: dict[Path, _Task] = {}
        self._known: dict[Path, Waiting] = {}
        """What was looked at last."""
        self._queue: deque[tuple[_Task, str]] = deque()
        self._lock = threading.Lock()
        self._threads = 0
        self._not_before = 0.0
        self._pause = _FIRST_PAUSE
        self.fault = ""
        """Why the last upload failed; empty if it did not."""
        self.failures = 0
        self.refused = 0
        """Number of uploads that the store has refused for good."""
        self.rate = 0.0
        """Bytes per second since the first of the uploads that are under way, or were last; 0 before the first end."""
        self._sent, self._began = 0, 0.0
        self._lacking: set[str] = set()
        """Addresses of runs and models of which files were refused."""
        self.moved = threading.Event()
        """Set whenever an upload has ended."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being uploaded."""
        return not self._tasks

    def start(self, found: Iterable[Waiting]) -> None:
        """Start what can be started now of these uploads, which are in the order in which each process logged them.

        An upload waits for those of its process before it that concern the same file. One whose files are all replaced
        by later uploads is left out.
        """
        if time.monotonic() < self._not_before:
            return
        known, self._known = self._known, {}
        for one in islice(found, _MOST):  # an upload that was looked at before has its order and targets in memory
            self._known[one.place] = known.get(one.place, one)
        for _, of_process in groupby(self._known.values(), lambda one: one.place.parent):
            blocked: set[str] = set()
            for one in self._without_replaced(list(of_process)):
                with suppress(FileNotFoundError):  # it has just been uploaded
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
        if not names:  # all have arrived, and the process ended before it could remove the folder
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
                except Exception as error:  # it stays, and is tried again
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
    """Return whether an upload has to wait for files that were logged before."""
    if "status" in one.order:
        return any(address.startswith(one.order["root"]) for address in before)
    return bool(one.targets & before)


def finish(folder: Path, uri: str, state: Path, root_of: Callable[[str], str]) -> int:
    """Upload all that waits beside the journal of a dead process, and return how many uploads were refused.

    `root_of` returns the address of the artifacts of a run that was begun while its store was out of reach.

    Raises:
        Unreachable: an upload failed, and another attempt may succeed, or another process is at it.

    """
    if not spool.waiting(folder):
        return 0
    lock = _take_lock(folder, _PATIENCE)
    if lock is None:
        raise Unreachable("another process uploads its files")
    try:
        uploads = Uploads(uri, state, lambda _one, _text: None)
        while found := [_placed(one, root_of) for one in spool.waiting(folder)]:
            uploads.start(found)
            uploads.wait(_GLANCE)
            if uploads.fault and uploads.is_idle:
                raise Unreachable(uploads.fault)
        return uploads.refused
    finally:
        os.close(lock)


def _placed(one: Waiting, root_of: Callable[[str], str]) -> Waiting:
    """Give an upload its address, if its run was begun while the store was out of reach."""
    with suppress(FileNotFoundError):
        if "run" in one.order:
            one.order["root"] = root_of(one.order.pop("run"))
    return one


def _take_lock(folder: Path, patience: float) -> int | None:
    deadline = time.monotonic() + patience
    while (lock := journal.take_lock(spool.folder_of(folder))) is None and time.monotonic() < deadline:
        time.sleep(_GLANCE)
    return lock


def serve(state: str) -> None:
    """Upload the larger files that wait beside journals.

    The environment names the store. Each line of standard input is a JSON object with the `folder` of a journal and the
    present `environment` of its job. Ends when standard input does, or some time after the last upload.
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
        """Learn the folders, and renewed credentials, from standard input."""
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
        """Upload until nothing has waited for a while."""
        idle_since = time.monotonic()
        while time.monotonic() < idle_since + _LINGER and not (self._is_over and not self._locks):
            found = [one for folder in list(self._folders) for one in self._found(folder)]
            if found:
                self._uploads.start(found)
                idle_since = time.monotonic()
            self._tell()
            self._uploads.wait(_GLANCE)

    def _found(self, folder: Path) -> list[Waiting]:
        """Return what waits beside a journal; hold its lock as long as something does."""
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
        """Tell the jobs why their files do not arrive, once, and the users of `status` how fast they do."""
        fault, rate = self._uploads.fault, self._uploads.rate
        if fault and not self._is_failing:
            for folder in self._locks:
                spool.note(folder, f"files cannot be uploaded: {fault}. They wait, and the agent tries again")
        self._is_failing = bool(fault)
        if rate != self._rate:
            self._rate = rate
            for folder in self._locks:
                spool.note_rate(folder, rate)

    @staticmethod
    def _refused(one: Waiting, text: str) -> None:
        spool.note(one.place.parent.parent, text)
