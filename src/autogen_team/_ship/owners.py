"""Owners of runs: the claims by which an attempt of a job takes a run, and what is kept of the attempt before it.

A claim is a parameter of the run, because only the first of several writers can set a parameter: of two claims of one
attempt, the store refuses one. A process that was suspended or cut off may be overtaken by a later attempt, which
claims its run. What it logged until then is delivered, the rest is not, because two attempts would mix their steps.
"""

from __future__ import annotations

import os
import re
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from autogen_team._process import run_events, schedulers
from autogen_team._ship.backend import Backend, Blocked, Refused, RunState
from autogen_team._ship.signs import HOST_TAG, PID_TAG, moment
from autogen_team._spool import journal

CLAIM = "autogen_team.claim."
"""Prefix of the names of these parameters; the attempt number follows."""
_RESOLUTION = 1.0
"""Seconds to which the time of a claim is known."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A process that has claimed an attempt, and its machine."""

    attempt: int
    host: str
    pid: int
    machine: str
    """Id that two processes share if they can find each other by process id; see `_machine`."""
    started: float | None
    """Start time of the process, as `journal.started_at` returns it."""
    starts: int
    """Number of restarts of the job, as its scheduler counts them."""
    after: int
    """End time of the run before this claim, in milliseconds since 1970; 0 if it had none."""
    at: float
    """Seconds since 1970."""
    key: str
    """Unique id of the claim."""

    @classmethod
    def here(cls, attempt: int, after: int) -> Claim:
        """Return a claim of this process."""
        pid, found = os.getpid(), schedulers.find()
        return cls(
            attempt=attempt,
            host=socket.gethostname(),
            pid=pid,
            machine=_machine(),
            started=journal.started_at(pid),
            starts=0 if found is None else found.starts,
            after=after,
            at=time.time(),
            key=uuid.uuid4().hex[:12],
        )

    def __str__(self) -> str:
        fields = {name: getattr(self, name) for name in ("host", "pid", "machine", "started", "starts", "after", "key")}
        return " ".join([moment_text(self.at), *(f"{name}={value}" for name, value in fields.items())])

    @classmethod
    def read(cls, attempt: int, text: str) -> Claim | None:
        """Return the claim that a parameter holds; None if it holds none.

        >>> claim = Claim.here(2, 0)
        >>> Claim.read(2, str(claim)).key == claim.key
        True
        """
        at, *words = text.split(" ")
        fields = {name: value for name, _, value in (word.partition("=") for word in words)}
        try:
            return cls(
                attempt=attempt,
                host=fields["host"],
                pid=int(fields["pid"]),
                machine=fields["machine"],
                started=None if fields["started"] == "None" else float(fields["started"]),
                starts=int(fields["starts"]),
                after=int(fields["after"]),
                at=moment(at) or 0.0,
                key=fields["key"],
            )
        except (KeyError, ValueError):
            return None

    @property
    def is_of_this_machine(self) -> bool:
        """Whether this process can find the process of the claim by its id."""
        return bool(self.machine) and self.machine == _machine()

    @property
    def lives(self) -> bool:
        """Whether the process of the claim is alive; only valid for a claim of this machine."""
        return self.started is not None and journal.started_at(self.pid) == self.started


def _machine() -> str:
    """Return an id of the machine's boot and the namespace of process ids, within which processes see each other."""
    try:
        namespace = Path("/proc/self/ns/pid").readlink().name
    except OSError:
        namespace = ""
    boot = journal.boot_id() or socket.gethostname()
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{boot} {namespace}").hex[:12]


def latest_claim(params: Mapping[str, str]) -> Claim | None:
    """Return the claim of the latest attempt; None if the run was never claimed."""
    numbers = [int(key.removeprefix(CLAIM)) for key in params if re.fullmatch(re.escape(CLAIM) + r"\d+", key)]
    if not numbers:
        return None
    latest = max(numbers)
    return Claim.read(latest, params[f"{CLAIM}{latest}"]) or Claim(latest, "", 0, "", None, 0, -1, 0.0, "")


def moment_text(at: float) -> str:
    """Return a time in seconds since 1970 as text, in UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"


@dataclass(frozen=True, slots=True)
class _Seen:
    """The owner of a run, as the store has named it."""

    at: float
    """Time of the request, in seconds since 1970."""
    attempt: int
    host: str
    pid: str
    claims: Mapping[int, Claim]


class Owners:
    """The latest known owners of the runs of one store; all heartbeats and deliveries to the store share them."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._seen: dict[str, _Seen] = {}

    def look(self, run_id: str) -> RunState:
        """Return the state of a run, by its id in the store, and remember its owner.

        Raises:
            Refused: the run does not exist.
            Unreachable: the store does not answer.

        """
        at = time.time()
        state = self.backend.look(run_id)
        tags, claims = state.tags, dict(_claims(state.params))
        attempt = run_events.attempt_of(tags)
        self._seen[run_id] = _Seen(at, attempt, tags.get(HOST_TAG, ""), tags.get(PID_TAG, ""), claims)
        return state

    def later(self, run_id: str, attempt: int, after: float = 0.0) -> str | None:
        """Return which later attempt is known to have the run, as `attempt 3 on host-pid`; None if there is none.

        Claims until `after`, in seconds since 1970, do not count.
        """
        seen = self._seen.get(run_id)
        if seen is None or self.claimed_at(run_id, attempt, after) is None:
            return None
        claim = seen.claims.get(seen.attempt)
        host, pid = (seen.host, seen.pid) if claim is None else (claim.host, claim.pid)
        return f"attempt {seen.attempt} on {host}-{pid}"

    def claimed_at(self, run_id: str, attempt: int, after: float = 0.0) -> float | None:
        """Return when a later attempt first claimed the run, in seconds since 1970; None if no such claim is known.

        Claims until `after` do not count. The time is rounded up, so that nothing that was logged before is taken for
        later.
        """
        seen = self._seen.get(run_id)
        if seen is None or seen.attempt <= attempt:
            return None
        times = [claim.at for number, claim in seen.claims.items() if attempt < number <= seen.attempt]
        if not any(times):  # the parameter cannot be read
            return seen.at if seen.at > after else None
        return min((at + _RESOLUTION for at in times if at > after), default=None)

    def confirm(self, run_id: str, attempt: int, since: float) -> None:
        """Ask the store for the owner of a run, unless it was asked after `since`, or a later attempt is known.

        Raises:
            Unreachable: the store does not answer.

        """
        seen = self._seen.get(run_id)
        if seen is None or (seen.at < since and seen.attempt <= attempt):
            try:
                self.look(run_id)
            except (Refused, Blocked):  # the run was deleted, or does not exist yet; or a proxy forbids to read it
                self._seen[run_id] = _Seen(time.time(), 0, "", "", {})


def _claims(params: Mapping[str, str]) -> Iterator[tuple[int, Claim]]:
    for key, text in params.items():
        number = key.removeprefix(CLAIM)
        if number != key and number.isdecimal() and (claim := Claim.read(int(number), text)) is not None:
            yield claim.attempt, claim
