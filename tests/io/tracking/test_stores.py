"""Stores other than the one that tracking was started with, and other spellings of the same store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from autogen_team._capture import run_stacks, write_behind
from autogen_team._ship import uris

pytestmark = pytest.mark.usefixtures("forked_children")

SECRET = "postgresql://ada:example-secret@db/prices"


@pytest.fixture
def home(make_database):
    """Return the store that tracking is started on."""
    return make_database("home")


@pytest.fixture
def other(make_database):
    """Return another store than `home`."""
    return make_database("other")


def runs_of(uri):
    """Return the runs of a store by plain MLflow, each with the name of its experiment."""
    client = mlflow.MlflowClient(uri)
    found = {one.experiment_id: one.name for one in client.search_experiments()}
    return [(found[run.info.experiment_id], run) for run in client.search_runs(list(found))]


def log_a_run():
    """Log a run with a metric and with secrets, and return its id."""
    with mlflow.start_run(run_name="train") as run:
        mlflow.log_metric("loss", 0.5)
        mlflow.log_param("database", SECRET)
        mlflow.set_tag("source", SECRET)
    return run.info.run_id


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("sqlite:///mlflow.db", f"sqlite:///{Path('mlflow.db').name}?timeout=5"),
        ("sqlite:///mlflow.db", "sqlite:///./mlflow.db"),
        ("mlruns", "./mlruns/"),
        ("http://localhost:5000", "http://127.0.0.1:5000/"),
        ("http://LocalHost", "HTTP://[::1]:80"),
        ("https://mlflow.example.com/team/", "https://mlflow.example.com:443/team"),
        ("postgresql://ada@db/prices", "postgresql+psycopg2://ada@DB:5432/prices"),
    ],
)
def test_spellings_of_one_store_have_the_same_identity(one, other):
    """URIs that differ in paths, options, loopback names, default ports or drivers have the same identity."""
    assert uris.identity(one) == uris.identity(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("sqlite:///mlflow.db", "sqlite:///other.db"),
        ("http://localhost:5000", "http://localhost:5001"),
        ("http://localhost:5000", "http://localhost:5000/team"),
        ("http://localhost:5000", "https://localhost:5000"),
        ("http://ada@mlflow.example.com", "http://bob@mlflow.example.com"),
        ("http://a:no-number", "http://a"),
    ],
)
def test_other_stores_have_other_identities(one, other):
    """URIs of different databases, ports, paths, schemes or users have different identities."""
    assert uris.identity(one) != uris.identity(other)


def test_a_path_and_its_absolute_form_are_one_store():
    """Relative, absolute and linked paths of a database or a folder have the same identity."""
    Path("link").symlink_to(Path.cwd())

    assert uris.identity("sqlite:///mlflow.db") == uris.identity(f"sqlite:///{Path.cwd()}/link/mlflow.db")
    assert uris.identity("mlruns") == uris.identity(Path("mlruns").absolute().as_uri())


def test_another_spelling_of_a_store_uses_the_same_journal(start_session, home):
    """A store under another spelling of its URI uses the same journal, and is masked."""
    start_session(home)
    words = home.replace("/mlflow.db", "/../home/mlflow.db?timeout=5")
    mlflow.set_tracking_uri(words)

    log_a_run()

    assert write_behind.of(words) is write_behind.of(home)
    assert write_behind.of(home).journal.number > 0
    ((experiment, run),) = runs_of(home)
    assert (experiment, run.info.status, run.data.metrics) == ("tests", "FINISHED", {"loss": 0.5})
    assert "example-secret" not in str(run.to_dictionary())


def test_another_spelling_of_a_server_uses_the_same_journal(start_session, mlflow_server):
    """A server under another loopback name and with a final slash uses the same journal."""
    start_session(mlflow_server)
    words = mlflow_server.replace("127.0.0.1", "localhost") + "/"
    mlflow.set_tracking_uri(words)

    run_id = log_a_run()

    assert write_behind.of(words) is write_behind.of(mlflow_server)
    assert mlflow.get_run(run_id).data.metrics == {"loss": 0.5}


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("way", ["by a call", "by the variable"])
def test_another_store_has_the_features_of_the_first_one(start_session, home, other, monkeypatch, durable, way):
    """Runs in another store are in the job's experiment, masked, and go through a journal if durable."""
    session = start_session(home, durable=durable)
    if way == "by a call":
        mlflow.set_tracking_uri(other)
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", other)

    log_a_run()

    assert (write_behind.of(other) is not None) is durable
    assert mlflow.get_registry_uri() == other
    session.stop()
    assert write_behind.of(other) is None
    ((experiment, run),) = runs_of(other)
    assert (experiment, run.info.status, run.data.metrics) == ("tests", "FINISHED", {"loss": 0.5})
    assert "example-secret" not in str(run.to_dictionary())
    assert runs_of(home) == []


