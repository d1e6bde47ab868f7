"""Heartbeats: tags of a run that say when and where its job was last alive.

The shipper of the job's journal sends them: at first a thread of the job, then the agent. If they stop, any machine can
close the run. A job that was only suspended reopens it.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from autogen_team._process import identity, run_events
from autogen_team._ship.backend import Backend, Batch, Refused, Unreachable

ALIVE_TAG = "autogen_team.alive"
"""The tag with the time of the last heartbeat, in UTC."""
HOST_TAG, PID_TAG = "autogen_team.host", "autogen_team.pid"
"""The tags with the machine and the process of the job."""
LOST = "no heartbeat since"
"""Beginning of the reason of a run that was closed for lack of heartbeats."""
_LATE = 1.5
"""Number of intervals after which a heartbeat is late, so that another machine may have closed the run."""

_report = logging.getLogger("autogen_team")


def tags(pid: int, *, ahead: float = 0.0) -> dict[str, str]:
    """Return the tags of a heartbeat; `ahead` is the seconds by which the store's clock is ahead of this machine's."""
    now = datetime.fromtimestamp(time.time() + ahead, UTC)
    return {ALIVE_TAG: f"{now:%Y-%m-%dT%H:%M:%SZ}", HOST_TAG: socket.gethostname(), PID_TAG: str(pid)}


def moment(text: str) -> float | None:
    """Return the time of a heartbeat in seconds since 1970; None if the text is not a time.

    >>> moment("2026-11-30T12:00:00Z"), moment("yesterday")
    (1796040000.0, None)
    """
    with suppress(ValueError):
        found = datetime.fromisoformat(text)
        return found.timestamp() if found.tzinfo is not None else None
    return None


class Signs:
    """Heartbeats of the runs that one process has open."""

    def __init__(self, backend: Backend, every: float, *, pid: int | None = None, given: float | None = None) -> None:
        """Send a heartbeat every `every` seconds, never if 0; `pid` defaults to this job's process.

        `given` is when the last one was given, in seconds since 1970, if that is not now.
        """
        self._backend = backend
        self.every = every
        self._pid = pid
        # The monotonic clock stands still while a machine is suspended.
        self.given = time.time() if given is None else given
        self._was_stopped = False
        self._taken: set[str] = set()
        """Runs that a later start of their job has taken over."""
        self._looked_at: set[str] = set()
        """Resumed runs that are known to be open: what recovered the start before may have closed them meanwhile."""

    @property
    def is_wanted(self) -> bool:
        """Whether heartbeats are on."""
        return self.every > 0

    @property
    def ahead(self) -> float:
        """By how many seconds the clock of the store is ahead of this machine's; 0 if that is not known."""
        return self._backend.ahead

    @property
    def left(self) -> float:
        """Seconds until the next heartbeat is due."""
        return max(0.0, self.given + self.every - time.time())

    def give(self, runs: Mapping[str, int], ids: Mapping[str, str]) -> bool:
        """Send a heartbeat for these runs if one is due; return False if the store does not answer.

        `runs` tells which start of its job each run is in, `ids` has the store's ids of local runs. A stopped process
        sends none. A late heartbeat reopens runs that were closed for lack of heartbeats.
        """
        pid = identity.job() if self._pid is None else self._pid
        if not self.is_wanted or self._is_stopped(pid) or (self.left and not self._was_stopped):
            return True
        is_late = self._was_stopped or time.time() > self.given + _LATE * self.every
        self._was_stopped = False
        self.given = time.time()
        sign = tags(pid, ahead=self._backend.ahead)
        for run_id, attempt in {ids.get(run_id, run_id): attempt for run_id, attempt in runs.items()}.items():
            try:
                if is_late or (attempt > 1 and run_id not in self._looked_at):
                    self._open_again(run_id, attempt)
                if run_id in self._taken:
                    continue
                self._backend.log(Batch(run_id, tags=sign))
            except Refused:  # the run was deleted
                continue
            except Unreachable:
                return False
        return True

    def _is_stopped(self, pid: int) -> bool:
        is_stopped = _is_stopped(pid)
        self._was_stopped |= is_stopped
        return is_stopped

    def _open_again(self, run_id: str, attempt: int) -> None:
        status, found = self._backend.look(run_id)
        if run_events.attempt_of(found) > attempt:
            self._taken.add(run_id)
            text = "the run %s has been taken over by attempt %s of its job on %s while process %d sent no heartbeats"
            _report.error(text, run_id, found[run_events.ATTEMPT_TAG], found.get(HOST_TAG), self._pid or os.getpid())
        elif status == "KILLED" and (attempt > 1 or found.get(run_events.EXCEPTION_TAG, "").startswith(LOST)):
            self._backend.update(run_id, "RUNNING", None, None)
            self._backend.remove_tag(run_id, run_events.EXCEPTION_TAG)
        self._looked_at.add(run_id)


def _is_stopped(pid: int) -> bool:
    """Return whether a process is stopped by a signal or a debugger."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    return False
