"""Runs MLflow's server on the loopback interface, as a child process that never outlives this process."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from autogen_team._redact import Redactor
from autogen_team.errors import ConfigurationError, TrackingUnavailableError

HOST = "127.0.0.1"
_PATIENCE = 120.0
"""Timeout in seconds for the first answer. The server loads 200 MB of code, and may create database tables."""
_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""
_KEPT_LINES = 20

# The thread kills the whole process group when the other end of the pipe is closed, even if SIGKILL ends us.
_CHILD = """\
import os, runpy, signal, sys, threading
def end_with_parent(pipe):
    os.read(pipe, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)
threading.Thread(target=end_with_parent, args=[int(sys.argv.pop(1))], daemon=True).start()
runpy.run_module("mlflow", run_name="__main__", alter_sys=True)
"""


def find_port() -> int:
    """Return a port that no process listens on."""
    return _bind(0)


def check_port(port: int) -> int:
    """Return the port if a server can listen on it.

    Raises:
        ConfigurationError: the port is in use, or this process lacks the permission.

    """
    try:
        return _bind(port)
    except OSError as error:
        raise ConfigurationError(
            f"port {port} on {HOST} is not available: {error.strerror}; omit --port for a free one, or choose another"
        ) from None


@contextmanager
def serving(port: int, variables: Mapping[str, str]) -> Iterator[Server]:
    """Run MLflow's server inside the block, with these variables as its environment, and stop it at the end.

    Raises:
        TrackingUnavailableError: the server ended before it answered, or did not answer in time. The message includes
            its last lines of output.

    """
    server = Server(port, variables)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


class Server:
    """The server's process and its child processes, as one process group."""

    def __init__(self, port: int, variables: Mapping[str, str]) -> None:
        self._port = port
        self._mask = Redactor({**os.environ, **variables})
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        options = ["server", "--host", HOST, "--port", str(port), "--workers", "1"]
        theirs, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
                [sys.executable, "-c", _CHILD, str(theirs), *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                pass_fds=[theirs],
                # The user's folder may contain a `flask.py`.
                env={**variables, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # terminal keys reach only us, and one signal ends the whole group
            )
        finally:
            os.close(theirs)
        self._listener = threading.Thread(target=self._listen, name="autogen-team-ui", daemon=True)
        self._listener.start()

    def wait_until_ready(self) -> None:
        """Return when the server answers.

        Raises:
            TrackingUnavailableError: the server has ended, or does not answer in time.

        """
        deadline = time.monotonic() + _PATIENCE
        while not self._answers():
            if self._process.poll() is not None:
                self._raise(f"MLflow's web UI exited with status {self._process.returncode} before it answered")
            if time.monotonic() > deadline:
                self._raise(f"MLflow's web UI does not answer after {_PATIENCE:.0f} s")
            time.sleep(0.1)

    def wait(self) -> None:
        """Wait until the server exits unexpectedly, which is always an error.

        Raises:
            TrackingUnavailableError: the server has ended.

        """
        self._process.wait()
        self._raise(f"MLflow's web UI exited unexpectedly with status {self._process.returncode}")

    def stop(self) -> None:
        """End all processes of the server, first with SIGTERM, then with SIGKILL."""
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE)
        self._signal(signal.SIGKILL)  # the server may have left its workers behind
        self._process.wait()
        os.close(self._lifeline)

    def _answers(self) -> bool:
        # urllib would use a proxy.
        connection = http.client.HTTPConnection(HOST, self._port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            self._lines.extend(output)

    def _raise(self, what: str) -> None:
        if self._process.poll() is not None:
            self._listener.join(_GRACE)
        lines = "".join(f"\n  {self._mask(line.rstrip())}" for line in list(self._lines))
        raise TrackingUnavailableError(f"{what}. Its last output:{lines or ' none'}")

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):  # macOS raises the latter if the processes have ended
            os.killpg(self._process.pid, number)


def _bind(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the server sets it too
        probe.bind((HOST, port))
        found: int = probe.getsockname()[1]
        return found
