"""Fixtures for tests of `autogen-team doctor`."""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest

DOCTOR = ("-m", "autogen_team", "doctor")
NO_DESKTOP = {"DBUS_SESSION_BUS_ADDRESS": "unix:path=/nowhere/bus"}


@pytest.fixture
def examine(run_python):
    """Return a function that runs `doctor --json`, checks its report, and returns its status and checks by name."""

    def examine(*options, **environment):
        status, out, err = run_python(*DOCTOR, "--json", *options, **{**NO_DESKTOP, **environment})
        assert status in (0, 1), err
        report = json.loads(out)
        checks = {check["name"]: check for check in report["checks"]}
        assert len(checks) == len(report["checks"])
        assert report["ok"] == (status == 0)
        assert (status == 1) == any(check["outcome"] == "fail" for check in checks.values())
        assert [check for check in checks.values() if check["outcome"] == "fail" and not check["remedy"]] == []
        return status, checks

    return examine


@pytest.fixture
def experiment(store_uri):
    """Create the experiment of the default settings in the default store; return a client and the experiment's id."""
    client = mlflow.MlflowClient(store_uri)
    return client, client.create_experiment("autogen_team", artifact_location=Path("artifacts").absolute().as_uri())


@pytest.fixture
def web_server():
    """Return a function that starts a web server with some headers; a callable header is computed for each answer.

    The server answers only `/version` and `/health`.
    """
    servers = []

    def start(version=200, text=b"3.17.2", **headers):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status = {"/health": 200, "/version": version}.get(self.path, 404)
                body = text if status == 200 else b"no such page"
                self.send_response_only(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value() if callable(value) else value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                """Log nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """Remove proxy variables, so that loopback addresses are reached directly."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def all_files():
    """Return a function that lists every file and folder in the working folder and the state folder."""
    return lambda: sorted(str(path) for path in Path("..").rglob("*"))
