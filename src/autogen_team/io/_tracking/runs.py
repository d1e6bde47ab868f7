"""Runs that tell the truth about how they ended."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlflow
from mlflow.entities import RunInfo
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from autogen_team.io import _job
from autogen_team.io._redact import mask
from autogen_team.io._tracking import ending, links, seam

EXCEPTION_TAG = "autogen_team.exception"

_report = logging.getLogger("autogen_team")
_lock = threading.Lock()
_open: list[_job.Run] = []
"""The runs that this process has open through `open_run`, the latest last."""
_experiments: dict[str, str] = {}
"""Names by id; filled when an experiment is set, because a log record must not wait for a server."""
_facts: dict[str, dict[str, str]] = {}
"""What log records say of each run seen so far, by its id."""


@contextmanager
def open_run(
    *, name: str, description: str | None, tags: Mapping[str, Any] | None, log_system_metrics: bool | None
) -> Iterator[mlflow.ActiveRun]:
    """Open a run, and close it with the status that the job deserves."""
    with ending.signals_raise():
        active = mlflow.start_run(
            run_name=name,
            description=description,
            tags=as_text(tags),
            log_system_metrics=log_system_metrics,
        )
        if isinstance(active, seam.JoinedRun):  # its host closes it
            yield active
            return
        started = time.monotonic()
        run = _describe(active)
        with _lock:
            _open.append(run)
        _job.run_started(run)
        failure: BaseException | None = None
        try:
            yield active
        except BaseException as error:
            failure = error
            raise
        finally:
            with ending.closing():
                status, reason = ending.verdict(failure)
                _close(run, _job.End(status, reason, failure, time.monotonic() - started))


@contextmanager
def host_run(
    *, name: str, description: str | None, tags: Mapping[str, Any] | None, log_system_metrics: bool | None
) -> Iterator[mlflow.ActiveRun]:
    """Open a run as `open_run` does, which the first run that the code inside opens joins instead of being its own."""
    with open_run(name=name, description=description, tags=tags, log_system_metrics=log_system_metrics) as active:
        restore = seam.let_join(active)
        try:
            yield active
        finally:
            restore()


def as_text(tags: Mapping[str, Any] | None) -> dict[str, str] | None:
    """Return the tags as MLflow's servers want them: text (a number works on SQLite only)."""
    return None if tags is None else {str(key): str(value) for key, value in tags.items()}


def facts() -> _job.Facts:
    """Return the run and the span of the calling line; the job's latest run for a thread that has none of its own."""
    active = mlflow.active_run()
    if active is not None:
        found = _facts.get(active.info.run_id) or _learn(active.info)
    else:
        found = _facts.get(_open[-1].run_id, {}) if _open else {}
    span = mlflow.get_current_active_span()
    return found if span is None else {**found, "trace_id": span.trace_id, "span_id": span.span_id}


def _learn(info: RunInfo) -> dict[str, str]:
    experiment = _experiments.get(info.experiment_id, info.experiment_id)
    found = {"run_id": info.run_id, "run_name": info.run_name or "", "experiment": experiment}
    return _facts.setdefault(info.run_id, found)


def remember_experiment(experiment_id: str, name: str) -> None:
    """Take note of the name, which a run itself does not know."""
    _experiments[experiment_id] = name


def _describe(active: mlflow.ActiveRun) -> _job.Run:
    info = active.info
    known = _learn(info)
    return _job.Run(
        run_id=info.run_id,
        name=known["run_name"],
        experiment=known["experiment"],
        link=links.of_run(mlflow.get_tracking_uri(), info.experiment_id, info.run_id),
        attach=lambda path, folder: mlflow.MlflowClient().log_artifact(info.run_id, str(path), folder),
        parent_id=active.data.tags.get(MLFLOW_PARENT_RUN_ID),
    )


def _close(run: _job.Run, end: _job.End) -> None:
    _job.run_ending(run, end)
    try:
        try:
            if end.reason is not None:
                mlflow.MlflowClient().set_tag(run.run_id, EXCEPTION_TAG, end.reason)
        finally:
            _end(run.run_id, end.status)
    except Exception as error:
        # The job has its own end, and perhaps its own exception: a store that is gone must not mask it.
        _report.error("the end of run %s as %s could not be recorded: %s", run.run_id, end.status, mask(str(error)))
        seam.stop_system_metrics(run.run_id)
    with _lock:
        _open.remove(run)
    _job.run_ended(run, end)


def _end(run_id: str, status: _job.Status) -> None:
    """End the run, and before it what was left open inside of it; a run that the job ended itself stays as it is."""
    while run_id in seam.open_run_ids():
        mlflow.end_run(status)
