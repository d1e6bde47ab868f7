"""Run events and facts, by which the independent engines communicate.

Tracking publishes that a run has started, is ending or has ended, and which run and span a line of code belongs to.
Logs and alerts listen. Listeners are called in the order of their subscription. A listener that fails is reported and
skipped, and affects neither the job nor the next listener.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from autogen_team._process import Undo
from autogen_team._process.forking import ForkSafeLock
from autogen_team._process.reports import guard

Status: TypeAlias = Literal["FINISHED", "FAILED", "KILLED"]
Facts: TypeAlias = Mapping[str, str]

LOG_ARTIFACTS = "logs"
"""Artifact folder of a run's log."""
EXCEPTION_TAG = "autogen_team.exception"
"""Tag with the reason why a run failed or was killed."""
JOB_TAG = "autogen_team.job"
"""Tag with the identity of a job, the same for all its starts."""
ATTEMPT_TAG = "autogen_team.attempt"
"""Tag that counts the starts of a job. With a dot and a number, a tag with the end of that earlier attempt."""
PREEMPTED_TAG = "autogen_team.preempted"
"""Tag of a run that a scheduler ended."""
WORKER_TAG = "autogen_team.worker"
"""Tag with the name of the worker that opened a run."""

_failure: ContextVar[BaseException | None] = ContextVar("autogen_team_failure", default=None)


@contextmanager
def leaving_by(error: BaseException | None) -> Iterator[None]:
    """Record this exception as the reason why services stop inside the block."""
    token = _failure.set(error)
    try:
        yield
    finally:
        _failure.reset(token)


def failure() -> BaseException | None:
    """Return the exception because of which a service stops; None if it stops for another reason."""
    return _failure.get()


def log_folder(state: Path, run_id: str) -> Path:
    """Return the folder of a run's log on disk, used until the log is among the artifacts."""
    return state / "logs" / run_id


def attempt_of(tags: Mapping[str, str]) -> int:
    """Return the attempt number in a run's tags; 1 for a run without an identity.

    >>> attempt_of({}), attempt_of({"autogen_team.attempt": "3"})
    (1, 3)
    """
    text = tags.get(ATTEMPT_TAG, "")
    return int(text) if text.isdecimal() and int(text) else 1


@dataclass(frozen=True, slots=True)
class Run:
    """A run that this process has open."""

    run_id: str
    name: str
    experiment: str
    link: str | None
    """The URL of its page on a server; None for a local store."""
    attach: Callable[[Path, str], None]
    """Copy a local file into the named folder of the run's artifacts; blocks, and raises on failure."""
    parent_id: str | None = None
    """The run that contains this one; None for the run of a whole job."""
    attempt: int = 1
    """Attempt number of the job, counted from 1."""
    job: str | None = None
    """The identity of the job."""
    is_outermost: bool = True
    """Whether this process has opened no run around this one; a worker's run may have a parent in another process."""
    log_folder: Path | None = None
    """Where this process keeps its log of the run; None for no log."""


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended."""

    status: Status
    reason: str | None
    """Short text, secrets masked: ``SIGTERM``, ``exit status 3``, ``ValueError: bad shape``; None if FINISHED."""
    exception: BaseException | None
    duration: float
    """Seconds from the start of the run."""
    is_preempted: bool = False
    """Whether a scheduler ended it, and so may start it again."""
    is_overtaken: bool = False
    """Whether this process ended because a later attempt has claimed the run, which goes on there."""


class JobEnded(SystemExit):
    """The end of another process's job; the process that keeps the run raises it inside the run."""

    def __init__(self, status: Status, reason: str | None, trace: str = "") -> None:
        super().__init__(1)
        self.status: Status = status
        self.reason = reason
        self.trace = trace
        """The traceback of the exception that ended the job, as Python printed it."""


class Listener:
    """Observer of run events. Callbacks run on the job's thread and must be fast and bounded.

    A subclass overrides the callbacks that it needs; the others do nothing.
    """

    def run_started(self, run: Run) -> None:
        """Handle the start of a run."""

    def run_ending(self, run: Run, end: End) -> None:
        """Handle the end of a run before it is closed: the last chance to attach something."""

    def run_ended(self, run: Run, end: End) -> None:
        """Handle the end of a run after it is closed."""

    def run_joined(self, run: Run, *, brings_log: bool) -> None:
        """Handle the start of this process's work for a run that another process opened and will close.

        With `brings_log`, this process must upload its own log, because the other process cannot see it.
        """

    def run_left(self, run: Run) -> None:
        """Handle the end of this process's work for the run."""

    def not_finite(self, run_id: str, key: str, value: float, step: float) -> None:
        """Handle a metric that is NaN or infinite; called from any thread, even from a signal handler."""


def _no_facts() -> Facts:
    return {}


_lock = ForkSafeLock()
_listeners: tuple[Listener, ...] = ()
_sources: dict[object, Callable[[], Facts]] = {}
_source: Callable[[], Facts] = _no_facts
"""The latest active source."""


def subscribe(listener: Listener) -> Undo:
    """Send the events of every run to `listener`; return a function that unsubscribes it."""
    global _listeners
    with _lock:
        _listeners = (*_listeners, listener)

    def unsubscribe() -> None:
        global _listeners
        with _lock:
            _listeners = tuple(other for other in _listeners if other is not listener)

    return unsubscribe


def run_started(run: Run) -> None:
    """Publish that a run has started."""
    _tell("run_started", run)


def run_ending(run: Run, end: End) -> None:
    """Publish that a run is ending."""
    _tell("run_ending", run, end)


def run_ended(run: Run, end: End) -> None:
    """Publish that a run has ended."""
    _tell("run_ended", run, end)


def run_joined(run: Run, *, brings_log: bool) -> None:
    """Publish that this process has joined a run."""
    _tell("run_joined", run, brings_log=brings_log)


def run_left(run: Run) -> None:
    """Publish that this process has left a run."""
    _tell("run_left", run)


def not_finite(run_id: str, key: str, value: float, step: float) -> None:
    """Publish that a metric is NaN or infinite."""
    for listener in _listeners:
        with guard("%r failed in not_finite of run %s", listener, run_id):
            listener.not_finite(run_id, key, value, step)


def _tell(moment: str, run: Run, *end: End, **how: bool) -> None:
    for listener in _listeners:
        with guard("%r failed in %s of run %s", listener, moment, run.run_id):
            getattr(listener, moment)(run, *end, **how)


def facts() -> Facts:
    """Return the run and the span that the calling line belongs to.

    The keys are some of ``run_id``, ``run_name``, ``experiment``, ``trace_id`` and ``span_id``; empty without a run.
    Called for every log record, so a source must return within a microsecond or two, and must not raise.
    """
    return _source()


def set_source(source: Callable[[], Facts]) -> Undo:
    """Use `source` for `facts` until the returned function is called; the latest of several sources counts."""
    global _source
    key = object()
    with _lock:
        _sources[key] = _source = source

    def remove() -> None:
        global _source
        with _lock:
            _sources.pop(key, None)
            _source = next(reversed(_sources.values()), _no_facts)

    return remove
