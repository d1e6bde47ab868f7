"""Helpers for tests of copying: make, fill, copy and read stores."""

from __future__ import annotations

import contextlib
from pathlib import Path

import mlflow
from mlflow.entities import ViewType

from autogen_team._capture import mlflow_internals
from autogen_team._sync import copying

EXPERIMENT = "fraud"


def client_of(uri):
    """Return a client of the store."""
    return mlflow.MlflowClient(uri, uri)


@contextlib.contextmanager
def current(uri):
    """Point MLflow's fluent functions to this store inside the block."""
    restore = mlflow_internals.keep_uris()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        restore()


def make_experiment(uri, name=EXPERIMENT, **tags):
    """Create an experiment whose artifacts are stored beside the database, and return its id."""
    place = Path(uri.partition(":///")[2]).parent / "artifacts" / name
    return client_of(uri).create_experiment(name, str(place), tags)


def write(files):
    """Return a function that logs these artifacts to a run."""
    return lambda client, run_id: [client.log_text(run_id, text, path) for path, text in files.items()]


def copy(source, target, **options):
    """Copy the source to the target, and return the outcome of each run."""
    return list(copying.copy(source, target, **options))


def happened(outcomes):
    """Return what happened to each run, by its name."""
    return {outcome.run_name: outcome.happened for outcome in outcomes if outcome.source_id}


def runs_of(uri, experiment=EXPERIMENT, view=ViewType.ACTIVE_ONLY):
    """Return the runs of an experiment by name; fail if two have the same name."""
    client = client_of(uri)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], run_view_type=view) if found else []
    by_name = {run.info.run_name: client.get_run(run.info.run_id) for run in runs}
    assert len(by_name) == len(runs)
    return by_name


def files_of(uri, address):
    """Return the content of the artifacts at an address, by relative path."""
    root = mlflow.artifacts.download_artifacts(artifact_uri=address, tracking_uri=uri)
    return {str(path.relative_to(root)): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}
