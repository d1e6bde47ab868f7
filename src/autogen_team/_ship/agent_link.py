"""The connection of a job to the agent of its state folder: find the agent, start it, exchange messages.

One agent serves all jobs of a user that share a state folder, a boot of the machine, and an installation of this
package. Both sides send JSON objects, one per line, over a socket in the state folder. The agent keeps a job after its
first message, even if the connection is lost.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import autogen_team
from autogen_team._process import Undo
from autogen_team._process.folders import private_folder
from autogen_team._ship import ping
from autogen_team._ship.error_text import with_kind
from autogen_team._spool import journal

Message: TypeAlias = dict[str, Any]

_AGENT = """
import json, os, sys
if os.fork():
    os._exit(0)
_, place, order, path = sys.argv[1:]
sys.path += json.loads(path)
from autogen_team._ship import agent
agent.main(place, json.loads(order))
"""
"""Forks once more, because a job may wait for its children. The standard library takes precedence over modules of the
job with the same name."""
NAME = "autogen-team-agent"
"""Shown in process lists."""
_PATIENCE = 5.0
"""Maximum seconds for the start of the agent."""
_RETRY = 30.0
"""Seconds after which a missing agent is started again."""
_LONGEST_ADDRESS = 100
"""Maximum length in bytes of a socket's path; systems accept 108 or 104."""

_report = logging.getLogger("autogen_team")


def place_of(state: Path) -> Path:
    """Return the folder of the agent that serves this process and this state folder."""
    namespace = ""
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())  # process ids of another container are meaningless here
    ours = (autogen_team.__version__, str(autogen_team.__file__), sys.executable, sys.prefix)
    told = (socket.gethostname(), journal.boot_id(), namespace, *ours)
    return state / "agent" / hashlib.sha256("\0".join(told).encode()).hexdigest()[:16]


def connect(place: Path) -> socket.socket:
    """Return a connection to the agent of this folder.

    Raises:
        OSError: there is no agent, or it is about to exit.

    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        with _address(place) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


class _address:  # noqa: N801 - reads as a phrase
    """The address of the socket in a folder, even if its path is too long for a socket."""

    def __init__(self, place: Path) -> None:
        self._path = place / "socket"
        self._folder: int | None = None

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= _LONGEST_ADDRESS or not Path("/proc/self/fd").exists():
            return str(self._path)
        self._folder = os.open(self._path.parent, os.O_RDONLY)
        return f"/proc/self/fd/{self._folder}/{self._path.name}"

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            os.close(self._folder)


def listen(place: Path) -> socket.socket:
    """Return a socket that accepts this user's connections for the agent of this folder."""
    with suppress(FileNotFoundError):
        (place / "socket").unlink()
    listener = socket.socket(socket.AF_UNIX)
    with _address(place) as address:
        listener.bind(address)
    (place / "socket").chmod(0o600)
    listener.listen(512)
    return listener


def line(message: Message) -> bytes:
    """Return a message in the form in which it is sent."""
    return json.dumps(message).encode() + b"\n"


_more_variables: list[Mapping[str, str]] = []


def give(variables: Mapping[str, str]) -> Undo:
    """Also send these variables to the agent, until the returned function is called; it needs them to send alerts."""
    _more_variables.append(variables)
    return lambda: _more_variables.remove(variables)


