"""Whether there is somebody at the other end, told in time."""

from __future__ import annotations

import socket
import ssl
import threading
import time
import urllib.error
import urllib.request

import pytest

from autogen_team.errors import ConfigurationError, TrackingUnavailableError
from autogen_team.io._tracking import probe

SOON = 30.0
"""Seconds that no probe with a limit of half a second may take."""


@pytest.fixture
def listener():
    """Return a function that answers every connection with the same bytes, and then with drops of one byte."""
    sockets = []

    def listen(answer: bytes, *, drip: bool = False) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        sockets.append(server)

        def serve() -> None:
            try:
                while True:
                    connection, _ = server.accept()
                    sockets.append(connection)
                    connection.recv(65536)
                    connection.sendall(answer)
                    while drip:
                        connection.sendall(b"x")
                        time.sleep(0.1)
                    if answer:
                        connection.close()
            except OSError:
                return

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield listen
    for opened in sockets:
        opened.close()


def test_a_server_that_answers_is_there(mlflow_server):
    """A real MLflow server passes."""
    probe.check(mlflow_server, timeout=SOON)


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "./mlruns", "file:///tmp/mlruns", "databricks"])
def test_what_is_not_a_server_is_not_asked(uri):
    """Local stores need no probe, and other services have their own."""
    probe.check(uri, timeout=0.001)


@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg2", "mysql"])
def test_a_refusal_is_told_at_once(scheme, free_port):
    """Nobody listens, be it a server or a database."""
    with pytest.raises(TrackingUnavailableError, match="refused"):
        probe.check(f"{scheme}://127.0.0.1:{free_port()}/x", timeout=SOON)


def test_silence_ends_with_the_timeout(listener):
    """A server that accepts and never answers costs the limit, not MLflow's twenty minutes."""
    address = listener(b"")
    begun = time.monotonic()

    with pytest.raises(TrackingUnavailableError, match=r"timed out|no answer within 0\.5 s"):
        probe.check(f"http://{address}", timeout=0.5)

    assert time.monotonic() - begun < SOON


def test_a_drip_ends_with_the_timeout(listener):
    """A byte now and then restarts every timeout of a socket, but not the limit."""
    address = listener(b"HTTP/1.1 200 OK\r\nX: ", drip=True)
    begun = time.monotonic()

    with pytest.raises(TrackingUnavailableError, match=r"no answer within 0\.5 s"):
        probe.check(f"http://{address}", timeout=0.5)

    assert time.monotonic() - begun < SOON


@pytest.mark.parametrize("status", ["200 OK", "401 Unauthorized", "404 Not Found"])
def test_any_answer_but_a_5xx_will_do(listener, status):
    """A proxy may want a password for `/health`, and still let MLflow through."""
    address = listener(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())

    probe.check(f"http://{address}", timeout=SOON)


def test_a_5xx_is_said(listener):
    """The proxy is there, the server behind it is not."""
    address = listener(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")

    with pytest.raises(TrackingUnavailableError, match="it answers 503 Service Unavailable"):
        probe.check(f"http://{address}", timeout=SOON)


def test_the_message_masks_the_password_and_says_what_to_do(free_port):
    """The address is in the message, its password is not, and three remedies are."""
    port = free_port()

    with pytest.raises(TrackingUnavailableError) as raised:
        probe.check(f"http://bob:hunter2-hunter2@127.0.0.1:{port}", timeout=SOON)

    message = str(raised.value)
    assert "hunter2" not in message
    assert f"127.0.0.1:{port}" in message
    assert "MLFLOW_TRACKING_URI" in message
    assert "AUTOGEN_TEAM_MLFLOW_CONNECT_TIMEOUT" in message


def test_what_is_not_http_at_all_is_said(listener):
    """A database on the port of the server is no reason for a traceback."""
    address = listener(b"\x00\x01\x02 nonsense")

    with pytest.raises(TrackingUnavailableError):
        probe.check(f"http://{address}", timeout=2)


def test_tls_settings_of_mlflow_are_honoured(monkeypatch):
    """MLFLOW_TRACKING_INSECURE_TLS works for the probe as it does for MLflow."""
    assert probe._tls().check_hostname

    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")

    assert not probe._tls().check_hostname


def test_a_missing_certificate_is_said(monkeypatch, free_port):
    """A path that leads nowhere is a fault of the connection, with the path's own message."""
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", "nowhere.pem")

    with pytest.raises(TrackingUnavailableError):
        probe.check(f"https://127.0.0.1:{free_port()}", timeout=SOON)


def test_a_folder_of_certificates_will_do(monkeypatch, mlflow_server, tmp_path):
    """As it does for requests, and so for MLflow."""
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(tmp_path))

    probe.check(mlflow_server, timeout=SOON)
    assert probe._tls().check_hostname


@pytest.mark.parametrize("uri", ["http://[::1", "postgresql://bob:pa[hunter2@h/db", "postgresql://h:abc/db"])
def test_what_is_no_address_is_a_fault_of_configuration(uri):
    """In a word, and without the password."""
    with pytest.raises(ConfigurationError, match="is no valid address") as raised:
        probe.check(uri, timeout=SOON)

    assert "hunter2" not in str(raised.value)


def test_a_certificate_is_mlflow_s_to_judge(monkeypatch):
    """It looks for trusted ones where Python does not."""

    def refuse(*_, **__):
        raise urllib.error.URLError(ssl.SSLCertVerificationError("self-signed"))

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", refuse)

    probe.check("https://127.0.0.1:1", timeout=SOON)
