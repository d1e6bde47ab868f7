"""Fixtures of all tests: a known environment, a migrated store, a real server, and child processes."""

from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from autogen_team._redact import values as redact_values
from testkit import forkserver, known_state, patience

if TYPE_CHECKING:
    import mlflow

collect_ignore = ["frameworks"]  # they need their own venv: make test-frameworks
ROOT = Path(__file__).parent.parent
WORKERS = ROOT / "tests" / "workers"

known_state.enter()
_servers = contextlib.ExitStack()


def pytest_configure(config: pytest.Config) -> None:
    """Start the fork servers once for all workers of pytest-xdist."""
    if not hasattr(config, "workerinput"):
        config.add_cleanup(_servers.close)
        _servers.enter_context(known_state.reaper())
        _servers.enter_context(forkserver.running())


NOT_QUICK = {
    "bus",
    "daemon",
    "make_server",
    "mlflow_server",
    "postgres_uri",
    "run",
    "run_script",
    "run_slow_job",
    "screen",
    "server",
    "start_python",
    "supervised",
    "terminal_of",
}
"""Fixtures that start processes, servers or a desktop."""
SERVERS = {"postgres", "postgres_uri", "mlflow_server", "server"}
"""Parameters of tests that start a server or a database."""
NOT_QUICK_PARTS = ("tests/cli/test_ui.py", "tests/cli/supervisor/", "tests/io/tracking/test_copying", "tests/fuzz/")
"""Tests that take seconds without a fixture of `NOT_QUICK`: they start processes or fill two stores, for example."""


LONGEST = {
    "test_docs_commands.py",
    "test_examples.py",
    "test_person.py",
    "test_death.py",
    "test_many_processes.py",
    "test_agent.py",
}
"""Modules that run first, with those in `tests/workers`, so that no pytest-xdist worker runs one last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that start nothing outside their own process as quick, and move the longest modules to the front."""
    items.sort(key=lambda item: not item.path.is_relative_to(WORKERS) and item.path.name not in LONGEST)
    for item in items:
        if _is_quick(item):
            item.add_marker("quick")
        is_long = item.path.name in LONGEST or item.path.is_relative_to(WORKERS)
        if is_long and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(400))  # they start a browser, a cluster or many processes


