"""The agent: a small process that works for all jobs of a state folder, and outlives them.

It ships the journals of live jobs to their stores, and log lines to OpenTelemetry collectors. It also starts the
recovery of journals that jobs leave behind, because they were killed or their store was down. At first it only watches:
it loads the modules for shipping when a job asks for it, so short jobs do not pay for them. It exits when no job and no
such journal is left.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from autogen_team._process import durations
from autogen_team._ship import agent_link
from autogen_team._ship.agent_link import Message
from autogen_team._ship.silence import Event, Process, Silence
from autogen_team._ship.watched import Facts
from autogen_team._spool import files, journal

if TYPE_CHECKING:
    from autogen_team._ship.line_routes import LineRoutes
    from autogen_team._ship.route import Route, Shipment
    from autogen_team._ship.signs import Stop

_LOOK = 1.0
"""Polling interval in seconds for the processes of the jobs, because a child may keep a dead job's connection open."""
_AT_ONCE, _BUSY = 2, 30.0
"""Maximum number of processes that recover journals at a time, and seconds after which a process no longer counts,
because it mostly waits for its store. Each process loads MLflow, and recovers all journals left with the same
environment. The same maximum applies to processes that upload files."""
_SPARE = 1.0
"""Seconds that a job has to kill itself after its grace, before the agent kills it."""
_START_PATIENCE = 5.0
"""Seconds during which a second agent tries to hand its job over to the running one."""
_RECOVER = """
import sys
sys.path[:] = {path!r}
from autogen_team._ship import lean_mlflow
lean_mlflow.load()
from autogen_team._ship import recovery
recovery.after_death({folders!r}, {reasons!r})
"""
_UPLOAD = """
import sys
sys.path[:] = {path!r}
from autogen_team._ship import lean_mlflow
lean_mlflow.load()
from autogen_team._ship import uploads
uploads.serve({state!r})
"""
_REPORT = """
import sys
sys.path[:] = {path!r}
from autogen_team._ship import lean_mlflow
lean_mlflow.load()
from autogen_team._services import stall_report
stall_report.report({kind!r}, {owner!r}, {lasted!r}, {number!r}, {folders!r}, {state!r})
"""
"""Runs in a separate process, because the services are above this package, and the agent loads none of them."""


