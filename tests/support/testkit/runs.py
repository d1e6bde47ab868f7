"""Helpers to read runs from the store, to see the caller's active run, and to work in another thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import mlflow

PATIENCE = 60.0
"""Seconds to wait for a thread."""


def metrics(run):
    """Return the metrics of the run from the store."""
    return mlflow.get_run(run.info.run_id).data.metrics


def status(run):
    """Return the status of the run from the store."""
    return mlflow.get_run(run.info.run_id).info.status


def parent(run):
    """Return the id of the parent run; None if there is none."""
    return run.data.tags.get("mlflow.parentRunId")


def active_id():
    """Return the id of the innermost run that is active for the caller; None if there is none."""
    run = mlflow.active_run()
    return run and run.info.run_id


def stored_runs():
    """Return all runs of the default experiment in the store."""
    return mlflow.MlflowClient().search_runs(["0"])


def in_thread(work, *arguments):
    """Call `work` in another thread, without the caller's context, and return its result."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work, *arguments).result(PATIENCE)
