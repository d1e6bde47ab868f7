"""Heartbeats, which are tags with the time and place where a job was last alive, and the tag that asks a job to end.

The shipper of the job's journal sends the heartbeats: at first a thread of the job, then the agent. If they stop, any
machine can close the run. A job that was only suspended reopens it. With each heartbeat, the run is read once, because
a user may have set `autogen_team.stop` on its page, and because a later attempt of the job may have claimed the run.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from autogen_team._process import identity, run_events
from autogen_team._redact import mask
from autogen_team._ship.backend import Batch, Refused, RunState, Unreachable
from autogen_team._spool import journal
from autogen_team._spool.records import NOTES, Entry

if TYPE_CHECKING:
    from autogen_team._ship.owners import Owners

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
OVERTAKEN = "overtaken by"
"""Beginning of the reason why a process ended whose run a later attempt of the job has claimed."""
LAUNCH = 60.0
"""Maximum seconds between the starts of two ranks of one launch, or between the clocks of their hosts."""
_OURS = "autogen_team."
"""Prefix of the tags with the state of a run."""
_LONGEST_REASON = 300
_LATE = 1.5
"""Number of intervals after which a heartbeat is late, so that another machine may have closed or claimed the run. A
claim waits for three intervals without a heartbeat."""


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


def before_claims(entries: Iterable[Entry], claimed: Mapping[str, float]) -> Iterator[Entry]:
    """Yield the entries that still count for runs that a later attempt has claimed, and all entries of other runs.

    `claimed` has the time of each claim, in seconds since 1970. What was logged before counts, by its own time. Tags
    with the state of the run, and changes of its status, never count.
    """
    for entry in entries:
        at = claimed.get(entry.get("run", ""))
        if at is None or entry["op"] in NOTES:
            yield entry
        elif entry["op"] in ("info", "untag") or entry.get("t", 0) > 1000 * at:
            continue
        elif entry["op"] == "tags":
            values = {key: value for key, value in entry["values"].items() if not key.startswith(_OURS)}
            if values:
                yield {**entry, "values": values}
        else:
            yield entry


class RunsOfOthers:
    """The runs that a worker works for and that another process has open."""

    def __init__(self, runs: Iterable[str] = ()) -> None:
        self._logged = set(runs)
        self._opened: set[str] = set()
        self._joined: Counter[tuple[str, int]] = Counter()

    def follow(self, entries: Iterable[Entry]) -> None:
        """Learn from entries of the journal, in their order."""
        for entry in entries:
            if "run" in entry:
                (self._opened if entry["op"] == "open" else self._logged).add(entry["run"])

    def join(self, run_id: str, attempt: int = 1) -> None:
        """Add a run that the worker joins, even if it logs nothing to it; it may join it several times."""
        self._joined[run_id, attempt] += 1

    def leave(self, run_id: str, attempt: int = 1) -> None:
        """Undo one `join`; ignore a run that was not joined, as in a forked child."""
        self._joined = +self._joined - Counter([(run_id, attempt)])

    @property
    def joined(self) -> dict[str, int]:
        """The runs that the worker has joined and not left, each with the latest attempt that it works for."""
        return dict(sorted(self._joined))

    @property
    def logged(self) -> set[str]:
        """The runs that the worker has logged to, as its journal shows."""
        return self._logged - self._opened

    @property
    def ids(self) -> set[str]:
        """The ids, as the worker knows them."""
        return self.logged | self.joined.keys()


def _claims_of_own_launch_until() -> float:
    """Return the time until which a claim may be that of this process's own launch, in seconds since 1970.

    A rank other than 0 may find the run of its job before rank 0 has claimed it. For other processes, this is 0.
    """
    if not identity.rank():
        return 0.0
    import psutil  # most jobs have no ranks

    return float(psutil.Process().create_time()) + LAUNCH


class Signs:
    """Heartbeats of the runs that one process has open."""

    def __init__(
        self,
        owners: Owners,
        every: float,
        *,
        pid: int | None = None,
        given: float | None = None,
        until: float | None = None,
    ) -> None:
        """Send a heartbeat every `every` seconds, never if 0; `pid` defaults to this job's process.

        `given` is the time of the last heartbeat in seconds since 1970; the default is now. Claims of joined runs up
        to the time `until` are those of this process's own attempt; the default depends on the process.
        """
        self.until = _claims_of_own_launch_until() if until is None else until
        self._owners = owners
        self._backend = owners.backend
        self.every = every
        self._pid = pid
        self.begin(given)
        self._was_stopped = False
        self._taken: set[str] = set()
        """Runs that a later attempt has claimed, as was told already."""
        self._claimed: dict[str, float] = {}
        """Runs of which entries were dropped, each with the time of the claim."""
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

    def begin(self, given: float | None = None) -> None:
        """Count from the heartbeat at `given`, in seconds since 1970; the default is now."""
        # The monotonic clock stands still while a machine is suspended.
        self._began = self._tried = self.given = time.time() if given is None else given
        """Time since which this counts, of the last heartbeat that was sent, and of the last one that arrived."""

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
        return max(0.0, self._tried + self.every - time.time())

    @property
    def is_late(self) -> bool:
        """Whether heartbeats are missing, so that another process may have the runs by now."""
        is_missing = self._was_stopped or time.time() > self.given + _LATE * self.every
        return self.is_wanted and is_missing

    def give(self, runs: Mapping[str, int], ids: Mapping[str, str], others: Iterable[str] = ()) -> bool:
        """Send a heartbeat for these runs if one is due; return False if the store does not answer.

        `runs` has the attempt number of each run, and `ids` the store's ids of local runs. A suspended process sends no
        heartbeat, nor does one whose run a later attempt has claimed; see `overtaken`. A late heartbeat reopens runs
        that were closed for lack of heartbeats. The runs `others` are only read, because other processes have them
        open.
        """
        pid = identity.job() if self._pid is None else self._pid
        if not self.is_wanted or self._is_stopped(pid) or (self.left and not self._was_stopped):
            return True
        is_late, self._was_stopped = self.is_late, False
        self._tried = now = time.time()
        sign = tags(pid, ahead=self._backend.ahead)
        for run_id, attempt in {ids.get(run_id, run_id): attempt for run_id, attempt in runs.items()}.items():
            try:
                found = self._owners.look(run_id)
                if self._owners.later(run_id, attempt) is not None:
                    continue
                if is_late or (attempt > 1 and run_id not in self._looked_at):
                    self._open_again(run_id, attempt, found)
                tag = found.tags.get(STOP_TAG)
                requested = {} if tag is None else {STOP_REQUESTED_TAG: mask(tag)}
                self._backend.log(Batch(run_id, tags=sign | requested))
                self._heed(run_id, found.tags)
            except Refused:  # the run was deleted
                continue
            except Unreachable:
                return False
        if not self._heed_others(ids.get(run_id, run_id) for run_id in others):
            return False
        self.given = now
        return True

    def overtaken(
        self, opened: Mapping[str, int], joined: Mapping[str, int], ids: Mapping[str, str]
    ) -> Iterator[tuple[str, Stop]]:
        """Yield each run that a later attempt is known to have, once, with the reason to end this process.

        `opened` and `joined` have the attempt of each run that this process has open, or works for.
        """
        for run_id, attempt in {**joined, **opened}.items():
            after = 0.0 if run_id in opened else self.until
            later = self._owners.later(ids.get(run_id, run_id), attempt, after)
            if later is not None and run_id not in self._taken:
                self._taken.add(run_id)
                yield run_id, Stop(f"{OVERTAKEN} {later}")

    def kept(
        self, entries: list[Entry], opened: Mapping[str, int], joined: Mapping[str, int], ids: Mapping[str, str]
    ) -> list[Entry]:
        """Return the entries that may be delivered: none that was written after a later attempt had claimed its run.

        The store is asked only after a suspension or an outage in which heartbeats were missing. `opened` and `joined`
        have the attempt that has written the entries of a run, which this process has opened or works for.

        Raises:
            Unreachable: the store does not answer.

        """
        if not self.is_wanted:
            return entries
        attempts = {**joined, **opened}
        for run_id in ({entry.get("run", "") for entry in entries} & attempts.keys()) - self._claimed.keys():
            real, attempt = ids.get(run_id, run_id), attempts[run_id]
            if time.time() > self._began + _LATE * self.every:
                self._owners.confirm(real, attempt, time.time() - _LATE * self.every)
            at = self._owners.claimed_at(real, attempt, 0.0 if run_id in opened else self.until)
            if at is not None:
                self._claimed[run_id] = at
        return list(before_claims(entries, self._claimed)) if self._claimed else entries

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
                state = self._owners.look(run_id)
            except Refused:
                continue
            except Unreachable:
                return False
            status, found = state.status, state.tags
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

    def _open_again(self, run_id: str, attempt: int, found: RunState) -> None:
        reason = found.tags.get(run_events.EXCEPTION_TAG, "")
        if found.status == "KILLED" and (attempt > 1 or reason.startswith(LOST)):
            self._backend.update(run_id, "RUNNING", None, None)
            self._backend.remove_tag(run_id, run_events.EXCEPTION_TAG)
        self._looked_at.add(run_id)
