"""Real parts for tests of alerts: a private session bus, a notification daemon, and configurable web servers."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from jeepney import HeaderFields, MessageType, message_bus, new_error, new_method_return
from jeepney.io.blocking import open_dbus_connection

from autogen_team._alerts import delivery as delivery_module
from autogen_team._alerts.delivery import Delivery
from autogen_team.io.services import AlertsService

PATIENCE = 20.0  # seconds: generous, because it is only a bound on hangs

# No service folder, so that the bus does not start a daemon installed on this machine.
BUS_CONFIGURATION = """\
<busconfig>
  <type>session</type>
  <listen>unix:tmpdir=/tmp</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
  </policy>
</busconfig>
"""


@pytest.fixture(autouse=True)
def isolated(monkeypatch):
    """Keep alerts of tests off the user's desktop, and forget earlier reports."""
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(delivery_module, "_reported", set())


@pytest.fixture(scope="session")
def run_script():
    """Return a function that runs code in a new interpreter, with variables added to the environment.

    Use `covered=False` for signal handlers that wait for a thread: they sometimes deadlock on a lock of coverage.
    """

    def run_script(code, *, timeout=60, stdout=subprocess.PIPE, covered=True, **environment):
        inherited = {name: value for name, value in os.environ.items() if covered or not name.startswith("COV")}
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
            env={**inherited, "PYTHONUNBUFFERED": "", **environment},
        )

    return run_script


@pytest.fixture(scope="session")
def bus_address(tmp_path_factory):
    """Run a session bus for the tests of this process, and yield its address."""
    program = shutil.which("dbus-daemon")
    if program is None:
        pytest.skip("dbus-daemon is not installed: make system-deps")
    configuration = tmp_path_factory.mktemp("bus") / "session.conf"
    configuration.write_text(BUS_CONFIGURATION)
    command = [program, f"--config-file={configuration}", "--nofork", "--nopidfile", "--print-address"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as bus:
        yield bus.stdout.readline().strip()
        bus.terminate()


@pytest.fixture
def bus(bus_address, monkeypatch):
    """Make the test's bus the session bus of the process."""
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", bus_address)
    return bus_address


class NotificationDaemon:
    """A notification daemon that displays nothing and records all calls; mode is ok, hang or error."""

    def __init__(self, address, mode, capabilities):
        self.mode = mode
        self.calls = []
        self.connections = set()
        self._capabilities = list(capabilities)
        self._connection = open_dbus_connection(address)
        [reply] = self._connection.send_and_get_reply(
            message_bus.RequestName("org.freedesktop.Notifications"), timeout=PATIENCE
        ).body
        assert reply == 1, "another daemon is on this bus"
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def stop(self):
        """Leave the bus."""
        self._stopping = True
        self._thread.join(PATIENCE)
        self._connection.close()

    def _serve(self):
        while not self._stopping:
            with contextlib.suppress(TimeoutError):
                message = self._connection.receive(timeout=0.02)
                if message.header.message_type is MessageType.method_call:
                    answer = self._answer(message)
                    if answer is not None:
                        self._connection.send(answer)

    def _answer(self, message):
        method = message.header.fields[HeaderFields.member]
        if method == "GetCapabilities":
            return new_method_return(message, "as", (self._capabilities,))
        assert method == "Notify"
        app_name, _, icon, title, body, _, hints, expire = message.body
        self.calls.append(
            {"app": app_name, "icon": icon, "title": title, "body": body, "hints": hints, "expire": expire}
        )
        self.connections.add(message.header.fields[HeaderFields.sender])
        if self.mode == "hang":
            return None
        if self.mode == "error":
            name = "org.freedesktop.Notifications.Error.ExcessNotificationGeneration"
            return new_error(message, name, "s", ("too many",))
        return new_method_return(message, "u", (len(self.calls),))


@pytest.fixture
def daemon(bus):
    """Return a function that starts a notification daemon on the bus."""
    daemons = []

    def start(mode="ok", capabilities=("body", "body-markup")):
        daemons.append(NotificationDaemon(bus, mode, capabilities))
        return daemons[-1]

    yield start
    for running in daemons:
        running.stop()


class Endpoint:
    """A web server that answers with a status, hangs, drips or redirects, and records each request."""

    def __init__(self, mode):
        self.mode = mode
        self.requests = []
        self.text = "ok"
        """Body of each answer, for any status."""
        self._over = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._socket.getsockname()[1]
        self.url = f"json://127.0.0.1:{self.port}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def stop(self):
        """Stop listening and end all answers."""
        self._over.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(PATIENCE)
        self._socket.close()

    def _accept(self):
        while not self._over.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection):
        with connection, connection.makefile("rb") as stream, contextlib.suppress(OSError):
            request = stream.readline().decode()
            headers = {}
            while (line := stream.readline().strip()) != b"":
                name, _, value = line.partition(b":")
                headers[name.lower()] = value
            body = stream.read(int(headers.get(b"content-length", b"0")))
            self.requests.append(json.loads(body) if body else request)
            self._answer(connection)

    def _answer(self, connection):
        mode = self.mode.pop(0) if isinstance(self.mode, list) else self.mode
        if mode == "hang":
            self._over.wait(PATIENCE)
        elif mode == "drip":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not self._over.wait(0.1):
                connection.sendall(b".")
        elif isinstance(mode, str):
            connection.sendall(
                f"HTTP/1.1 302 Found\r\nLocation: {mode}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
            )
        else:
            head = f"HTTP/1.1 {mode} X\r\nContent-Length: {len(self.text)}\r\nConnection: close\r\n\r\n"
            connection.sendall(f"{head}{self.text}".encode())