def test_a_client_of_another_store_is_masked_as_well(start_session, home, other):
    """A client of another store is masked, although MLflow does not point to that store."""
    start_session(home)
    client = mlflow.MlflowClient(other)
    run_id = client.create_run("0", run_name=SECRET).info.run_id

    client.log_param(run_id, "database", SECRET)

    assert "example-secret" not in str(client.get_run(run_id).to_dictionary())
    client.set_terminated(run_id)


def test_an_experiment_that_the_job_chooses_is_used(start_session, home, other):
    """An experiment that the job chooses in another store is used instead of that of the settings."""
    start_session(home)
    mlflow.set_tracking_uri(other)
    mlflow.set_experiment("elsewhere")

    log_a_run()

    assert [experiment for experiment, _ in runs_of(other)] == ["elsewhere"]


def test_a_store_that_mlflow_refuses_is_refused(start_session, home):
    """An invalid tracking URI raises MLflow's own exception at the first call."""
    start_session(home)
    mlflow.set_tracking_uri("nonsense://a")

    with pytest.raises(mlflow.MlflowException, match="nonsense"):
        mlflow.start_run()


@pytest.mark.parametrize("durable", [True, False])
def test_metrics_of_a_hot_loop_go_to_the_store_of_their_run(start_session, home, other, durable):
    """`log_metrics` logs to the store of the open run, wherever MLflow points by then."""
    log_metrics = start_session(home, durable=durable).log_metrics
    with mlflow.start_run():
        log_metrics({"a": 1}, 0)
        mlflow.set_tracking_uri(other)
        log_metrics({"b": 2}, 0)
        mlflow.set_tracking_uri(home)
    mlflow.set_tracking_uri(other)
    with mlflow.start_run():
        log_metrics({"c": 3}, 0)

    assert [run.data.metrics for _, run in runs_of(home)] == [{"a": 1, "b": 2}]
    assert [run.data.metrics for _, run in runs_of(other)] == [{"c": 3}]


def test_the_store_of_a_run_is_where_it_was_opened(mlflow_as_it_was, isolated, store_uri, other):
    """`uri_of` returns the store in which an open run was opened."""
    with mlflow.start_run() as run:
        mlflow.set_tracking_uri(other)
        assert run_stacks.uri_of(run) == store_uri
        mlflow.set_tracking_uri(store_uri)
    mlflow.set_tracking_uri(other)

    assert run_stacks.uri_of(run) == other


EXPERIMENTS = """
import mlflow, sys
from autogen_team import GlobalContext
with GlobalContext({arguments}) as context, context.run("train", log_system_metrics=False) as run:
    mlflow.log_metric("loss", 0.5)
with GlobalContext({arguments}) as context, context.run("again", log_system_metrics=False) as run:
    pass
"""
NAMED = "mlflow_service=__import__('autogen_team').io.services.MlflowService(experiment_name='named')"


@pytest.fixture
def given(store_uri):
    """Return a run that another program has created in its own experiment."""
    client = mlflow.MlflowClient(store_uri)
    return client.create_run(client.create_experiment("theirs"), run_name="theirs")


