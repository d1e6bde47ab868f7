"""Claims: parameters of a run that name the process that owns it, for one attempt of its job.

Only the first of several writers can set a parameter, so of two claims of one attempt the store refuses one.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow.entities import Run

from autogen_team._capture import mlflow_internals
from autogen_team._process import schedulers
from autogen_team._process.run_events import ATTEMPT_TAG
from autogen_team._ship import signs
from autogen_team._spool import journal

CLAIM = "autogen_team.claim."
"""Prefix of the names of these parameters; the attempt number follows."""
_LONGEST_KEY, _LONGEST_TAG = 250, 5000
"""Most characters that every server accepts in the name and in the value of a tag."""


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
                at=signs.moment(at) or 0.0,
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


def steps_of(run: Run, before: float | None = None) -> dict[str, Any]:
    """Return the last step of each metric of a run, apart from system metrics.

    With `before`, in milliseconds since 1970, metrics logged at that time or later are left out.
    """
    return {
        metric.key: metric.step
        for metric in mlflow_internals.metrics_of(run)
        if not metric.key.startswith("system/") and (before is None or metric.timestamp < before)
    }


def may_live(run: Run) -> bool:
    """Return whether the process that has claimed the run may be alive; True for any process on another machine."""
    claim = latest_claim(run.data.params)
    return claim is not None and (claim.lives or not claim.is_of_this_machine)


def param_tag(attempt: int, key: str) -> str:
    """Return the name of the tag that keeps the value of a parameter in one attempt.

    >>> param_tag(2, "lr")
    'autogen_team.attempt.2.param.lr'
    """
    name = f"{ATTEMPT_TAG}.{attempt}.param.{key}"
    if len(name) <= _LONGEST_KEY:
        return name
    mark = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{name[: _LONGEST_KEY - len(mark) - 1]}-{mark}"


def as_tag(value: str) -> str:
    """Return the value of a parameter, cut to the length of a tag."""
    return value[:_LONGEST_TAG]


def moment_text(at: float) -> str:
    """Return a time in seconds since 1970 as text, in UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
