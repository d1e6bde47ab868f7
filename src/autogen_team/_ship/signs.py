"""Heartbeats, which are tags with the time and place where a job was last alive, and the tag that asks a job to end.

The shipper of the job's journal sends the heartbeats: at first a thread of the job, then the agent. If they stop, any
machine can close the run. A job that was only suspended reopens it. With each heartbeat, the tags of the run are read
once, because a user may have set `autogen_team.stop` on its page.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from autogen_team._process import identity, run_events
from autogen_team._redact import mask
from autogen_team._ship.backend import Backend, Batch, Refused, Unreachable
from autogen_team._spool import journal
from autogen_team._spool.records import Entry

ALIVE_TAG = "autogen_team.alive"
"""Tag with the time of the last heartbeat, in UTC."""
HOST_TAG, PID_TAG = "autogen_team.host", "autogen_team.pid"
"""Tags with the machine and the process of the job."""
LOST = "no heartbeat since"
"""Beginning of the reason of a run that was closed for lack of heartbeats."""
STOP_TAG = "autogen_team.stop"
"""The tag that asks the job of a run to end; its value is the reason, or `now`."""
STOP_REQUESTED_TAG = "autogen_team.stop_requested"
"""The tag that tells workers of a stop, once the process that has the run open has removed the first tag."""
SILENT_TAG = "autogen_team.silent"
"""The tag that asks the agents of other machines for the stacks of their ranks; its value counts the silences."""
STOPPED = "stopped from its page"
"""Beginning of the reason of a run that was ended by this tag."""
_LONGEST_REASON = 300
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


@dataclass(frozen=True, slots=True)
class Stop:
    """A request to end the job of a run."""

    reason: str
    kills: bool = False
    """Whether the job is killed if it still runs after its grace."""

    @classmethod
    def of_tag(cls, text: str) -> Stop:
        """Return the request in the value of the tag.

        >>> Stop.of_tag("diverges (ada)")
        Stop(reason='stopped from its page: diverges (ada)', kills=False)
        """
        words = mask(" ".join(text.split()))[:_LONGEST_REASON]
        return cls(f"{STOPPED}: {words}" if words else STOPPED, words.lower() == "now")


class RunsOfOthers:
    """The runs that a worker works for and that another process has open."""

    def __init__(self, runs: Iterable[str] = ()) -> None:
        self._logged = set(runs)
        self._opened: set[str] = set()
        self._joined: Counter[str] = Counter()

    def follow(self, entries: Iterable[Entry]) -> None:
        """Learn from entries of the journal, in their order."""
        for entry in entries:
            if "run" in entry:
                (self._opened if entry["op"] == "open" else self._logged).add(entry["run"])

    def join(self, run_id: str) -> None:
        """Add a run that the worker joins, even if it logs nothing to it; it may join it several times."""
        self._joined[run_id] += 1

    def leave(self, run_id: str) -> None:
        """Undo one `join`; ignore a run that was not joined, as in a forked child."""
        self._joined = +self._joined - Counter([run_id])

    @property
    def joined(self) -> set[str]:
        """The runs that the worker has joined and not left."""
        return set(self._joined)

    @property
    def logged(self) -> set[str]:
        """The runs that the worker has logged to, as its journal shows."""
        return self._logged - self._opened

    @property
    def ids(self) -> set[str]:
        """The ids, as the worker knows them."""
        return self.logged | self.joined


class Signs:
    """Heartbeats of the runs that one process has open."""

    def __init__(self, backend: Backend, every: float, *, pid: int | None = None, given: float | None = None) -> None:
        """Send a heartbeat every `every` seconds, never if 0; `pid` defaults to this job's process.

        `given` is the time of the last heartbeat in seconds since 1970; the default is now.
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
        self._told: dict[str, str] = {}
        """Reasons of the stops of runs of others that were told already."""
        self._over: set[str] = set()
        """Runs of others that have ended with a stop."""
        self.on_stop: Callable[[str, Stop], None] = lambda _run_id, _stop: None
        """Called with the store's id of a run, and what its tag asks for."""
        self._silent: dict[str, str] = {}
        self.on_silence: Callable[[str, int], None] = lambda _run_id, _number: None
        """Called with the store's id of a run that another machine has found silent, and the number of the silence."""

    @property
    def is_wanted(self) -> bool:
        """Whether heartbeats are on."""
        return self.every > 0

    @property
    def ahead(self) -> float:
        """Seconds by which the clock of the store is ahead of this machine's; 0 if unknown."""
        return self._backend.ahead

    @property
    def left(self) -> float:
        """Seconds until the next heartbeat is due."""
        return max(0.0, self.given + self.every - time.time())

    def give(self, runs: Mapping[str, int], ids: Mapping[str, str], others: Iterable[str] = ()) -> bool:
        """Send a heartbeat for these runs if one is due; return False if the store does not answer.

        `runs` has the attempt number of each run, and `ids` the store's ids of local runs. A suspended process sends no
        heartbeat. A late heartbeat reopens runs that were closed for lack of heartbeats. Only the tags of the runs
        `others` are read, because other processes have them open.
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
                status, found = self._backend.look(run_id)
                if is_late or (attempt > 1 and run_id not in self._looked_at):
                    self._open_again(run_id, attempt, status, found)
                if run_id in self._taken:
                    continue
                requested = {STOP_REQUESTED_TAG: mask(found[STOP_TAG])} if STOP_TAG in found else {}
                self._backend.log(Batch(run_id, tags=sign | requested))
                self._heed(run_id, found)
            except Refused:  # the run was deleted
                continue
            except Unreachable:
                return False
        return self._heed_others(ids.get(run_id, run_id) for run_id in others)

    def _is_stopped(self, pid: int) -> bool:
        is_stopped = journal.is_stopped(pid)
        self._was_stopped |= is_stopped
        return is_stopped

    def _heed(self, run_id: str, found: Mapping[str, str]) -> None:
        if STOP_TAG in found:
            # Remove the tag first: the job may end in a moment, and a resumed run must not stop at once.
            self._backend.remove_tag(run_id, STOP_TAG)
            self.on_stop(run_id, Stop.of_tag(found[STOP_TAG]))

    def _heed_others(self, runs: Iterable[str]) -> bool:
        """Heed runs that are open elsewhere, where the tag is replaced; the reason of their end counts too."""
        for run_id in set(runs) - self._over:
            try:
                status, found = self._backend.look(run_id)
            except Refused:
                continue
            except Unreachable:
                return False
            number = found.get(SILENT_TAG, "")
            if number != self._silent.setdefault(run_id, "") and number.isdecimal():
                self.on_silence(run_id, int(number))
            self._silent[run_id] = number
            requested = found.get(STOP_TAG, found.get(STOP_REQUESTED_TAG)) if status == "RUNNING" else None
            reason = found.get(run_events.EXCEPTION_TAG, "") if status == "KILLED" else ""
            if requested is not None or reason.startswith(STOPPED):
                stop = Stop(reason) if requested is None else Stop.of_tag(requested)
                if requested is None:
                    self._over.add(run_id)
                if self._told.get(run_id) != stop.reason:
                    self._told[run_id] = stop.reason
                    self.on_stop(run_id, stop)
        return True

    def _open_again(self, run_id: str, attempt: int, status: str, found: Mapping[str, str]) -> None:
        if run_events.attempt_of(found) > attempt:
            self._taken.add(run_id)
            text = "run %s was taken over by attempt %s of its job on %s while process %d sent no heartbeats"
            _report.error(text, run_id, found[run_events.ATTEMPT_TAG], found.get(HOST_TAG), self._pid or os.getpid())
        elif status == "KILLED" and (attempt > 1 or found.get(run_events.EXCEPTION_TAG, "").startswith(LOST)):
            self._backend.update(run_id, "RUNNING", None, None)
            self._backend.remove_tag(run_id, run_events.EXCEPTION_TAG)
        self._looked_at.add(run_id)
