"""Fast path for the metrics of hot loops: the same checks and journal, but without MLflow's layers in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeAlias

import mlflow
from mlflow.entities import Metric

from autogen_team._capture import run_stacks, write_behind
from autogen_team.errors import NotStartedError

_Write: TypeAlias = Callable[[str, Mapping[str, float], int, int], None]


def logging_metrics() -> Callable[[Mapping[str, float], int | None], None]:
    """Return a function that logs metrics at a step to the active run, in the store in which the run was opened.

    The function raises NotStartedError if no run is open.
    """
    find, now = run_stacks.job_run, time.time
    latest: tuple[str, _Write] | None = None

    def log(metrics: Mapping[str, float], step: int | None = None) -> None:
        nonlocal latest
        run = find()
        if run is None:
            raise NotStartedError("no run is open: log inside `with context.run(...)` or `service.run_context(...)`")
        run_id, known = run.info.run_id, latest
        if known is None or known[0] != run_id:
            known = latest = run_id, _write_to(run_stacks.uri_of(run))
        known[1](run_id, metrics, int(now() * 1000), step or 0)

    return log


def _write_to(uri: str) -> _Write:
    working = write_behind.of(uri)
    if working is not None:
        write: _Write = working.store.log_floats
        return write
    client = mlflow.MlflowClient(uri)

    def write_at_once(run_id: str, metrics: Mapping[str, float], timestamp: int, step: int) -> None:
        client.log_batch(run_id, [Metric(key, value, timestamp, step) for key, value in metrics.items()])

    return write_at_once