def main(place: str, order: Message) -> None:
    """Run the agent of this folder, with `order` as its first job; if an agent is running, pass the job to it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    first = Job.of({**order, "environment": dict(os.environ)})
    deadline = time.monotonic() + _START_PATIENCE
    while (lock := journal.take_lock(Path(place))) is None:
        with suppress(OSError), agent_link.connect(Path(place)) as connection:
            connection.sendall(agent_link.line({"op": "hello", **order, "environment": first.environment}))
            if connection.recv(2**16):  # a welcome message: the running agent has the job
                return
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)
    Agent(Path(place), first).run()
    os.close(lock)


@dataclass(eq=False)
class Job:
    """A process with a journal."""

    folder: Path
    pid: int
    started: float | None
    environment: dict[str, str] = field(repr=False)
    """Environment for the recovery of the journal: the stores and their credentials."""
    connection: socket.socket | None = None
    shipment: Shipment | None = None
    """The shipment of its journal, if this agent ships it."""
    reason: str = ""
    """Why the job was asked to end; empty without a request."""
    victim: tuple[int, float | None, float] | None = None
    """A process to kill at a deadline: its id, its start time, and the deadline on the monotonic clock."""
    kept: list[Message] = field(default_factory=list)
    """Messages for a job that has not connected yet."""
    acked: int = 0
    """The number of the last entry that the collector is known to have, for a journal of lines."""
    is_over: bool = False
    """Whether the process no longer writes the journal, although it may be alive."""

    @classmethod
    def of(cls, hello: Message) -> Job:
        """Create the job that a message describes."""
        return cls(Path(hello["folder"]), hello["pid"], hello["started"], hello["environment"])

    @property
    def has_lines(self) -> bool:
        """Whether the journal has log lines for a collector, instead of data for MLflow."""
        return self.folder.parent.name == journal.LINES

    @property
    def is_alive(self) -> bool:
        """Whether the process is alive."""
        return journal.started_at(self.pid) == self.started

    def end_shipment(self) -> None:
        """Stop shipping the journal of the job."""
        if self.shipment is not None:
            self.shipment.end()
            self.shipment = None

    def stop(self, stop: Stop, pid: int, grace: float) -> None:
        """Ask the job, whose process is `pid`, to end; if the request says so, kill it after `grace` seconds."""
        self.reason = stop.reason
        if stop.kills:  # the job kills itself, unless its interpreter is blocked
            self.victim = pid, journal.started_at(pid), time.monotonic() + grace + _SPARE
        self.tell({"op": "stop", "reason": stop.reason, "kills": stop.kills})

    def kill_if_due(self) -> None:
        """Kill the process that was asked to end, if it still runs at the deadline."""
        if self.victim is not None and time.monotonic() > self.victim[2]:
            (pid, started, _), self.victim = self.victim, None
            if started is not None and journal.started_at(pid) == started:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def tell(self, message: Message) -> None:
        """Send a message now, or when the job connects; the job that started the agent connects later."""
        if self.connection is None:
            self.kept.append(message)
        else:
            self.send(message)

    def send(self, message: Message) -> None:
        """Send a message; drop it if the job does not read."""
        connection = self.connection
        if connection is not None:
            with suppress(OSError):
                connection.send(agent_link.line(message), socket.MSG_DONTWAIT)


class Agent:
    """The jobs of a state folder, and the work for them."""

    def __init__(self, place: Path, first: Job) -> None:
        self._selector = selectors.DefaultSelector()
        self._listener = agent_link.listen(place)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._place = place
        self._jobs: dict[Path, Job] = {}
        self._lines: LineRoutes | None = None
        if first.has_lines:
            self._line_routes().watch(first)
        else:
            self._jobs[first.folder] = first
        self._left: list[Job] = []
        """Jobs that died, or ended before everything was shipped."""
        self._recovering: list[tuple[subprocess.Popen[bytes], float]] = []
        """Processes that recover journals, each with its start time."""
        self._routes: dict[str, Route] = {}
        self._silence = Silence(place)
        self._reports: list[tuple[str, str, dict[str, str]]] = []
        """Pending reports about silent jobs: the run, the code to execute, and the environment of the job."""
        self._uploaders: list[_Uploader] = []
        self._no_uploader_before = 0.0
        self._reporting: dict[str, subprocess.Popen[bytes]] = {}
        """Reporting processes by run; a run has one at a time, so that its reports stay in order."""

    def run(self) -> None:
        """Work until no job and no journal is left."""
        looked = 0.0
        while self._has_work():
            for key, _ in self._selector.select(_LOOK):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._hear(key.data)
            if time.monotonic() > looked + _LOOK / 2:
                looked = time.monotonic()
                self._look()
        # A new job can no longer reach this agent, and starts another one.
        self._listener.close()
        with suppress(OSError):
            (self._place / "socket").unlink()

    def _has_work(self) -> bool:
        has_lines = self._lines is not None and self._lines.has_any
        return bool(self._jobs or self._left or self._recovering or self._reports or has_lines)

    def _accept(self) -> None:
        with suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(True)
            self._selector.register(connection, selectors.EVENT_READ, _Caller(connection))

    def _hear(self, caller: _Caller) -> None:
        try:
            data = caller.connection.recv(2**20)
        except OSError:
            data = b""
        *lines, caller.rest = (caller.rest + data).split(b"\n")
        try:
            for line in lines:
                self._obey(caller, json.loads(line))
        except Exception:  # an error of one job must not stop the work for the others
            data = b""
        if not data:
            self._hang_up(caller)

    def _hang_up(self, caller: _Caller) -> None:
        self._selector.unregister(caller.connection)
        caller.connection.close()
        if caller.job is not None and caller.job.connection is caller.connection:
            if caller.job.has_lines:
                self._line_routes().disconnected(caller.job)
                return
            caller.job.connection = None
            caller.job.end_shipment()  # a live job ships its own journal now
            self._look()

    def _obey(self, caller: _Caller, message: Message) -> None:
        operation = message["op"]
        if operation == "hello":
            found = Job.of(message)
            if found.has_lines:
                caller.job = self._line_routes().connected(found, caller.connection)
                caller.job.send({"op": "welcome", "agent": os.getpid()})
                return
            caller.job = self._jobs.setdefault(found.folder, found)
            caller.job.environment = found.environment  # the job may have renewed a token
            caller.job.connection = caller.connection
            caller.job.send({"op": "welcome", "agent": os.getpid()})
            kept, caller.job.kept = caller.job.kept, []
            for one in kept:
                caller.job.send(one)
            return
        job = caller.job
        if job is None:
            return
        if job.has_lines:
            if operation == "bye":
                self._line_routes().parted(job)
            elif operation == "flush":
                self._line_routes().flush(job)
        elif operation == "bye":
            self._part_with(job)
        elif operation == "prepare":
            self._route_of(message["store"]).prepare(job)
        elif operation == "take":
            job.end_shipment()
            job.shipment = self._route_of(message["store"]).take(job, message)
            if job.shipment is None:  # the prepared route has ended, because no other job needed it
                job.send({"op": "yours"})
        elif operation == "flush" and job.shipment is not None:
            job.shipment.flush(message["until"])
        elif operation == "joined" and job.shipment is not None:
            job.shipment.joined = message["runs"]
        elif operation == "asked to end":
            job.reason = message["reason"]
        elif operation == "sample" and job.shipment is not None:
            job.shipment.system_metrics.begin(message["order"])
        elif operation == "sample no more" and job.shipment is not None:
            job.shipment.system_metrics.end(message["run"])
        elif operation == "login" and job.shipment is not None:
            job.shipment.log_in(message["store"])

    def _line_routes(self) -> LineRoutes:
        if self._lines is None:
            from autogen_team._ship.line_routes import LineRoutes  # most jobs send no lines

            self._lines = LineRoutes()
        return self._lines

    def _route_of(self, store: Message) -> Route:
        from autogen_team._ship.route import Route  # loads modules that a short job does not need

        self._routes = {key: route for key, route in self._routes.items() if not route.is_over}
        key = json.dumps(store, sort_keys=True)
        if key not in self._routes:
            self._routes[key] = Route(store)
        return self._routes[key]

    def _look(self) -> None:
        """Find dead jobs, and start recoveries, uploads and reports."""
        for job in list(self._jobs.values()):
            job.kill_if_due()
            if not job.is_alive or not job.folder.exists():
                self._part_with(job)
        if self._lines is not None:
            self._lines.look()
        self._have_files_uploaded()
        for event in self._silence.look():
            self._take_note(event)
        for route in self._routes.values():
            while route.silent:
                self._keep_stacks(*route.silent.popleft())
        self._report()
        self._recovering = [one for one in self._recovering if one[0].poll() is None]
        while self._left and sum(time.monotonic() < begun + _BUSY for _, begun in self._recovering) < _AT_ONCE:
            environment = self._left[0].environment
            alike = [job for job in self._left if job.environment == environment]
            self._left = [job for job in self._left if job not in alike]
            self._recover(alike, environment)

    def _part_with(self, job: Job) -> None:
        """Stop working for the job; if its journal still exists, queue the recovery of the journal."""
        self._jobs.pop(job.folder, None)
        if job.folder.exists() and job not in self._left:
            self._left.append(job)
        job.end_shipment()

    def _recover(self, jobs: list[Job], environment: dict[str, str]) -> None:
        reasons = {str(job.folder): job.reason for job in jobs if job.reason}
        recover = _RECOVER.format(path=sys.path, folders=[str(job.folder) for job in jobs], reasons=reasons)
        process = self._start(recover, environment, name="recovery")
        if process is not None:
            self._recovering.append((process, time.monotonic()))

    def _have_files_uploaded(self) -> None:
        """Assign each journal with larger waiting files to an uploader, which has the environment of the job."""
        if any(one.has_failed() for one in self._uploaders):
            self._no_uploader_before = time.monotonic() + _BUSY
        self._uploaders = [one for one in self._uploaders if one.is_there()]
        for job in self._jobs.values():
            if all(one.is_own for one in files.waiting(job.folder)):
                continue
            uploader = next((one for one in self._uploaders if one.works_for(job)), None)
            if uploader is None:
                if len(self._uploaders) >= _AT_ONCE or time.monotonic() < self._no_uploader_before:
                    continue
                upload = _UPLOAD.format(path=sys.path, state=str(self._state))
                process = self._start(upload, job.environment, name="upload", stdin=subprocess.PIPE)
                if process is None:
                    continue
                uploader = _Uploader(process, job.environment)
                self._uploaders.append(uploader)
            uploader.give(job)

    def _report(self) -> None:
        """Start the pending reports, a few at a time, because each loads MLflow."""
        self._reporting = {run_id: one for run_id, one in self._reporting.items() if one.poll() is None}
        for report in list(self._reports):  # in order, so the oldest report of a run starts first
            run_id, text, environment = report
            if run_id not in self._reporting and len(self._reporting) < _AT_ONCE:
                self._reports.remove(report)
                process = self._start(text, environment, name="report")
                if process is not None:
                    self._reporting[run_id] = process

    def _take_note(self, event: Event) -> None:
        """Report the silence of a job, or the end of it, to the job and its users; end the job if so configured."""
        job = self._job_of(event)
        if job is None:
            return
        lasted = durations.duration(event.lasted)
        if event.kind == "over":
            if event.owner.kills:
                facts = [process.facts for process in event.processes]
                pid = next((one.job for one in facts if one.job != one.pid), event.owner.pid)
                from autogen_team._ship.signs import Stop  # loads the redactor

                job.stop(Stop(f"silent for {lasted}", kills=True), pid, event.owner.grace)
            return
        if event.kind == "silent":
            text = f"nothing was logged or printed for {lasted}; the stacks of all threads go to stalls/ of the run"
            job.tell({"op": "silence", "text": text})
        self._have_reported(event.kind, event.owner, event.lasted, event.number, event.processes, job)

    def _keep_stacks(self, run_id: str, number: int) -> None:
        """Keep the stacks of the ranks here for the agent of rank 0, which alerts about them all."""
        processes = self._silence.processes_of(run_id)
        pids = {process.facts.pid for process in processes}
        job = next((job for job in self._jobs.values() if job.pid in pids), None)
        if job is not None:
            self._have_reported("elsewhere", processes[0].facts, 0.0, number, processes, job)

    def _have_reported(
        self, kind: str, owner: Facts, lasted: float, number: int, processes: list[Process], job: Job
    ) -> None:
        report = _REPORT.format(
            path=sys.path,
            kind=kind,
            owner=asdict(owner),
            lasted=lasted,
            number=number,
            folders=[str(process.folder) for process in processes],
            state=str(self._state),
        )
        self._reports.append((owner.run, report, job.environment))

    def _job_of(self, event: Event) -> Job | None:
        """Return the job that has opened the run; a process may have journals for several stores."""
        found = [job for job in self._jobs.values() if job.pid == event.owner.pid]
        shipped = [job for job in found if job.shipment is not None and job.shipment.has_open(event.owner.run)]
        return next(iter([*shipped, *found]), None)

    @property
    def _state(self) -> Path:
        return self._place.parents[1]  # see `agent_link.place_of`

    @staticmethod
    def _start(
        text: str, environment: dict[str, str], *, name: str, stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes] | None:
        with suppress(OSError):
            return subprocess.Popen(  # noqa: S603 - our own text, in our own interpreter
                [sys.executable, "-c", text, f"{agent_link.NAME}-{name}"],
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
        return None


@dataclass(eq=False)
class _Uploader:
    """A process that uploads the larger files of jobs."""

    process: subprocess.Popen[bytes]
    environment: dict[str, str] = field(repr=False)
    given: set[Path] = field(default_factory=set)
    """The journals that it uploads for."""

    def is_there(self) -> bool:
        """Return whether the process still runs."""
        if self.process.poll() is None:
            return True
        if self.process.stdin is not None:
            self.process.stdin.close()
        return False

    def has_failed(self) -> bool:
        """Return whether the process ended with an exception, so that the next one would probably fail, too."""
        return (self.process.poll() or 0) > 0

    def works_for(self, job: Job) -> bool:
        """Return whether the process has the journal of a job, or the same environment as the job."""
        return job.folder in self.given or self.environment == job.environment

    def give(self, job: Job) -> None:
        """Assign the journal of a job to the process, which then uses the current environment of the job."""
        is_known = job.folder in self.given and self.environment == job.environment
        if not is_known and self.process.stdin is not None:
            self.given.add(job.folder)
            self.environment = job.environment
            with suppress(OSError):  # the process has just ended; the next check starts another one
                order = {"folder": str(job.folder), "environment": job.environment}
                self.process.stdin.write(agent_link.line(order))
                self.process.stdin.flush()


@dataclass(eq=False)
class _Caller:
    """A connection; the first message names its job."""

    connection: socket.socket
    job: Job | None = None
    rest: bytes = b""
