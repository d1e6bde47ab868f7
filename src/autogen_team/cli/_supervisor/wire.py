"""Messages between the supervisor and the child: one line of JSON each, over a pair of sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from autogen_team._process.threads import spawn
from autogen_team._redact import values

_PATIENCE = 2.0
"""Seconds that the child waits until its output is on disk."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the child must run, and how."""

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


@dataclass(frozen=True, slots=True)
class OpenRun:
    """The run of the child, with all that the supervisor needs to close it in the child's place."""

    run_id: str
    name: str
    experiment: str
    link: str | None
    parent_id: str | None
    tracking_uri: str
    registry_uri: str
    state: str
    """The state folder."""
    started: float
    """Seconds since 1970."""
    keeps_log: bool
    masks: bool
    shown: str
    """The URL of the run, or the command that shows it."""


@dataclass(slots=True)
class SupervisorEnd:
    """The supervisor's end of the connection."""

    socket: socket.socket
    run: OpenRun | None = field(default=None)
    """The run that the child has or had open."""
    is_closed: bool = False
    """Whether the child has closed its run itself."""

    def send(self, order: Order) -> None:
        """Send the order to the child."""
        with suppress(OSError):  # the child is dead already, as its exit status will tell
            self.socket.sendall(_line(asdict(order)))

    def listen(
        self,
        *,
        on_run: Callable[[OpenRun], None],
        on_flush: Callable[[], None],
        make_snapshot: Callable[[dict[str, Any]], bool],
    ) -> threading.Thread:
        """Start a thread that handles the messages of the child, and return it."""
        handlers = on_run, on_flush, make_snapshot
        thread = threading.Thread(target=self._listen, args=handlers, name="autogen_team-wire", daemon=True)
        thread.start()
        return thread

    def _listen(
        self,
        on_run: Callable[[OpenRun], None],
        on_flush: Callable[[], None],
        make_snapshot: Callable[[dict[str, Any]], bool],
    ) -> None:
        def answer(order: dict[str, Any]) -> None:
            is_made = make_snapshot(order)
            with suppress(OSError):
                self.socket.sendall(_line({"snapshot": is_made}))

        for said in _lines(self.socket):
            match said:
                case {"run": dict(fields)}:
                    self.run = OpenRun(**fields)
                    on_run(self.run)
                case {"flush": _}:
                    on_flush()
                    with suppress(OSError):
                        self.socket.sendall(_line({"flushed": True}))
                case {"secrets": list(secrets)}:
                    values.add(secrets)
                    with suppress(OSError):
                        self.socket.sendall(_line({"flushed": True}))
                case {"snapshot": dict(order)}:
                    spawn(partial(answer, order), name="autogen_team-snapshot")
                case {"closed": _}:
                    self.is_closed = True


class ChildEnd:
    """The child's end of the connection."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._socket = socket.socket(fileno=descriptor)
        self._heard = _lines(self._socket)
        self._flushed = threading.Event()
        self._snapshot_ended = threading.Event()
        self._snapshot_is_made = False
        self._owner = os.getpid()
        self.order = Order(**next(self._heard))
        threading.Thread(target=self._listen, name="autogen_team-wire", daemon=True).start()

    def opened(self, run: OpenRun) -> None:
        """Tell the supervisor about the open run."""
        self._say({"run": asdict(run)})

    def closed(self, run_id: str) -> None:
        """Tell the supervisor that the run is closed."""
        self._say({"closed": run_id})

    def hide(self, secrets: Iterable[str]) -> None:
        """Tell the supervisor to mask these values in the transcript, and wait until it does."""
        if self.order.is_kept and self._owner == os.getpid():
            self._flushed.clear()
            self._say({"secrets": sorted(secrets)})
            self._flushed.wait(_PATIENCE)

    def make_snapshot(self, order: dict[str, Any], patience: float) -> bool:
        """Let the supervisor make a snapshot, and return whether it is there, after `patience` seconds at most."""
        self._say({"snapshot": order})
        return self._snapshot_ended.wait(patience) and self._snapshot_is_made

    def flush(self) -> None:
        """Wait until everything that was printed so far is in the transcript."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        if self.order.is_kept and self._owner == os.getpid():
            self._flushed.clear()
            self._say({"flush": True})
            self._flushed.wait(_PATIENCE)

    def _say(self, what: dict[str, Any]) -> None:
        if self._owner == os.getpid():
            with suppress(OSError):
                self._socket.sendall(_line(what))

    def _listen(self) -> None:
        for said in self._heard:
            if "snapshot" in said:
                self._snapshot_is_made = said["snapshot"]
                self._snapshot_ended.set()
            else:
                self._flushed.set()
        # The supervisor is gone, perhaps by SIGKILL. Without it, no signal of the user could end the job any more.
        os.kill(self._owner, signal.SIGTERM)


def _line(what: dict[str, Any]) -> bytes:
    return json.dumps(what).encode() + b"\n"


def _lines(sock: socket.socket) -> Iterator[dict[str, Any]]:
    with suppress(OSError), sock.makefile("rb") as stream:
        for line in stream:
            if line.endswith(b"\n"):
                yield json.loads(line)
