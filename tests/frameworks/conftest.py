"""Jobs of real frameworks, each run by Python and by `autogen-team run`; see `make test-frameworks`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

BIN = Path(sys.executable).parent
PATIENCE = 300.0
"""Seconds that a job may take."""


@dataclass(frozen=True)
class Done:
    """Result of a job that has ended."""

    status: int
    out: str
    err: str


class Jobs:
    """Runs jobs in one folder, with one store for their runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("AUTOGEN_TEAM")}
        self._environment |= {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "MLFLOW_TRACKING_URI": self.uri,
            "AUTOGEN_TEAM_STATE_DIR": str(folder / "state"),
            "AUTOGEN_TEAM_ALERTS_ENABLE": "false",
            "AUTOGEN_TEAM_MLFLOW_SNAPSHOT": "false",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
            "RAY_USAGE_STATS_ENABLED": "0",
            "TOKENIZERS_PARALLELISM": "false",
        }

    def run(self, *words: str) -> Done:
        """Run a command to its end."""
        process = self.start(*words)
        out, err = process.communicate(timeout=PATIENCE)
        return Done(process.returncode, out, err)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command in the folder."""
        return subprocess.Popen(
            words,
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def runs(self) -> list[Run]:
        """Return all runs, the job's own last."""
        client = mlflow.MlflowClient(self.uri)
        experiments = [one.experiment_id for one in client.search_experiments()]
        return list(client.search_runs(experiments, order_by=["attributes.start_time DESC"]))


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    """Return an object that runs jobs in a new folder."""
    return Jobs(tmp_path)


@pytest.fixture
def compare(jobs: Jobs) -> Callable[..., tuple[Done, list[Run]]]:
    """Return a function that runs a job plainly and under supervision, and compares output and exit status.

    It returns the result, and the runs of the supervised job.
    """

    def run(*words: str, under: tuple[str, ...] | None = None, status: int = 0) -> tuple[Done, list[Run]]:
        plain = jobs.run(*words)
        assert plain.status == status, plain.err
        (jobs.folder / "mlflow.db").unlink(missing_ok=True)
        ours = jobs.run("autogen-team", "run", *(under or ("--", *words)))
        assert (ours.status, ours.out) == (plain.status, plain.out), ours.err
        return ours, jobs.runs()

    return run


@pytest.fixture
def serve(jobs: Jobs) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts a server, which is killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        started.append(jobs.start(*words))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
