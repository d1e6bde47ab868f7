"""The trial run of `doctor`, and the run that it leaves when the store hangs."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import ViewType

from autogen_team._capture import store_trial

PATIENCE = 60.0


@pytest.fixture
def experiment(store_uri):
    """Return an experiment of the default store, with its artifacts in the working folder."""
    client = mlflow.MlflowClient(store_uri)
    location = Path("artifacts").absolute().as_uri()
    return client.get_experiment(client.create_experiment("tests", artifact_location=location))


class HangingClient(mlflow.MlflowClient):
    """A client whose uploads wait for an event."""

    go_on = threading.Event()

    def log_artifact(self, *arguments, **fields):
        self.go_on.wait(PATIENCE)
        super().log_artifact(*arguments, **fields)


def test_a_trial_that_hangs_names_its_run_and_deletes_it_later(store_uri, experiment, monkeypatch):
    """A trial whose upload hangs names the run that it leaves, and deletes the run once the upload ends."""
    monkeypatch.setattr(store_trial, "_GRACE", 0.1)
    client = HangingClient(store_uri)

    trial = store_trial.try_out(client, experiment, 3.0)

    assert (trial.store, trial.artifacts) == ("", "no answer within 3 s")
    assert trial.remains == f"the run {trial.run_id} could not be deleted in time, and remains"
    assert client.get_run(trial.run_id).data.tags[store_trial.TAG] == "true"

    client.go_on.set()
    deadline = time.monotonic() + PATIENCE
    while not trial.is_over and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL) == []
    assert not Path("artifacts").exists()


def test_variables_are_restored(monkeypatch):
    """`in_brief` restores variables that were set, and removes those that were not."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")

    with store_trial.in_brief(5.0):
        assert store_trial.os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "5"

    assert store_trial.os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in store_trial.os.environ


def test_an_empty_database_has_no_schema_and_gets_none(tmp_path):
    """Reading the schema of an empty database returns None and does not change the file."""
    path = tmp_path / "empty.db"
    path.touch()

    found, expected = store_trial.schema(f"sqlite:///{path}")

    assert (found, bool(expected), path.stat().st_size) == (None, True, 0)


def test_the_schema_of_this_mlflow_is_the_expected_one(store_uri):
    """The schema of a database that this MLflow has created is the expected one."""
    found, expected = store_trial.schema(store_uri)

    assert found == expected