def _is_quick(item: pytest.Item) -> bool:
    fixtures = set(getattr(item, "fixturenames", ()))
    given = item.callspec.params if hasattr(item, "callspec") else {}
    parameters = {value for value in given.values() if isinstance(value, str)}
    return not (
        NOT_QUICK & fixtures
        or SERVERS & parameters
        or item.get_closest_marker("desktop")
        or item.path.name in LONGEST
        or item.nodeid.startswith(NOT_QUICK_PARTS)
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Derive the wait limit of each test from its time limit."""
    patience.suit(item)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line with the number of skipped tests per reason."""
    reasons = collections.Counter(
        report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", [])
    )
    if reasons:
        terminalreporter.write_line(
            "not run: " + "; ".join(f"{count} test{'s'[: count > 1]}, {reason}" for reason, count in reasons.items())
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Kill the processes that a failed test has left running."""
    report = yield
    if report.failed:
        known_state.end_processes(item.nodeid)
    return report


@pytest.fixture(autouse=True)
def known_environment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Start each test in an empty folder, with its own state folder, default signals and none of our variables."""
    folder = tmp_path / "work"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:  # so that `monkeypatch.undo()` in a test does not undo this
        known_state.forget_stores()
        patch.setattr(redact_values, "_extra", redact_values.Extra())  # no secrets from `.env` files of earlier tests
        patch.setenv(known_state.TEST, request.node.nodeid)
        patch.setenv("AUTOGEN_TEAM_STATE_DIR", str(tmp_path / "state"))
        patch.setenv("AUTOGEN_TEAM_MLFLOW_SNAPSHOT", "false")  # a snapshot takes half a second per run; see `snapshots`
        patch.chdir(folder)
        with known_state.default_signals():
            yield
    known_state.forget_stores()  # fixtures of the next module are set up before those of its first test


@pytest.fixture(scope="session", autouse=True)
def agents_are_forked() -> Iterator[None]:
    """Fork the agents that tests start in their own process, unless `fresh_agents` is in use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", forkserver.ForkingPopen)
        yield


@pytest.fixture
def fresh_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start each agent in a new interpreter, as a user's job does."""
    monkeypatch.setenv(forkserver.FRESH_AGENTS, "1")


@pytest.fixture
def forked_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the workers and the supervised jobs that a test's processes start, which need not import MLflow anew then.

    For modules about what a job does, not about how it is started.
    """
    monkeypatch.setenv(forkserver.FORKED_CHILDREN, "1")


@pytest.fixture
def snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a snapshot of each run, as by default."""
    monkeypatch.delenv("AUTOGEN_TEAM_MLFLOW_SNAPSHOT")


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database with MLflow's tables, made once for all workers of pytest-xdist."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    path, made = shared / "template.db", shared / "template.made"
    with (shared / "template.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            code = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1]).search_experiments()"
            with forkserver.popen(["-c", code, f"sqlite:///{path}"], stdout=subprocess.PIPE) as process:
                process.communicate()
            assert process.returncode == 0
            made.touch()
    return path


@pytest.fixture
def store_uri(migrated_database: Path) -> str:
    """Return the URI of the default store, `mlflow.db` in the working folder, with all tables.

    The URI is absolute: MLflow keeps one engine per URI for the whole process, and each test has its own folder.
    """
    return f"sqlite:///{Path(shutil.copy(migrated_database, 'mlflow.db')).absolute()}"


class Process:
    """A Python process started by a test, with its output line by line."""

    def __init__(self, *arguments: str, stdin: int | None = None, fresh: bool = False, **environment: str) -> None:
        self.popen = forkserver.popen(
            arguments,
            fresh=fresh,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        )

    def wait_for(self, text: str) -> str:
        """Read stdout up to a line that contains the text, and return that line."""
        for line in self.popen.stdout:
            if text in line:
                return line
        raise AssertionError(f"the process exited without printing {text!r}: {self.popen.stderr.read()}")

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to the process."""
        self.popen.send_signal(signum)

    def finish(self, text: str | None = None, *, timeout: float | None = None) -> tuple[int, str, str]:
        """Write the text to stdin and wait for the process; return its exit status, stdout and stderr."""
        out, err = self.popen.communicate(text, timeout=timeout or patience.seconds())
        return self.popen.returncode, out, err


@pytest.fixture(scope="session")
def processes_are_fresh() -> bool:
    """Return whether `start_python` always starts a new interpreter; test folders and modules may override it."""
    return False


@pytest.fixture
def start_python(processes_are_fresh: bool) -> Iterator[Callable[..., Process]]:
    """Return a function that starts `python ARGUMENTS...`; processes that outlive the test are killed.

    The process is forked from one that has imported MLflow (see `testkit.forkserver`), unless `fresh` is true.
    """
    started: list[Process] = []

    def start(*arguments: str, fresh: bool = processes_are_fresh, **options: str) -> Process:
        started.append(Process(*arguments, fresh=fresh, **options))
        return started[-1]

    yield start
    for process in started:
        if process.popen.poll() is None:
            for child in psutil.Process(process.popen.pid).children(recursive=True):  # they would keep its output open
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            process.popen.kill()
        process.popen.communicate()


@pytest.fixture
def run_python(start_python: Callable[..., Process]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs `python ARGUMENTS...` and returns its exit status, stdout and stderr."""
    return lambda *arguments, **environment: start_python(*arguments, **environment).finish()


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Return a function that returns a free port of 127.0.0.1."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find


def _wait_until(condition: Callable[[], object], *, timeout: float | None = None) -> None:
    deadline = time.monotonic() + (patience.seconds() if timeout is None else timeout)
    while not condition():
        assert time.monotonic() < deadline, "the condition was still false at the deadline"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Return a function that polls until a condition holds."""
    return _wait_until


MLFLOW = """
import os, sys
import mlflow.cli, mlflow.server, uvicorn.main

def serve(command, extra_env, **_):
    os.environ.update(extra_env)
    assert command[1:3] == ["-m", "uvicorn"], command
    uvicorn.main.main(command[3:])

mlflow.server._exec_cmd = serve
mlflow.cli.cli(sys.argv[1:])
"""
"""MLflow's command line, with its server in the same process instead of a new interpreter."""


class Server:
    """A real MLflow server for one test, with a store that outlives it."""

    def __init__(self, folder: Path, database: str, port: int) -> None:
        self.folder = folder
        self.database = database
        self.port = port
        self.uri = f"http://127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, and return when it answers."""
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        stores = ["--backend-store-uri", self.database, "--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "log").open("a") as log:
            self._process = forkserver.popen(
                ["-c", MLFLOW, "server", *options, *stores],
                kind="server",
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # no test needs its eight processes
                start_new_session=True,
            )
        _wait_until(self.answers)

    def answers(self) -> bool:
        """Return whether the server answers; fail if it has ended."""
        assert self._process.poll() is None, (self.folder / "log").read_text()
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
        except OSError:
            return False
        return True

    @property
    def pid(self) -> int:
        """The process id of the server, which is also the id of its process group."""
        return self._process.pid

    def send(self, signum: signal.Signals) -> None:
        """Send a signal to the server and its workers."""
        os.killpg(self._process.pid, signum)

    def kill(self) -> None:
        """Kill the server and its workers if the server runs."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self.send(signal.SIGKILL)
            self._process.wait(patience.seconds())
            self._process = None

    def client(self) -> mlflow.MlflowClient:
        """Return a client of the store itself, bypassing the server."""
        import mlflow

        return mlflow.MlflowClient(self.database)


@pytest.fixture
def make_server(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Callable[[str], Server]]:
    """Return a function that starts a server on a store; the server is killed after the test."""
    started: list[Server] = []

    def make(database: str) -> Server:
        folder = tmp_path / f"server{len(started)}"
        folder.mkdir()
        started.append(Server(folder, database, free_port()))
        started[-1].start()
        return started[-1]

    yield make
    for one in started:
        one.kill()


@pytest.fixture
def server(make_server: Callable[[str], Server], migrated_database: Path, tmp_path: Path) -> Server:
    """Return a running server with its own SQLite store."""
    return make_server(f"sqlite:///{shutil.copy(migrated_database, tmp_path / 'server.db')}")


@pytest.fixture(scope="session")
def mlflow_server(
    tmp_path_factory: pytest.TempPathFactory, migrated_database: Path, free_port: Callable[[], int]
) -> Iterator[str]:
    """Return the URI of a running server with its own store; all tests share it."""
    folder = tmp_path_factory.mktemp("server")
    found = Server(folder, f"sqlite:///{shutil.copy(migrated_database, folder / 'mlflow.db')}", free_port())
    found.start()
    yield found.uri
    found.kill()
