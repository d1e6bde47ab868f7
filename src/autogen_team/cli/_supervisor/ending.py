"""The status and reason of a run, from the job's exit status, the signal that killed it and its own report."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from autogen_team._process import schedulers, stopping
from autogen_team._process.run_events import JobEnded

if TYPE_CHECKING:
    from autogen_team.cli._supervisor.wire import End

_ASKS_TO_END = {signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU}


def asks_to_end() -> set[signal.Signals]:
    """Return the signals after which any failure counts as an end by the signal; after SIGINT a job may continue."""
    announced = schedulers.ANNOUNCED if schedulers.find() is not None else ()
    return _ASKS_TO_END | {signal.Signals[name] for name in announced}


def kills_for_memory() -> int:
    """Return the number of processes that the kernel has killed for lack of memory; 0 if it does not count them."""
    with suppress(OSError, ValueError, StopIteration), Path("/proc/vmstat").open() as counters:
        return int(next(line for line in counters if line.startswith("oom_kill ")).split()[1])
    return 0


def verdict(end: End) -> JobEnded | None:
    """Return how a job failed; None if it finished."""
    found = _verdict(end)
    asked = stopping.reason()
    return JobEnded("KILLED", asked) if found is not None and found.status == "KILLED" and asked else found


def _verdict(end: End) -> JobEnded | None:
    from autogen_team._capture import signals  # loads the patterns of secrets, for which the job would have to wait

    if end.status < 0:
        return JobEnded("KILLED", _name(end))
    if end.status == 0:
        told = end.said.get("told")
        return JobEnded(*told) if told else None
    if end.said.get("signal"):
        return JobEnded("KILLED", end.said["signal"])
    asked = end.signal
    if asked is not None and (asked in asks_to_end() or end.status == 128 + asked):
        return JobEnded("KILLED", signals.signal_name(asked))
    failure = end.said.get("failure")
    if failure and end.status == 1:
        return JobEnded(*signals.of_exception(failure["kind"], failure["text"]), failure["trace"])
    return JobEnded("FAILED", f"exit status {end.status}")


def _name(end: End) -> str:
    from autogen_team._capture import signals

    name = signals.signal_name(-end.status)
    if end.lacked_memory and -end.status == signal.SIGKILL:
        return f"{name}, perhaps for lack of memory: the kernel killed a process for it while the job ran"
    return name
