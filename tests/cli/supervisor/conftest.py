"""Fixtures for tests of the supervisor: a store, scripts to supervise, terminals, and the recorded run."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest

from testkit import forkserver, patience

RUN = (sys.executable, "-m", "autogen_team", "run")


@pytest.fixture(autouse=True)
def ready(store_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Provide a store with all tables, and disable alerts, which are then printed."""
    monkeypatch.setenv("AUTOGEN_TEAM_ALERTS_ENABLE", "false")


@pytest.fixture
def script() -> Callable[..., str]:
    """Return a function that writes a script into the working folder."""

    def write(text: str, path: str = "job.py") -> str:
        Path(path).write_text(text)
        return path

    return write


@pytest.fixture
def supervised() -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Return a function that runs a job under supervision to its end, without a terminal."""

    def run(
        *words: str,
        input: bytes | None = None,  # noqa: A002 - as in subprocess.run
        **options: object,
    ) -> subprocess.CompletedProcess[bytes]:
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        if input is not None:
            given["stdin"] = subprocess.PIPE
        with forkserver.popen([*RUN[1:], *words], **given) as process:
            out, err = process.communicate(input, timeout=patience.seconds())
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    return run


@pytest.fixture
def the_run(store_uri: str) -> Callable[[], mlflow.entities.Run]:
    """Return a function that returns the only run of the store."""

    def find() -> mlflow.entities.Run:
        client = mlflow.MlflowClient(store_uri)
        (run,) = client.search_runs([client.get_experiment_by_name("autogen_team").experiment_id])
        return run

    return find


@pytest.fixture
def the_output(the_run: Callable[[], mlflow.entities.Run], store_uri: str) -> Callable[[], str]:
    """Return a function that reads the transcript from the artifacts of the run."""

    def read() -> str:
        client = mlflow.MlflowClient(store_uri)
        run_id = the_run().info.run_id
        (path,) = [found.path for found in client.list_artifacts(run_id, "logs") if "output" in found.path]
        return Path(client.download_artifacts(run_id, path)).read_text()

    return read


class Screen:
    """A terminal in which a program runs."""

    def __init__(self, *words: str) -> None:
        self.pid, self._main = pty.fork()
        if self.pid == 0:
            os.execvp(words[0], words)
        self.shown = b""

    def wait_for(self, text: str) -> None:
        """Read until the text appears."""
        deadline = time.monotonic() + patience.seconds()
        while text.encode() not in self.shown:
            assert time.monotonic() < deadline, self.shown
            self._read()

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._main, keys.encode())

    def finish(self) -> int:
        """Read to the end, and return the exit status."""
        while self._read():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        """Close the terminal."""
        os.close(self._main)

    def _read(self) -> bool:
        assert select.select([self._main], [], [], patience.seconds())[0], self.shown
        try:
            data = os.read(self._main, 65536)
        except OSError:
            return False
        self.shown += data
        return bool(data)


@pytest.fixture
def terminal_of() -> Iterator[Callable[..., Screen]]:
    """Return a function that runs a program in a terminal."""
    made: list[Screen] = []

    def start(*words: str) -> Screen:
        made.append(Screen(*words))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture
def screen(terminal_of: Callable[..., Screen]) -> Callable[..., Screen]:
    """Return a function that runs a job under supervision in a terminal."""
    return lambda *words: terminal_of(*RUN, *words)
