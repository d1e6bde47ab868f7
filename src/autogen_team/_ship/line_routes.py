"""The log lines of an agent's jobs: one thread for each OpenTelemetry collector ships the journals of lines.

A journal is shipped while its job is connected. Once the job has ended, the agent takes over the lock of the journal,
sends the rest and removes the journal. It does the same with journals for this collector whose agent was killed.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from autogen_team._process.threads import spawn
from autogen_team._redact import mask, mask_url
from autogen_team._ship import collector, lines
from autogen_team._ship.drain import Drain
from autogen_team._ship.error_text import with_kind
from autogen_team._spool import journal, reader

if TYPE_CHECKING:
    from autogen_team._ship.agent import Job
    from autogen_team._spool.records import Entry

_LONGEST_IDLE = 1.0
"""Maximum polling interval in seconds for idle journals; a flush ends the wait early."""


class LineRoutes:
    """The journals of lines that an agent ships or watches."""

    def __init__(self) -> None:
        self._jobs: dict[Path, Job] = {}
        self._sources: dict[Path, _Source] = {}
        self._routes: dict[collector.Target, _Route] = {}

    @property
    def has_any(self) -> bool:
        """Whether any journal is left."""
        return bool(self._jobs)

    def watch(self, job: Job) -> None:
        """Watch the journal of a job that has not connected yet."""
        self._jobs[job.folder] = job
        self._adopt(job)

    def connected(self, found: Job, connection: socket.socket) -> Job:
        """Ship the journal of a job from now on; return the job."""
        job = self._jobs.setdefault(found.folder, found)
        job.environment, job.connection = found.environment, connection
        source = self._sources.get(job.folder)
        if source is None or source.lock is None:  # else the job has ended since it sent the message
            self._ship(job, None)
        self._adopt(job)
        return job

    def disconnected(self, job: Job) -> None:
        """Stop shipping the journal, because a live job ships it now."""
        job.connection = None
        self._pause(job)
        self.look()

    def parted(self, job: Job) -> None:
        """Send the rest of the journal, because its job no longer writes it."""
        job.connection = None
        job.is_over = True
        self._pause(job)
        self.look()

    def flush(self, job: Job) -> None:
        """Ship the entries of a job at once."""
        source = self._sources.get(job.folder)
        if source is not None:
            source.route.hurry()

    def look(self) -> None:
        """Find jobs that have ended, and journals that are done."""
        for folder, job in list(self._jobs.items()):
            source = self._sources.get(folder)
            if source is None or source.lock is None:
                if not folder.exists():
                    self._forget(job)
                elif job.is_over or not job.is_alive:
                    self._take_over(job)
            elif source.is_done or time.monotonic() > source.began + lines.LAST:
                self._forget(job)
                self._stop(source)
                journal.remove(folder)
                journal.give_back(folder, source.lock)
        self._routes = {target: route for target, route in self._routes.items() if not route.is_over}

    def _take_over(self, job: Job) -> None:
        with suppress(FileNotFoundError):
            lock = journal.take_over(job.folder)
            if lock is not None:
                self._ship(job, lock)

    def _adopt(self, job: Job) -> None:
        """Send what killed jobs and agents have left for the collector of this job."""
        place = mask_url(collector.endpoint("logs", job.environment) or "")
        for folder in job.folder.parent.glob("*"):
            header = None if folder in self._jobs else reader.header(folder)
            if header is None or header["uri"] != place or header["host"] != socket.gethostname():
                continue
            if header["boot"] != journal.boot_id() or journal.started_at(header["pid"]) != header["started"]:
                left = type(job)(folder, header["pid"], header["started"], job.environment, is_over=True)
                self._take_over(left)
                if folder in self._sources:
                    self._jobs[folder] = left

    def _ship(self, job: Job, lock: int | None) -> None:
        self._pause(job)
        target = collector.Target.of("logs", job.environment)
        route = self._routes.setdefault(target, _Route(target))
        source = _Source(job, route, lock)
        if not route.add(source):
            route = source.route = self._routes[target] = _Route(target)
            route.add(source)
        self._sources[job.folder] = source

    def _pause(self, job: Job) -> None:
        """Stop shipping the journal, unless its lock has been taken over."""
        source = self._sources.get(job.folder)
        if source is not None and source.lock is None:
            self._stop(source)

    def _stop(self, source: _Source) -> None:
        self._sources.pop(source.job.folder)
        source.route.remove(source)

    def _forget(self, job: Job) -> None:
        self._jobs.pop(job.folder, None)
        self._pause(job)


class _Source(lines.Source):
    """The journal of a job."""

    def __init__(self, job: Job, route: _Route, lock: int | None) -> None:
        """Ship the journal; with its `lock`, the job no longer writes it."""
        super().__init__(lambda: job.folder, 0)
        self._has_begun = False
        self.job = job
        self.route = route
        self.lock = lock
        self.began = time.monotonic()
        self.is_done = False
        """Whether the collector has answered for each line of a job that has ended."""

    def read(self, limit: int) -> list[Entry]:
        """Return the next entries."""
        if not self._has_begun:  # only now are earlier requests of this thread done
            self._has_begun = True
            self.begin(max(self.job.acked, reader.acked(self.job.folder)))
        found = super().read(limit)
        self.is_done = self.lock is not None and not found  # it is read only after everything before was delivered
        return found

    def taken(self, number: int) -> None:
        """Record that the collector has answered for every entry up to `number`."""
        self.job.acked = number  # a job that is killed may not have read the message
        if self.lock is None:
            self.job.send({"op": "acked", "number": number})
        else:
            reader.acknowledge(self.job.folder, number)


class _Route:
    """A collector and the journals that are shipped to it."""

    def __init__(self, target: collector.Target) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._sources: tuple[_Source, ...] = ()
        self._removed: list[_Source] = []
        self._fault = ""
        self._drain: Drain | None = None
        self._thread: threading.Thread | None = None
        self.is_over = False
        """Whether this route takes no more journals."""

    def add(self, source: _Source) -> bool:
        """Ship this journal too; return False if the route is over."""
        with self._lock:
            if self.is_over:
                return False
            self._sources = (*self._sources, source)
            if self._fault:
                source.job.send({"op": "yours"})
            if self._thread is None:
                self._thread = spawn(self._run, name="lines")
        self.hurry()
        return True

    def remove(self, source: _Source) -> None:
        """Stop shipping this journal.

        The route goes on for a moment: a killed job comes back at once, and a request with its lines may be under way.
        """
        with self._lock:
            self._sources = tuple(one for one in self._sources if one is not source)
            self._removed.append(source)
        self.hurry()

    def hurry(self) -> None:
        """End a pause early."""
        if self._drain is not None:
            self._drain.urgent.set()

    def _run(self) -> None:
        try:
            delivery = lines.Delivery(self._target, self._lost)
        except Exception as error:
            with self._lock:
                self._fault = mask(with_kind(error))
                sources = self._sources
            for source in sources:
                source.job.send({"op": "yours"})
            return
        self._drain = drain = Drain(delivery, lambda: self._sources, on_failed=self._failed, on_taken=lambda: None)
        idle = 0.0
        while not self.is_over:
            drain.urgent.wait(idle)
            before = [source.number for source in self._sources]
            drain.ship()
            is_idle = before == [source.number for source in self._sources]
            with self._lock:
                removed, self._removed = self._removed, []
                self.is_over = not self._sources and is_idle and idle == _LONGEST_IDLE
            for source in removed:
                source.close()  # only this thread reads it
            idle = min(2 * max(idle, drain.gather), _LONGEST_IDLE) if is_idle else drain.gather

    def _failed(self, reason: str) -> None:
        for source in self._sources:
            source.job.send({"op": "failed", "reason": reason})

    @staticmethod
    def _lost(entries: Iterable[Entry], count: int, reason: str) -> None:
        """Tell each job how many of its lines are lost; the collector does not say which ones it has rejected."""
        left = count
        by_job: dict[_Source, int] = {}
        for entry in entries:
            if left:
                by_job[entry["source"]] = by_job.get(entry["source"], 0) + 1
                left -= 1
        for source, number in by_job.items():
            source.job.send({"op": "lost", "count": number, "reason": reason})