@pytest.fixture
def endpoint():
    """Return a function that starts a web server; mode is a status, `hang`, `drip`, a redirect URL, or a list."""
    endpoints = []

    def start(mode=200):
        endpoints.append(Endpoint(mode))
        return endpoints[-1]

    yield start
    for running in endpoints:
        running.stop()


@pytest.fixture
def closed_port():
    """Return a port that no process listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


@pytest.fixture
def settings():
    """Return a function that creates an alerts service from defaults and overrides."""

    def settings(**changes):
        defaults = {
            "enable": True,
            "app_name": "test",
            "timeout": None,
            "urls": (),
            "cooldown": 0.0,
            "flush_timeout": 2.0,
        }
        return AlertsService(**{**defaults, **changes})

    return settings


@pytest.fixture
def delivery(settings):
    """Return a function that creates a delivery; each is stopped after the test."""
    made = []

    def delivery(*, channels=None, **changes):
        made.append(Delivery(settings(**changes), channels=channels))
        return made[-1]

    yield delivery
    for one in made:
        one.stop()


@pytest.fixture
def impatient(monkeypatch):
    """Make `notify` wait 0.1 s instead of one second."""
    monkeypatch.setattr(delivery_module, "PATIENCE", 0.1)


@dataclass
class GatedChannel:
    """A channel that delivers when its gate is open."""

    name: str = "gated"
    is_local: bool = False
    alerts: list = field(default_factory=list)
    entered: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    closed: int = 0

    def takes(self, level):
        """Accept every level."""
        return True

    def deliver(self, alert):
        """Wait for the gate, then record the alert or raise the error."""
        self.entered.set()
        assert self.gate.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        self.alerts.append(alert)

    def close(self):
        """Count the calls of this method."""
        self.closed += 1


@pytest.fixture
def gated():
    """Return a function that creates gated channels; their gates are opened after the test."""
    channels = []

    def gated(**fields):
        channels.append(GatedChannel(**fields))
        return channels[-1]

    yield gated
    for channel in channels:
        channel.gate.set()


@pytest.fixture(scope="session")
def artifacts(pytestconfig):
    """Return the folder of files that tests leave for inspection."""
    folder = Path(pytestconfig.rootpath) / "artifacts"
    folder.mkdir(exist_ok=True)
    return folder
