"""The processes of a job that the agent watches for silence; each has a folder with its clock and its stacks.

The folder is inside the agent's folder, so its process has the agent's host, boot and process ids:

- `clock`: the time of the last activity; see `_process.activity`.
- `process.json`: the process, the run that it works for, and how long the run may be silent.
- `stacks.txt`: the file to which `faulthandler` writes the stacks of all threads at a signal. It does so in C, even
  while the interpreter is blocked. The system ignores this signal unless a process handles it.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import shutil
import signal
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from autogen_team._process import Undo, activity, identity, run_events, stopping
from autogen_team._process.folders import open_private, private_folder
from autogen_team._process.forking import call_in_child
from autogen_team._process.refcount import RefCount
from autogen_team._ship import agent_link
from autogen_team._ship.error_text import with_kind
from autogen_team._spool import journal

CLOCK, PROCESS, STACKS = "clock", "process.json", "stacks.txt"
_REAL_TIME = 3
"""Number of real-time signals to try if the job handles SIGURG itself, counted from the last one."""

_report = logging.getLogger("autogen_team")
_signal: int | None = None
"""The signal on which this process writes its stacks, or on which its parent wrote them before the fork."""
_tells_stacks = True


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a job may be silent."""

    after: float
    """Seconds."""
    kills: bool = False
    """Whether the job is ended after a second such time."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The content of `process.json`."""

    pid: int
    started: float | None
    job: int
    """The id of the job's process, which differs from `pid` if this process keeps the run or forwards the output."""
    who: str
    """The role of the process in the job: `rank 1`, `worker node-4711`; empty for the job itself."""
    signal: int
    """The signal on which the process writes its stacks; 0 if it writes none."""
    run: str
    """The id of the run that the process works for; empty if there is none."""
    name: str
    """The name of that run."""
    owns: bool
    """Whether the process has opened the run itself, so that its limits apply to all processes of the run."""
    after: float
    kills: bool
    grace: float
    """Seconds between SIGTERM and SIGKILL."""
    folder: str
    """Its working folder, where its `.env` is."""
    world: int = 0
    """The number of ranks of the job; 0 without ranks."""


def folder_of(place: Path) -> Path:
    """Return the folder that contains the folder of each process watched by the agent of this place."""
    return place / "processes"


def facts_of(folder: Path) -> Facts:
    """Return the facts about the process of a folder.

    Raises:
        OSError, ValueError, TypeError: the process is just beginning or ending.

    """
    return Facts(**json.loads((folder / PROCESS).read_text()))


def tell_no_stacks() -> None:
    """Exclude this process from the reports of stacks, because it does none of the job's work."""
    global _tells_stacks
    _tells_stacks = False


def start(state: Path, limits: Limits) -> Undo:
    """Let the agent watch this process until the returned function is called; log a warning on failure."""
    return _watching.take(state, limits)


def join(run_id: str, name: str) -> None:
    """Record the run of another process that this process works for."""
    if _here is not None:
        _here.run_joined(run_events.Run(run_id, name, "", None, lambda *_: None), brings_log=False)


def catches(pid: int, number: int) -> bool:
    """Return whether a process handles a signal; without `/proc`, only SIGURG counts as handled, which is harmless."""
    with suppress(OSError, StopIteration, ValueError, IndexError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        mask = next(line for line in lines if line.startswith("SigCgt:")).split()[1]
        return bool(int(mask, 16) >> (number - 1) & 1)
    return number == signal.SIGURG and not Path("/proc/self/status").exists()


class _Watched(run_events.Listener):
    """This process, while it is watched."""

    def __init__(self, folder: Path, limits: Limits, number: int) -> None:
        self._pid = os.getpid()
        self._folder = folder
        self._limits = limits
        self._signal = number
        self._joined: dict[str, str] = {}

    def run_joined(self, run: run_events.Run, *, brings_log: bool) -> None:  # noqa: ARG002 - of the base class
        """Record that this process works for the run."""
        self._joined[run.run_id] = run.name
        self.write()

    def run_left(self, run: run_events.Run) -> None:
        """Record that this process no longer works for the run."""
        self._joined.pop(run.run_id, None)
        self.write()

    def write(self) -> None:
        """Write `process.json`."""
        if os.getpid() != self._pid:  # a forked child has this listener from its parent
            return
        opened = {} if self._joined or identity.worker() is not None else activity.open_runs()
        run, name = next(iter((self._joined or opened).items()), ("", ""))
        pid, rank = os.getpid(), identity.rank()
        who = f"rank {rank}" if rank is not None else f"worker {identity.worker()}" if identity.worker() else ""
        facts = Facts(
            pid=pid,
            started=journal.started_at(pid),
            job=identity.job(),
            who=who,
            signal=self._signal,
            run=run,
            name=name,
            owns=bool(opened),
            after=self._limits.after,
            kills=self._limits.kills,
            grace=stopping.seconds_to_kill(),
            folder=str(Path.cwd()),
            world=0 if rank is None else int(os.environ["WORLD_SIZE"]),
        )
        with suppress(OSError):
            new = self._folder / f"{PROCESS}.new"
            with open_private(new, "wb") as file:
                file.write(json.dumps(asdict(facts)).encode())
            new.replace(self._folder / PROCESS)


_here: _Watched | None = None


def _start(state: Path, limits: Limits) -> Undo:
    with ExitStack() as undo:
        try:
            _begin(state, limits, undo)
        except (OSError, ValueError, RuntimeError) as error:
            _report.warning("this process is not watched for silence: %s", with_kind(error))
            return lambda: None
        owner, end = os.getpid(), undo.pop_all().close
    return lambda: end() if os.getpid() == owner else None


def _begin(state: Path, limits: Limits, undo: ExitStack) -> None:
    global _here
    folder = private_folder(folder_of(agent_link.place_of(state)) / f"{os.getpid()}-{journal.started_at(os.getpid())}")
    undo.callback(shutil.rmtree, folder, ignore_errors=True)
    undo.callback(activity.start(folder / CLOCK))
    number = _arm(folder / STACKS, undo) if _tells_stacks else 0
    here = _here = _Watched(folder, limits, number)
    undo.callback(_end)
    undo.callback(activity.follow_runs(here.write))
    undo.callback(run_events.subscribe(here))
    here.write()


def _end() -> None:
    global _here
    _here = None


def _arm(path: Path, undo: ExitStack) -> int:
    """Make a signal write the stacks to this file; return its number, or 0 if no signal is free."""
    global _signal
    number = _free_signal() if _signal is None else _signal
    if number is None:
        return 0
    file = undo.enter_context(open_private(path, "ab"))
    faulthandler.register(number, file=file, all_threads=True)
    undo.callback(faulthandler.unregister, number)
    undo.callback(_disarm)
    _signal = number
    return number


def _disarm() -> None:
    global _signal
    _signal = None


def _free_signal() -> int | None:
    candidates = [signal.SIGURG, *(range(signal.SIGRTMAX, signal.SIGRTMAX - _REAL_TIME, -1) if _has_proc() else ())]
    return next((int(number) for number in candidates if _is_free(number)), None)


def _is_free(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_DFL and not (_has_proc() and catches(os.getpid(), number))


def _has_proc() -> bool:
    return Path("/proc/self/status").exists()


def _after_fork() -> None:
    global _watching, _here
    _watching, _here = RefCount(_start), None


_watching = RefCount(_start)
call_in_child(_after_fork)
