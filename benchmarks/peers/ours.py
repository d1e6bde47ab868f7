"""Our service, called through MLflow's own function and `log_metrics`; the argument is the tracking URI."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import loop
import mlflow
import psutil

from autogen_team.io.services import MlflowService

HALF = 500_000
NO_TIME = 0.05
"""Seconds that the service waits for deliveries at its end, if deliveries are not measured."""

last_run = ""


@contextmanager
def opened(*, delivers: bool) -> Iterator[MlflowService]:
    """Run the service with a new journal, and open a run."""
    global last_run
    state = os.environ["AUTOGEN_TEAM_STATE_DIR"] = tempfile.mkdtemp(dir=".")
    timeout = 60.0 if delivers else NO_TIME
    service = MlflowService(tracking_uri=sys.argv[1], experiment_name="bench", flush_timeout=timeout)
    config = MlflowService.RunConfig(name="bench", log_system_metrics=False)
    try:
        with service, service.run_context(config) as run:
            last_run = run.info.run_id
            yield service
    finally:
        shutil.rmtree(state, ignore_errors=True)


@contextmanager
def by_mlflow(*, delivers: bool) -> Iterator[loop.Log]:
    with opened(delivers=delivers):
        yield lambda step: mlflow.log_metric("loss", 1 / (step + 1), step=step)


@contextmanager
def by_lane(*, delivers: bool) -> Iterator[loop.Log]:
    with opened(delivers=delivers) as service:
        log = service.log_metrics
        yield lambda step: log({"loss": 1 / (step + 1)}, step)


def stored(_: object) -> int:
    """Return the number of metrics of the last run in the store."""
    return len(mlflow.MlflowClient(sys.argv[1]).get_metric_history(last_run, "loss"))


def outage(_: object) -> dict[str, float]:
    """Log a million metrics after the server was killed; return the growth of the process and the agent's size (MB)."""
    with opened(delivers=False) as service:
        loop.say("ready")
        sys.stdin.readline()  # the next order comes when the server is dead
        before = psutil.Process().memory_info().rss
        for step in range(HALF):
            service.log_metrics({"loss": 1 / (step + 1)}, step)
        for step in range(HALF, 2 * HALF):
            mlflow.log_metric("loss", 1 / (step + 1), step=step)
        growth = psutil.Process().memory_info().rss - before
        return {"growth": growth / 2**20, "agent": _agent().memory_info().rss / 2**20}


def _agent() -> psutil.Process:
    """Return the agent of this process."""
    state = Path(os.environ["AUTOGEN_TEAM_STATE_DIR"]).name
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "autogen-team-agent" in words and any(state in word for word in words):
            return process
    raise RuntimeError("there is no agent")


loop.serve({"log_metric": by_mlflow, "log_metrics": by_lane}, stored=stored, outage=outage)
