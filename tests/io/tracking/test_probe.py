"""Probes report within a time limit whether a server answers."""

from __future__ import annotations

import socket
import ssl
import threading
import time
import urllib.error
import urllib.request

import pytest

from autogen_team._ship import server_probe
from autogen_team.errors import ConfigurationError, TrackingUnavailableError

SOON = 30.0
"""Seconds that no probe with a limit of half a second may take."""


@pytest.fixture
def listener():
    """Return a function that starts a server that sends given bytes, and then optionally one byte at a time."""
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


def test_a_server_that_answers_passes(mlflow_server):
    """A real MLflow server passes the probe."""
    server_probe.check(mlflow_server, timeout=SOON)


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "./mlruns", "file:///tmp/mlruns", "databricks"])
def test_other_uris_are_not_probed(uri):
    """Local stores and other services are not probed."""
    server_probe.check(uri, timeout=0.001)


@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg2", "mysql"])
def test_a_refused_connection_is_reported_at_once(scheme, free_port):
    """A refused connection to a server or a database is reported at once."""
    with pytest.raises(TrackingUnavailableError, match="refused"):
        server_probe.check(f"{scheme}://127.0.0.1:{free_port()}/x", timeout=SOON)


def test_silence_ends_with_the_timeout(listener):
    """A server that accepts connections and never answers is given up after the timeout."""
    address = listener(b"")
    begun = time.monotonic()

    with pytest.raises(TrackingUnavailableError, match=r"timed out|no answer within 0\.5 s"):
        server_probe.check(f"http://{address}", timeout=0.5)

    assert time.monotonic() - begun < SOON


def test_a_drip_ends_with_the_timeout(listener):
    """A server that sends single bytes, which restarts socket timeouts, is given up after the timeout."""
    address = listener(b"HTTP/1.1 200 OK\r\nX: ", drip=True)
    begun = time.monotonic()

    with pytest.raises(TrackingUnavailableError, match=r"no answer within 0\.5 s"):
        server_probe.check(f"http://{address}", timeout=0.5)

    assert time.monotonic() - begun < SOON


@pytest.mark.parametrize("status", ["200 OK", "401 Unauthorized", "404 Not Found"])
def test_any_answer_but_a_5xx_passes(listener, status):
    """Answers other than 5xx pass the probe, because a proxy may want a password only for `/health`."""
    address = listener(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())

    server_probe.check(f"http://{address}", timeout=SOON)


def test_a_5xx_fails(listener):
    """A 5xx answer fails the probe, and the error names the status."""
    address = listener(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")

    with pytest.raises(TrackingUnavailableError, match="it answers 503 Service Unavailable"):
        server_probe.check(f"http://{address}", timeout=SOON)


def test_the_message_masks_the_password_and_says_what_to_do(free_port):
    """The error names the address without its password, and the settings to change."""
    port = free_port()

    with pytest.raises(TrackingUnavailableError) as raised:
        server_probe.check(f"http://bob:hunter2-hunter2@127.0.0.1:{port}", timeout=SOON)

    message = str(raised.value)
    assert "hunter2" not in message
    assert f"127.0.0.1:{port}" in message
    assert "MLFLOW_TRACKING_URI" in message
    assert "AUTOGEN_TEAM_MLFLOW_CONNECT_TIMEOUT" in message


def test_a_server_that_does_not_speak_http_fails(listener):
    """A server that does not speak HTTP fails the probe with our own error."""
    address = listener(b"\x00\x01\x02 nonsense")

    with pytest.raises(TrackingUnavailableError):
        server_probe.check(f"http://{address}", timeout=2)


def test_tls_settings_of_mlflow_are_honoured(monkeypatch):
    """`MLFLOW_TRACKING_INSECURE_TLS` turns off certificate checks in the probe."""
    assert server_probe._tls().check_hostname

    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")

    assert not server_probe._tls().check_hostname


def test_a_missing_certificate_fails(monkeypatch, free_port):
    """A certificate path that does not exist fails the probe with our own error."""
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", "nowhere.pem")

    with pytest.raises(TrackingUnavailableError):
        server_probe.check(f"https://127.0.0.1:{free_port()}", timeout=SOON)


def test_a_folder_of_certificates_is_accepted(monkeypatch, mlflow_server, tmp_path):
    """A folder of certificates is accepted as the certificate path, as in requests and MLflow."""
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(tmp_path))

    server_probe.check(mlflow_server, timeout=SOON)
    assert server_probe._tls().check_hostname


@pytest.mark.parametrize("uri", ["http://[::1", "postgresql://bob:pa[hunter2@h/db", "postgresql://h:abc/db"])
def test_a_malformed_uri_is_a_configuration_error(uri):
    """A malformed URI raises a `ConfigurationError` without the password."""
    with pytest.raises(ConfigurationError, match="is not a valid URL") as raised:
        server_probe.check(uri, timeout=SOON)

    assert "hunter2" not in str(raised.value)


def test_an_untrusted_certificate_passes(monkeypatch):
    """A certificate that Python rejects passes the probe, because MLflow looks for trusted ones elsewhere."""

    def refuse(*_, **__):
        raise urllib.error.URLError(ssl.SSLCertVerificationError("self-signed"))

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", refuse)

    server_probe.check("https://127.0.0.1:1", timeout=SOON)
