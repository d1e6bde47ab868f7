"""What the engines tell each other about the job's runs, without knowing each other.

Tracking publishes: a run has started, is ending, has ended, and which run and span this very line of code belongs to.
Logs and alerts listen. A listener that fails is reported and skipped: it never harms the job, nor the next listener.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

Status: TypeAlias = Literal["FINISHED", "FAILED", "KILLED"]
Undo: TypeAlias = Callable[[], None]
Facts: TypeAlias = Mapping[str, str]

LOG_ARTIFACTS = "logs"
"""The folder of a run's artifacts that holds its log."""

_report = logging.getLogger("autogen_team")


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


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended."""

    status: Status
    reason: str | None
    """In a few words, secrets masked: ``SIGTERM``, ``exit status 3``, ``ValueError: bad shape``; None if FINISHED."""
    exception: BaseException | None
    duration: float
    """Seconds from the start of the run."""


class Listener(Protocol):
    """Whoever wants to know about runs; called on the job's own thread, so be quick and bounded."""

    def run_started(self, run: Run) -> None:
        """Take note that the run is open."""

    def run_ending(self, run: Run, end: End) -> None:
        """Use the last chance to attach something before the run is closed."""

    def run_ended(self, run: Run, end: End) -> None:
        """Take note that the run is closed."""


def _no_facts() -> Facts:
    return {}


_lock = threading.RLock()
_listeners: tuple[Listener, ...] = ()
_source: Callable[[], Facts] = _no_facts


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


def _tell(moment: str, run: Run, *end: End) -> None:
    for listener in _listeners:
        try:
            getattr(listener, moment)(run, *end)
        except Exception:
            _report.warning("%r failed in %s of run %s", listener, moment, run.run_id, exc_info=True)


def facts() -> Facts:
    """Return which run and span the calling line belongs to.

    Some of ``run_id``, ``run_name``, ``experiment``, ``trace_id`` and ``span_id``; empty when there is no run. Called
    for every log record, so a source must cost a microsecond or two, and it must not raise.
    """
    return _source()


def set_source(source: Callable[[], Facts]) -> Undo:
    """Let `source` answer for `facts`; the returned function gives back the previous one."""
    global _source
    with _lock:
        previous, _source = _source, source

    def restore() -> None:
        global _source
        with _lock:
            if _source is source:
                _source = previous

    return restore