@pytest.mark.parametrize(
    ("arguments", "environment", "wanted"),
    [
        ("", ["MLFLOW_EXPERIMENT_ID"], ["theirs", "theirs"]),
        ("", ["MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"], ["mine", "mine"]),
        (NAMED, ["MLFLOW_EXPERIMENT_ID"], ["named", "named"]),
        ("", ["MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"], ["theirs", "theirs"]),
        ("", ["MLFLOW_RUN_ID"], ["theirs", "autogen_team"]),
        (NAMED, ["MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"], ["theirs", "named"]),
    ],
    ids=["experiment", "name before id", "argument before id", "both", "run", "run before argument"],
)
def test_a_run_and_an_experiment_from_the_environment_are_used(
    run_python, store_uri, given, arguments, environment, wanted
):
    """The first run resumes `MLFLOW_RUN_ID`; experiments from the environment are used for others."""
    values = {
        "MLFLOW_EXPERIMENT_ID": given.info.experiment_id,
        "MLFLOW_EXPERIMENT_NAME": "mine",
        "MLFLOW_RUN_ID": given.info.run_id,
    }
    code = EXPERIMENTS.format(arguments=arguments)

    status, _, err = run_python("-c", code, **{name: values[name] for name in environment})

    assert status == 0, err
    found = {run.info.run_name: (experiment, run) for experiment, run in runs_of(store_uri)}
    assert [found[name][0] for name in ("train", "again")] == wanted
    assert (found["train"][1].info.run_id == given.info.run_id) is ("MLFLOW_RUN_ID" in environment)
    assert {run.info.status for _, run in found.values()} <= {"FINISHED", *({"RUNNING"} & {given.info.status})}
    assert found["train"][1].info.status == "FINISHED"


def test_an_experiment_of_another_store_is_ignored(start_session, home, other, monkeypatch):
    """`MLFLOW_EXPERIMENT_ID` is ignored if the environment names another store than the job's."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "7")

    start_session(home, experiment_name=None)
    log_a_run()

    assert [experiment for experiment, _ in runs_of(home)] == ["autogen_team"]


def test_a_context_inside_of_a_given_experiment_uses_it_too(start_session, store_uri, given, monkeypatch):
    """A context inside another one uses the experiment of the environment as well."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", given.info.experiment_id)
    start_session(store_uri, experiment_name=None)
    start_session(store_uri, experiment_name=None)

    run_id = log_a_run()

    assert mlflow.get_run(run_id).info.experiment_id == given.info.experiment_id


def test_an_offline_job_does_not_contact_the_server_that_it_sets(start_session, tmp_path, free_port):
    """Offline, runs stay in the offline store, although the job points MLflow to the server."""
    server = f"http://127.0.0.1:{free_port()}"
    session = start_session(server, mode="offline")
    mlflow.set_tracking_uri(server.replace("127.0.0.1", "localhost"))

    log_a_run()

    session.stop()
    assert [experiment for experiment, _ in runs_of(session.tracking_uri)] == ["tests"]


def test_an_unknown_experiment_is_an_error(run_python, store_uri):
    """An unknown `MLFLOW_EXPERIMENT_ID` raises an error that names the variable and the id."""
    status, _, err = run_python("-c", EXPERIMENTS.format(arguments=""), MLFLOW_EXPERIMENT_ID="7")

    assert status == 1
    assert "ConfigurationError: the experiment '7' of MLFLOW_EXPERIMENT_ID does not exist in the store" in err


def test_a_child_process_with_another_store_uses_its_own_experiment(start_session, home, other):
    """A child process with another store ignores the experiment that its parent has published."""
    start_session(home, experiment_name="parent")
    code = EXPERIMENTS.format(arguments=NAMED.replace("experiment_name='named'", f"tracking_uri={other!r}"))

    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ), capture_output=True)

    assert {experiment for experiment, _ in runs_of(other)} == {"autogen_team"}
