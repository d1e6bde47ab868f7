"""Other stores than the one that was started with, and other words for the same one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from autogen_team.io._tracking import isolation, places, write_behind

SECRET = "postgresql://ada:example-secret@db/prices"


@pytest.fixture
def home(make_database):
    """Return the store that tracking is started on."""
    return make_database("home")


@pytest.fixture
def other(make_database):
    """Return another one."""
    return make_database("other")


def runs_of(uri):
    """Return the runs of a store as plain MLflow has them, by the names of their experiments."""
    client = mlflow.MlflowClient(uri)
    found = {one.experiment_id: one.name for one in client.search_experiments()}
    return [(found[run.info.experiment_id], run) for run in client.search_runs(list(found))]


def log_a_run():
    """Log what has to be delivered, and what must not be shown."""
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
def test_a_store_is_the_same_in_other_words(one, other):
    """Paths, options, names of this machine, ports that go without saying, and drivers make no difference."""
    assert places.identity(one) == places.identity(other)


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
def test_another_store_is_another_one(one, other):
    """Also on the same machine, and for another user."""
    assert places.identity(one) != places.identity(other)


def test_a_path_and_its_absolute_form_are_one_store():
    """Whether it is a file or a folder, and through links."""
    Path("link").symlink_to(Path.cwd())

    assert places.identity("sqlite:///mlflow.db") == places.identity(f"sqlite:///{Path.cwd()}/link/mlflow.db")
    assert places.identity("mlruns") == places.identity(Path("mlruns").absolute().as_uri())


def test_a_store_in_other_words_has_the_same_journal(start_session, home):
    """What is logged there is masked, too."""
    start_session(home)
    words = home.replace("/mlflow.db", "/../home/mlflow.db?timeout=5")
    mlflow.set_tracking_uri(words)

    log_a_run()

    assert write_behind.of(words) is write_behind.of(home)
    assert write_behind.of(home).journal.number > 0
    ((experiment, run),) = runs_of(home)
    assert (experiment, run.info.status, run.data.metrics) == ("tests", "FINISHED", {"loss": 0.5})
    assert "example-secret" not in str(run.to_dictionary())


def test_a_server_in_other_words_has_the_same_journal(start_session, mlflow_server):
    """With another name for the machine, and a slash at the end."""
    start_session(mlflow_server)
    words = mlflow_server.replace("127.0.0.1", "localhost") + "/"
    mlflow.set_tracking_uri(words)

    run_id = log_a_run()

    assert write_behind.of(words) is write_behind.of(mlflow_server)
    assert mlflow.get_run(run_id).data.metrics == {"loss": 0.5}


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("way", ["by a call", "by the variable"])
def test_another_store_gets_what_the_first_one_has(start_session, home, other, monkeypatch, durable, way):
    """Its runs are in the experiment of the job, masked, and go through a journal unless none is wanted."""
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
    """Loggers of libraries have clients, and never point MLflow anywhere."""
    start_session(home)
    client = mlflow.MlflowClient(other)
    run_id = client.create_run("0", run_name=SECRET).info.run_id

    client.log_param(run_id, "database", SECRET)

    assert "example-secret" not in str(client.get_run(run_id).to_dictionary())
    client.set_terminated(run_id)


def test_an_experiment_that_the_job_chooses_is_used(start_session, home, other):
    """In any store; it goes before that of the settings."""
    start_session(home)
    mlflow.set_tracking_uri(other)
    mlflow.set_experiment("elsewhere")

    log_a_run()

    assert [experiment for experiment, _ in runs_of(other)] == ["elsewhere"]


def test_a_store_that_mlflow_refuses_is_refused(start_session, home):
    """By MLflow's own exception, at the call."""
    start_session(home)
    mlflow.set_tracking_uri("nonsense://a")

    with pytest.raises(mlflow.MlflowException, match="nonsense"):
        mlflow.start_run()


@pytest.mark.parametrize("durable", [True, False])
def test_metrics_of_a_hot_loop_go_to_the_store_of_their_run(start_session, home, other, durable):
    """Wherever MLflow is pointed to meanwhile."""
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
    """Until it has ended."""
    with mlflow.start_run() as run:
        mlflow.set_tracking_uri(other)
        assert isolation.uri_of(run) == store_uri
        mlflow.set_tracking_uri(store_uri)
    mlflow.set_tracking_uri(other)

    assert isolation.uri_of(run) == other


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
    """Return a run, and its experiment, that another program has made."""
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
def test_a_run_and_an_experiment_that_are_given_from_outside_are_used(
    run_python, store_uri, given, arguments, environment, wanted
):
    """As `mlflow run`, Azure ML and Databricks give them; the run goes on, later ones are in the experiment."""
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


def test_an_experiment_of_another_store_is_not_meant(start_session, home, other, monkeypatch):
    """An id says something in the store only that the environment names beside it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "7")

    start_session(home, is_experiment_chosen=False)
    log_a_run()

    assert [experiment for experiment, _ in runs_of(home)] == ["tests"]


def test_a_context_inside_of_a_given_experiment_uses_it_too(start_session, store_uri, given, monkeypatch):
    """As the context of a script inside that of `autogen-team run`."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", given.info.experiment_id)
    start_session(store_uri, is_experiment_chosen=False)
    start_session(store_uri, is_experiment_chosen=False)

    run_id = log_a_run()

    assert mlflow.get_run(run_id).info.experiment_id == given.info.experiment_id


def test_a_job_that_works_offline_does_not_ask_the_server_that_it_names(start_session, tmp_path, free_port):
    """Its runs are where all offline runs are."""
    server = f"http://127.0.0.1:{free_port()}"
    session = start_session(server, mode="offline")
    mlflow.set_tracking_uri(server.replace("127.0.0.1", "localhost"))

    log_a_run()

    session.stop()
    assert [experiment for experiment, _ in runs_of(session.tracking_uri)] == ["tests"]


def test_an_experiment_that_does_not_exist_is_told(run_python, store_uri):
    """With the variable that names it, and what to do."""
    status, _, err = run_python("-c", EXPERIMENTS.format(arguments=""), MLFLOW_EXPERIMENT_ID="7")

    assert status == 1
    assert "ConfigurationError: the experiment '7' of MLFLOW_EXPERIMENT_ID does not exist in the store" in err


def test_a_child_process_with_another_store_uses_its_own_experiment(start_session, home, other):
    """What a service has published for children means nothing there."""
    start_session(home, experiment_name="parent")
    code = EXPERIMENTS.format(arguments=NAMED.replace("experiment_name='named'", f"tracking_uri={other!r}"))

    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ), capture_output=True)

    assert {experiment for experiment, _ in runs_of(other)} == {"autogen_team"}
