"""Runs as the store has them and as the caller sees them; what is done in a thread of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import mlflow

PATIENCE = 60.0
"""Seconds after which waiting for a thread is given up."""


def metrics(run):
    """Return the metrics of the run as they are stored."""
    return mlflow.get_run(run.info.run_id).data.metrics


def status(run):
    """Return the status of the run as it is stored."""
    return mlflow.get_run(run.info.run_id).info.status


def parent(run):
    """Return the id of the run that this one is nested in."""
    return run.data.tags.get("mlflow.parentRunId")


def active_id():
    """Return the id of the innermost run that the caller sees, None if it sees none."""
    run = mlflow.active_run()
    return run and run.info.run_id


def stored_runs():
    """Return all runs of the store."""
    return mlflow.MlflowClient().search_runs(["0"])


def in_thread(work, *arguments):
    """Call it in a thread of its own, which has none of the caller's context, and return what it returns."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work, *arguments).result(PATIENCE)
