"""The messages between supervisor, keeper and job: one line of JSON each."""

from __future__ import annotations

import json
import socket
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Order:
    """The command to run, and how to record it."""

    command: list[str]
    is_command: bool
    """Whether the target is a command, not a Python script or module."""
    name: str | None
    description: str | None
    tags: list[str]
    overrides: dict[str, str]
    """Settings as text, keyed by `service.field`."""
    is_kept: bool
    """Whether the output goes to a transcript."""
    system_metrics: bool
    """Whether system metrics are sampled."""
    words: list[str]
    """The original command line, without the name of the program."""
    job: str | None = None
    """The identity of the job, the same for all its starts."""
    stale: float = 300.0
    """Seconds without a heartbeat after which the job's process on another machine counts as dead."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The keeper's message once the settings are valid: the job may start."""

    environment: dict[str, str]
    """The settings of the command line as variables of the job."""
    secrets: list[str]
    """Values in `.env` to mask in the kept output."""
    shown: str | None
    """The command that shows the run in a browser; None for a server, whose link is known only when the run is open."""


@dataclass(frozen=True, slots=True)
class Joining:
    """The open run, and everything that the job needs to log to it."""

    run: dict[str, Any]
    """The fields of a `shared_runs.Shared`."""
    opened: dict[str, Any]
    """The result of `shared_runs.as_opened`."""
    overrides: dict[str, str]
    """All settings that are not in the environment, as text, keyed by `service.field`."""
    secrets: list[str]
    """Values to mask."""
    is_offline: bool
    """Whether the store of offline runs replaces the configured store."""


@dataclass(frozen=True, slots=True)
class OpenRun:
    """The run that the keeper opened."""

    run_id: str
    state: str
    """The state folder."""
    keeps_log: bool
    masks: bool
    attempt: int
    """Number of this start of the job."""
    link: str | None
    """The URL of the run's page, if the store is a server."""
    variables: dict[str, str]
    """The variables with which any process that uses MLflow joins the run."""
    joining: dict[str, Any]
    """The fields of a `Joining`."""
    stall_after: float | None
    """Seconds for which the job may be silent; None if it is not watched."""


@dataclass(frozen=True, slots=True)
class End:
    """How the job ended."""

    pid: int
    status: int
    """The job's exit status, or the negative number of the signal that killed it."""
    at: float
    """Time of the end, in seconds since 1970."""
    signal: int | None = None
    """A signal that asked the job to end, and that the supervisor forwarded."""
    lacked_memory: bool = False
    """Whether the kernel killed any process for lack of memory while the job ran."""
    said: dict[str, Any] = field(default_factory=dict)
    """The job's report about its end: `failure`, `told`, `signal` and `left`."""


def line(what: dict[str, Any]) -> bytes:
    """Return the bytes of a message."""
    return json.dumps(what).encode() + b"\n"


def lines(connection: socket.socket) -> Generator[dict[str, Any], None, None]:
    """Yield incoming messages until the other side closes the connection."""
    with suppress(OSError), connection.makefile("rb") as stream:
        for text in stream:
            if text.endswith(b"\n"):
                yield json.loads(text)
