"""Detection of silent jobs by the agent: no process that works for a run has been active for too long."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from autogen_team._process import activity
from autogen_team._ship import watched
from autogen_team._ship.watched import Facts
from autogen_team._spool import journal


class Process(NamedTuple):
    """A live process that is watched."""

    folder: Path
    facts: Facts
    clock: activity.Clock


@dataclass(frozen=True, slots=True)
class Event:
    """A change in the silence of a run."""

    kind: Literal["silent", "moving", "over"]
    """`over` means twice the allowed silence, after which the job is ended if that is configured."""
    owner: Facts
    processes: list[Process]
    """All processes that work for the run on this machine."""
    lasted: float
    """Duration of the silence in seconds."""
    number: int
    """Number of this silence of the run, counted from 1."""


@dataclass(slots=True)
class _Watch:
    """A run that is watched."""

    since: float
    """Time of the last activity, on the monotonic clock, like all times here.

    Until there is some, the time when the run was first seen or last suspended. The process that was active may have
    ended since then: the clocks of the others say less.
    """
    number: int = 0
    silent_since: float | None = None
    is_over: bool = False


class Silence:
    """Watches the runs of all processes with a folder at one place."""

    def __init__(self, place: Path) -> None:
        self._place = watched.folder_of(place)
        self._watches: dict[str, _Watch] = {}

    def look(self) -> Iterator[Event]:
        """Yield the events of all runs since the last call."""
        now = time.monotonic()
        runs: dict[str, list[Process]] = {}
        for process in self._processes():
            if process.facts.run:
                runs.setdefault(process.facts.run, []).append(process)
        self._watches = {run_id: watch for run_id, watch in self._watches.items() if run_id in runs}
        for run_id, processes in runs.items():
            owner = next((process.facts for process in processes if process.facts.owns), None)
            if owner is not None:
                yield from self._judge(self._watches.setdefault(run_id, _Watch(now)), owner, processes, now)

    def processes_of(self, run_id: str) -> list[Process]:
        """Return the living processes here that work for a run."""
        return [process for process in self._processes() if process.facts.run == run_id]

    def _judge(self, watch: _Watch, owner: Facts, processes: list[Process], now: float) -> Iterator[Event]:
        if any(journal.is_stopped(pid) for process in processes for pid in {process.facts.pid, process.facts.job}):
            watch.since = now  # the allowed time begins again when the process continues
            return
        moved = max(process.clock.moved for process in processes)
        since = watch.silent_since
        if since is not None and moved > since:
            watch.silent_since, watch.is_over = None, False
            yield Event("moving", owner, processes, moved - since, watch.number)
        elif since is None:
            quiet_until = max(process.clock.quiet_until for process in processes)
            since = watch.since = max(moved, watch.since)
            if now > max(since + owner.after, quiet_until):
                watch.silent_since = since
                watch.number += 1
                yield Event("silent", owner, processes, now - since, watch.number)
        elif not watch.is_over and now > max(since, watch.since) + 2 * owner.after:
            watch.is_over = True
            yield Event("over", owner, processes, now - since, watch.number)

    def _processes(self) -> Iterator[Process]:
        with suppress(OSError):
            for folder in list(self._place.iterdir()):
                try:
                    facts = watched.facts_of(folder)
                except (OSError, ValueError, TypeError):
                    continue
                if journal.started_at(facts.pid) != facts.started:
                    shutil.rmtree(folder, ignore_errors=True)
                    continue
                clock = activity.read(folder / watched.CLOCK)
                if clock is not None:
                    yield Process(folder, facts, clock)
