"""Metrics of hot loops: to the active run, through the same checks and the same journal, past MLflow's own layers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import mlflow
from mlflow.entities import Metric

from autogen_team.errors import NotStartedError
from autogen_team.io._tracking import isolation, write_behind


def of(uri: str, registry_uri: str) -> Callable[[Mapping[str, float], int | None], None]:
    """Return what logs metrics, at a step, to the active run in the store of `uri`."""
    find, now = isolation.job_run, time.time
    working = write_behind.of(uri)
    write = _at_once(uri, registry_uri) if working is None else working.store.log_floats

    def log(metrics: Mapping[str, float], step: int | None = None) -> None:
        run = find()
        if run is None:
            raise NotStartedError("no run is open: log inside of `with context.run(...)` or `service.run_context(...)`")
        write(run.info.run_id, metrics, int(now() * 1000), step or 0)

    return log


def _at_once(uri: str, registry_uri: str) -> Callable[[str, Mapping[str, float], int, int], None]:
    client = mlflow.MlflowClient(uri, registry_uri)

    def write(run_id: str, metrics: Mapping[str, float], timestamp: int, step: int) -> None:
        client.log_batch(run_id, [Metric(key, value, timestamp, step) for key, value in metrics.items()])

    return write
