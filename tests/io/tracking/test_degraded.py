"""A job whose MLflow lacks a private name still runs, and one warning says what is lost."""

from __future__ import annotations

import re
from pathlib import Path

import mlflow
import pytest

import testkit
from autogen_team._process.private_names import find
from autogen_team._ship import mlflow_names

_PARTS = [(name, part) for part in mlflow_names.MLFLOW.parts for name in part.names]
_IN_COMMANDS = (mlflow_names.HARD_DELETE, mlflow_names.REGISTERED)
_IN_JOBS = [name for name, part in _PARTS if part not in _IN_COMMANDS]
_RENAMING = f"""
import sys
sys.path.append({str(Path(testkit.__file__).parents[1])!r})
from testkit.renaming import rename
rename(NAME)
"""
_START = """
import mlflow
from concurrent.futures import ThreadPoolExecutor
from autogen_team import GlobalContext
"""
_JOB = f"""{_START}
def fold(number):
    mlflow.log_metric("accuracy", 0.9, step=number)

with GlobalContext() as context, context.run("train"):
    mlflow.log_param("rate", 0.1)
    for step in range(3):
        mlflow.log_metric("loss", 1 / (step + 1), step)
    mlflow.log_text("text", "note.txt")
    with mlflow.start_span("ask") as span:
        span.set_inputs({{"password": "opensesame"}})
    with ThreadPoolExecutor(1) as pool:
        pool.submit(context.bind(fold), 0).result()
"""


def _attribute(name: str) -> str:
    """Return the last part of the name; names with equal last parts are renamed together."""
    return re.split(r"[.:]", name)[-1]


def _with_later_mlflow(job: str, name: str) -> tuple[str, ...]:
    return "-c", _RENAMING.replace("NAME", repr(name)) + job


@pytest.mark.parametrize("name", [name for name, _ in _PARTS])
def test_this_mlflow_has_the_name(name):
    """Each listed name exists in the installed MLflow."""
    missing = object()

    assert find(name, missing) is not missing


def test_each_name_belongs_to_one_feature():
    """No name is listed twice, so a missing one causes one warning."""
    names = [name for name, _ in _PARTS]

    assert len(set(names)) == len(names)


def test_the_versions_in_the_warning_include_this_one():
    """The list states the MLflow versions with which the names were verified."""
    oldest, newest = (tuple(map(int, one.split("."))) for one in mlflow_names.MLFLOW.versions.split(" to "))
    here = tuple(map(int, mlflow.__version__.split(".")[:2]))

    assert oldest <= here <= newest


@pytest.mark.parametrize("name", _IN_JOBS)
def test_a_job_runs_without_the_name(run_python, store_uri, name):
    """If MLflow has renamed a name, the job ends normally, its run is complete, and one warning says what is lost."""
    status, _, err = run_python(*_with_later_mlflow(_JOB, name), MLFLOW_TRACKING_URI=store_uri)

    assert status == 0, err
    told = {part.lost for other, part in _PARTS if _attribute(other) == _attribute(name)}
    assert dict(_PARTS)[name].lost in told
    assert {lost: err.count(lost) for lost in told} == dict.fromkeys(told, 1), err
    assert err.count("The job runs, but") == len(told), err
    client = mlflow.MlflowClient(store_uri)
    experiment = client.get_experiment_by_name("autogen_team")
    run = next(one for one in client.search_runs([experiment.experiment_id]) if one.info.run_name == "train")
    assert run.info.status == "FINISHED"
    assert run.data.params["rate"] == "0.1"
    assert [one.value for one in client.get_metric_history(run.info.run_id, "loss")] == [1.0, 1 / 2, 1 / 3]
    assert client.get_metric_history(run.info.run_id, "accuracy")
    assert [one.path for one in client.list_artifacts(run.info.run_id) if one.path == "note.txt"]
    assert len(client.search_traces(locations=[experiment.experiment_id])) == 1


_FAILING = f"""{_START}
with GlobalContext() as context, context.run("host", host=True):
    with mlflow.start_run() as joined:
        mlflow.log_metric("loss", 1.0)
    with mlflow.start_run(run_name="child"):
        mlflow.log_metric("loss", 2.0)
    raise ValueError("bad shape")
"""


@pytest.mark.parametrize("name", mlflow_names.ACTIVE_RUNS.names)
def test_a_run_that_fails_is_recorded_without_the_stack_of_runs(run_python, store_uri, name):
    """If the job raises, its run is FAILED with the reason; its own runs join it or are its children."""
    status, _, err = run_python(*_with_later_mlflow(_FAILING, name), MLFLOW_TRACKING_URI=store_uri)

    assert status == 1, err
    assert "ValueError: bad shape" in err
    client = mlflow.MlflowClient(store_uri)
    runs = client.search_runs([client.get_experiment_by_name("autogen_team").experiment_id])
    found = {run.info.run_name: run for run in runs}
    assert {name: run.info.status for name, run in found.items()} == {"host": "FAILED", "child": "FINISHED"}
    assert found["host"].data.tags["autogen_team.exception"] == "ValueError: bad shape"
    assert found["child"].data.tags["mlflow.parentRunId"] == found["host"].info.run_id


def test_a_store_that_cannot_be_looked_up_is_named_by_commands(run_python, store_uri):
    """`autogen-team recover` needs the lookup of stores, and says so with the remedy."""
    job = "from autogen_team._ship import mlflow_backend; import mlflow\nmlflow_backend.plain_store('sqlite:///a.db')"
    status, _, err = run_python(*_with_later_mlflow(job, mlflow_names.STORES.names[0]), MLFLOW_TRACKING_URI=store_uri)

    assert status == 1
    assert "ConfigurationError: MLflow" in err
    assert "install MLflow 3.10 to 3.17" in err


def test_runs_are_copied_without_the_registry(run_python, store_uri):
    """`autogen-team sync` copies runs if registered models cannot be read, and says what is lost."""
    client = mlflow.MlflowClient(store_uri)
    client.set_terminated(client.create_run("0", run_name="train").info.run_id)
    client.create_registered_model("fraud")
    job = "from autogen_team.cli import main\nsys.argv[1:] = ['sync', 'mlflow.db', '--to', 'other.db']\nmain()"
    status, out, err = run_python(*_with_later_mlflow(job, mlflow_names.REGISTERED.names[0]))

    assert status == 0, err
    assert "copied" in out
    assert err.count(mlflow_names.REGISTERED.lost) == 1, err