class AgentLink:
    """The connection of this process to its agent."""

    def __init__(self, state: Path, environment: Mapping[str, str]) -> None:
        """Take the state folder, and variables that the agent adds to the environment to recover the journal."""
        self._state = state
        self._environment = environment
        self._folder: Path | None = None
        self._connection: socket.socket | None = None
        self._rest = b""
        self._sending = threading.RLock()
        self._is_said = False
        self._started = 0.0
        """Time of the last start of the agent, on the monotonic clock."""
        self._told: dict[str, str] = {}
        """The environment that the agent has."""
        self.connections = 0
        """Number of connections so far; each may be to another agent."""

    def watch(self, folder: Path) -> None:
        """Announce the journal in `folder` to the agent, and start the agent if it is not running.

        A failure is reported once. Then the next start with this state folder, or `autogen-team recover`, recovers the
        journal.
        """
        self.dismiss()
        if os.name != "posix":
            return
        self._folder = folder
        if self._connect():
            return
        self._started = time.monotonic()
        try:
            self._start()
        except (OSError, subprocess.SubprocessError) as error:
            if not self._is_said:
                self._is_said = True
                text = (
                    "the agent could not be started, so this process ships its own journal: %s. If the process is "
                    "killed, the next job with this state folder or `autogen-team recover` will close its runs"
                )
                _report.warning(text, with_kind(error))

    def dismiss(self) -> bool:
        """Tell the agent that this process is done with its journal; return whether the agent was reachable."""
        is_there = self._folder is not None and (self._connection is not None or self._connect())
        if is_there:
            self.send({"op": "bye"})
        self._folder = None
        self.close()
        return is_there

    def after_fork(self) -> None:
        """Drop the connection, which is the parent's."""
        self._sending = threading.RLock()
        self._folder = None
        self.close()

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection, self._rest = self._connection, None, b""
        if connection is not None:
            connection.close()

    def send(self, message: Message) -> None:
        """Send a message; the next `messages` detects a lost connection."""
        connection = self._connection
        if connection is not None:
            with suppress(OSError), self._sending:
                connection.sendall(line(message))

    def messages(self, timeout: float | None) -> Iterator[Message]:
        """Yield the received messages; wait for the first one, at most `timeout` seconds, or without limit if None.

        Raises:
            OSError: the connection is lost.

        """
        connection = self._connection
        if connection is None:
            raise ConnectionError("not connected")
        if not select.select([connection], [], [], timeout)[0]:
            return
        data = connection.recv(2**16)
        if not data:
            raise ConnectionError("the agent has ended")
        *lines, self._rest = (self._rest + data).split(b"\n")
        yield from map(json.loads, lines)

    def end_wait(self) -> None:
        """Make `messages` of another thread return."""
        connection = self._connection
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)

    def is_connected(self) -> bool:
        """Return whether the agent is connected; connect if it has just started, and restart it if it has died."""
        if self._folder is None:
            return False
        connection = self._connection
        if connection is not None:
            with suppress(BlockingIOError):
                if connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                    return True
                self.close()
                self._watch_again()
        elif not self._connect() and time.monotonic() > self._started + _RETRY:
            self._watch_again()  # the last start failed, or the agent died before this process reached it
        return self._connection is not None

    def _watch_again(self) -> None:
        folder, self._folder = self._folder, None  # so `watch` does not dismiss it
        if folder is not None:
            self.watch(folder)

    def _connect(self) -> bool:
        assert self._folder is not None
        try:
            connection = connect(place_of(self._state))
        except OSError:
            return False
        self._connection, self._rest = connection, b""
        self.connections += 1
        self._introduce()
        return True

    def _introduce(self) -> None:
        self._told = self._variables()
        self.send({"op": "hello", **self._order(), "environment": self._told})

    def renew(self) -> None:
        """Send the environment to the agent if it has changed; the job may have renewed a token."""
        if self._connection is not None and self._told != self._variables():
            self._introduce()

    def _variables(self) -> dict[str, str]:
        more = _more_variables[-1] if _more_variables else {}
        return {**os.environ, **more, **ping.for_recovery(), **self._environment}

    def _order(self) -> Message:
        pid = os.getpid()
        return {"folder": str(self._folder), "pid": pid, "started": journal.started_at(pid)}

    def _start(self) -> None:
        place = place_of(self._state)
        private_folder(place)
        path = [entry or str(Path.cwd()) for entry in sys.path]
        process = subprocess.Popen(  # noqa: S603 - our own text, in our own interpreter
            [
                sys.executable,
                "-I",
                "-S",
                "-c",
                _AGENT,
                NAME,
                str(place),
                json.dumps(self._order()),
                json.dumps(path),
            ],
            # A reader of the job's output must not wait until the agent exits.
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self._variables(),
            start_new_session=True,
        )
        try:
            status = process.wait(_PATIENCE)  # exits as soon as it has forked: the agent is not our child
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        if status:
            raise subprocess.CalledProcessError(status, NAME)
