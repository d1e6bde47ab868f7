"""Fixtures for jobs with workers. Each job is a script, because workers import the functions that they run."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copy

import mlflow
import pytest

from testkit import forkserver

END_AFTER_FIVE_MINUTES = "import faulthandler; faulthandler.dump_traceback_later(300, exit=True)\n"
"""Code that stops a hanging job and prints the stack of each thread to stderr."""
BEGINNING = """\
import asyncio, logging, multiprocessing, os, pickle, signal, subprocess, sys, threading, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import mlflow
from autogen_team import GlobalContext
from loguru import logger
from autogen_team.io.services import AlertsService, LoggerService, MlflowService


def make_context(**fields):
    return GlobalContext(
        logger_service=LoggerService(sink="logs/job.log", serialize=True, level="DEBUG"),
        alerts_service=AlertsService(enable=False, app_name="job"),
        mlflow_service=MlflowService(autolog_silent=True, **fields),
    )


def fold(number):
    logger.info("fold {}", number)
    mlflow.log_metric("accuracy", number / 10, step=number)
    return os.getpid()


def pool(method, **fields):
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method), **fields)

"""
MAIN = '\n\nif __name__ == "__main__":\n'


@dataclass(frozen=True)
class Store:
    """The store of a job, with helpers that read it."""

    uri: str

    def client(self) -> mlflow.MlflowClient:
        """Return a client of the store."""
        return mlflow.MlflowClient(self.uri, self.uri)

    def runs(self, **tags: str) -> list[mlflow.entities.Run]:
        """Return the runs that have all these tags, oldest first."""
        client = self.client()
        ids = [one.experiment_id for one in client.search_experiments()]
        found = client.search_runs(ids, order_by=["attributes.start_time ASC"])
        return [run for run in found if tags.items() <= run.data.tags.items()]

    def run(self, name: str) -> mlflow.entities.Run:
        """Return the only run of that name."""
        [run] = [run for run in self.runs() if run.info.run_name == name]
        return run

    def children(self, parent: str = "train") -> list[mlflow.entities.Run]:
        """Return the children of the run of that name."""
        return self.runs(**{"mlflow.parentRunId": self.run(parent).info.run_id})

    def steps(self, run: mlflow.entities.Run, key: str = "accuracy") -> list[int]:
        """Return the steps at which the metric was logged."""
        return sorted(metric.step for metric in self.client().get_metric_history(run.info.run_id, key))

    def logs(self, run: mlflow.entities.Run) -> list[str]:
        """Return the names of the logs among the artifacts of the run."""
        return sorted(Path(one.path).name for one in self.client().list_artifacts(run.info.run_id, "logs"))


@pytest.fixture
def store(store_uri: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return the store of the test's jobs."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    return Store(store_uri)


@pytest.fixture
def write_job(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes a job from its main code and its workers' functions, and returns the path."""

    def write(main: str, functions: str = "") -> str:
        path = tmp_path / "job.py"
        path.write_text(_script(main, functions))
        return str(path)

    return write


def _script(main: str, functions: str) -> str:
    return BEGINNING + textwrap.dedent(functions) + MAIN + textwrap.indent(textwrap.dedent(main), "    ")


@pytest.fixture
def run_job(
    write_job: Callable[..., str], run_python: Callable[..., tuple[int, str, str]]
) -> Callable[..., tuple[str, str]]:
    """Return a function that runs a job, which must exit with 0, and returns its stdout and stderr."""

    def run(main: str, functions: str = "", *, argument: str = "", **environment: str) -> tuple[str, str]:
        environment[forkserver.FORKED_CHILDREN] = "1"
        status, out, err = run_python(write_job(main, functions), argument, **environment)
        assert status == 0, err
        return out, err

    return run


@pytest.fixture
def log_lines() -> Callable[[str], list[dict[str, object]]]:
    """Return a function that reads the JSON lines of the log files that match."""

    def read(pattern: str) -> list[dict[str, object]]:
        files = sorted(Path("logs").glob(pattern))
        return [json.loads(line) for path in files for line in path.read_text().splitlines()]

    return read


@pytest.fixture
def journals(tmp_path: Path) -> Callable[[], list[Path]]:
    """Return a function that lists the undelivered journal segments."""
    return lambda: sorted((tmp_path / "state" / "journals").glob("*/*.jsonl"))


@dataclass(frozen=True)
class Finished:
    """A job that has ended."""

    folder: Path
    store: Store
    out: list[str]
    """Lines of stdout."""
    err: str

    def log_lines(self, pattern: str = "job-*.log") -> list[dict[str, object]]:
        """Return the JSON lines of matching log files, by default those of workers, each with its file's name."""
        files = sorted((self.folder / "logs").glob(pattern))
        return [{"file": path.stem, **json.loads(line)} for path in files for line in path.read_text().splitlines()]

    def journals(self) -> list[Path]:
        """Return the undelivered journal segments."""
        return sorted((self.folder / "state" / "journals").glob("*/*.jsonl"))


@pytest.fixture(scope="module")
def run_slow_job(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Callable[[str, str], Finished]:
    """Return a function that runs a job, which must exit with 0.

    A job may take five minutes, because some engines start many processes. Several tests can share one job.
    """

    def run(main: str, functions: str) -> Finished:
        folder = tmp_path_factory.mktemp("job")
        store = Store(f"sqlite:///{copy(migrated_database, folder / 'mlflow.db')}")
        (folder / "job.py").write_text(_script(END_AFTER_FIVE_MINUTES + textwrap.dedent(main), functions))
        own = {name: os.environ[name] for name in os.environ if not name.startswith(("AUTOGEN_TEAM_", "MLFLOW_"))}
        state = {"AUTOGEN_TEAM_STATE_DIR": str(folder / "state"), "MLFLOW_TRACKING_URI": store.uri}
        environment = {**own, **state, "MLFLOW_DISABLE_TELEMETRY": "true", forkserver.FORKED_CHILDREN: "1"}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with forkserver.popen(["job.py"], cwd=folder, env=environment, **streams) as process:
            out, err = process.communicate(timeout=330)
        assert process.returncode == 0, err
        return Finished(folder, store, out.splitlines(), err)

    return run
