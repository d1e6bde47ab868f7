"""The messages between the supervisor, the keeper of the run, and the job: one line of JSON each."""

from __future__ import annotations

import json
import socket
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Order:
    """What to run, and how to record its run."""

    command: list[str]
    is_command: bool
    """Whether the target is any command, not a Python script or module."""
    name: str | None
    description: str | None
    tags: list[str]
    overrides: dict[str, str]
    """Settings as text, by `service.field`."""
    is_kept: bool
    """Whether the output goes to a transcript."""
    system_metrics: bool
    """Whether system metrics are sampled."""
    words: list[str]
    """The command line as it was given, without the name of the program."""
    job: str | None = None
    """The identity of the job over all its starts."""
    stale: float = 300.0
    """Seconds without a heartbeat after which the process of the job on another machine counts as dead."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The keeper's message once the settings are valid: the job may start."""

    environment: dict[str, str]
    """The settings of the command line as variables of the job."""
    secrets: list[str]
    """Values of `.env` to mask in the output that is kept."""
    shown: str | None
    """The command that shows the run in a browser; None on a server, whose link is known when the run is open."""


@dataclass(frozen=True, slots=True)
class Joining:
    """The open run, and everything that the job needs to log to it."""

    run: dict[str, Any]
    """The fields of a `shared_runs.Shared`."""
    opened: dict[str, Any]
    """What `shared_runs.as_opened` returned."""
    overrides: dict[str, str]
    """All settings that are not in the environment, as text, by `service.field`."""
    secrets: list[str]
    """Values to mask."""
    is_offline: bool
    """Whether the store of offline runs stands in for the one of the settings."""


@dataclass(frozen=True, slots=True)
class OpenRun:
    """The run that the keeper has opened."""

    run_id: str
    state: str
    """The state folder."""
    keeps_log: bool
    masks: bool
    attempt: int
    """Which start of its job it is."""
    link: str | None
    """The URL of its page on a server."""
    variables: dict[str, str]
    """The variables by which any process with MLflow joins the run."""
    joining: dict[str, Any]
    """The fields of a `Joining`."""
    stall_after: float | None
    """Seconds for which the job may be silent, if it is watched for that."""


@dataclass(frozen=True, slots=True)
class End:
    """How the job has ended."""

    pid: int
    status: int
    """Its exit status, or the negative number of the signal that killed it."""
    at: float
    """Seconds since 1970."""
    signal: int | None = None
    """A signal that asked the job to end, and that the supervisor passed on."""
    lacked_memory: bool = False
    """Whether the kernel has killed any process for lack of memory while the job ran."""
    said: dict[str, Any] = field(default_factory=dict)
    """What the job reported about its end: `failure`, `told` and `left`."""


def line(what: dict[str, Any]) -> bytes:
    """Return a message as it is sent."""
    return json.dumps(what).encode() + b"\n"


def lines(connection: socket.socket) -> Generator[dict[str, Any], None, None]:
    """Yield incoming messages until the other side is gone."""
    with suppress(OSError), connection.makefile("rb") as stream:
        for text in stream:
            if text.endswith(b"\n"):
                yield json.loads(text)
