"""What the engines tell each other about the job's runs, without knowing each other.

Tracking publishes: a run has started, is ending, has ended, and which run and span this very line of code belongs to.
Logs and alerts listen. A listener that fails is reported and skipped: it never harms the job, nor the next listener.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from autogen_team.io._forking import ForkSafeLock

Status: TypeAlias = Literal["FINISHED", "FAILED", "KILLED"]
Undo: TypeAlias = Callable[[], None]
Facts: TypeAlias = Mapping[str, str]

LOG_ARTIFACTS = "logs"
"""The folder of a run's artifacts that holds its log."""
EXCEPTION_TAG = "autogen_team.exception"
"""The tag that says why a run has failed or was killed."""
WORKER_TAG = "autogen_team.worker"
"""The tag that says which worker has opened a run."""

_report = logging.getLogger("autogen_team")
_worker: str | None = None


def process_name(pid: int | None = None) -> str:
    """Return what tells a process, by default this one, from all others, fit for the name of a file: `<host>-<pid>`."""
    return f"{re.sub(r'[^A-Za-z0-9._-]', '-', socket.gethostname())}-{os.getpid() if pid is None else pid}"


def become_worker() -> None:
    """Note that this process works for the job of another one, as `worker` of which it is known from now on."""
    global _worker
    _worker = process_name()


def worker() -> str | None:
    """Return what this process is called among the workers of its job; None in the process of the job itself.

    A process that a worker forks is a worker only once it says so itself.
    """
    return _worker if _worker is not None and _worker.endswith(f"-{os.getpid()}") else None


def forget_worker() -> None:
    """Let this process be as it was before `become_worker`."""
    global _worker
    _worker = None


def rank() -> int | None:
    """Return which of the processes this is that a launcher such as torchrun has started; None if it is one alone."""
    text, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return int(text) if text.isdecimal() and size != "1" else None


_failure: ContextVar[BaseException | None] = ContextVar("autogen_team_failure", default=None)


@contextmanager
def leaving_by(error: BaseException | None) -> Iterator[None]:
    """Note that the services that stop inside the block do so because of this exception."""
    token = _failure.set(error)
    try:
        yield
    finally:
        _failure.reset(token)


def failure() -> BaseException | None:
    """Return the exception because of which a service stops; None if it stops for another reason."""
    return _failure.get()


def log_folder(state: Path, run_id: str) -> Path:
    """Return where the log of a run is kept until it has arrived among the artifacts."""
    return state / "logs" / run_id


@dataclass(frozen=True, slots=True)
class Run:
    """A run that this process has open."""

    run_id: str
    name: str
    experiment: str
    link: str | None
    """Where a person can look at it: the page of a server, None for a local store."""
    attach: Callable[[Path, str], None]
    """Copy a local file into the run's artifacts, into the folder named second; blocks, and raises on failure."""
    parent_id: str | None = None
    """The run that this one is nested in; None for the run of a whole job."""
    is_outermost: bool = True
    """Whether this process has opened no other run around it; a worker's may well have a parent in another process."""


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended."""

    status: Status
    reason: str | None
    """In a few words, secrets masked: ``SIGTERM``, ``exit status 3``, ``ValueError: bad shape``; None if FINISHED."""
    exception: BaseException | None
    duration: float
    """Seconds from the start of the run."""


class Listener:
    """Whoever wants to know about runs; called on the job's own thread, so be quick and bounded.

    A subclass has what it wants to know; the rest does nothing.
    """

    def run_started(self, run: Run) -> None:
        """Take note that the run is open."""

    def run_ending(self, run: Run, end: End) -> None:
        """Use the last chance to attach something before the run is closed."""

    def run_ended(self, run: Run, end: End) -> None:
        """Take note that the run is closed."""

    def run_joined(self, run: Run, *, brings_log: bool) -> None:
        """Take note that this process works for a run that another one has opened, and closes.

        With `brings_log` this process has to bring its own log to the run, because the other one cannot see it.
        """

    def run_left(self, run: Run) -> None:
        """Take note that this process has done its work for the run."""


def _no_facts() -> Facts:
    return {}


_lock = ForkSafeLock()
_listeners: tuple[Listener, ...] = ()
_sources: dict[object, Callable[[], Facts]] = {}
_source: Callable[[], Facts] = _no_facts
"""The latest of them."""


def subscribe(listener: Listener) -> Undo:
    """Tell `listener` of every run from now on; the returned function stops that."""
    global _listeners
    with _lock:
        _listeners = (*_listeners, listener)

    def unsubscribe() -> None:
        global _listeners
        with _lock:
            _listeners = tuple(other for other in _listeners if other is not listener)

    return unsubscribe


def run_started(run: Run) -> None:
    """Tell the listeners, in the order in which they subscribed."""
    _tell("run_started", run)


def run_ending(run: Run, end: End) -> None:
    """Tell the listeners, in the order in which they subscribed."""
    _tell("run_ending", run, end)


def run_ended(run: Run, end: End) -> None:
    """Tell the listeners, in the order in which they subscribed."""
    _tell("run_ended", run, end)


def run_joined(run: Run, *, brings_log: bool) -> None:
    """Tell the listeners, in the order in which they subscribed."""
    _tell("run_joined", run, brings_log=brings_log)


def run_left(run: Run) -> None:
    """Tell the listeners, in the order in which they subscribed."""
    _tell("run_left", run)


def _tell(moment: str, run: Run, *end: End, **how: bool) -> None:
    for listener in _listeners:
        try:
            getattr(listener, moment)(run, *end, **how)
        except Exception:
            _report.warning("%r failed in %s of run %s", listener, moment, run.run_id, exc_info=True)


def facts() -> Facts:
    """Return which run and span the calling line belongs to.

    Some of ``run_id``, ``run_name``, ``experiment``, ``trace_id`` and ``span_id``; empty when there is no run. Called
    for every log record, so a source must cost a microsecond or two, and it must not raise.
    """
    return _source()


def set_source(source: Callable[[], Facts]) -> Undo:
    """Let `source` answer for `facts` until the returned function is called; of several, the latest answers."""
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
