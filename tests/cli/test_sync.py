"""One command delivers all waiting data of this machine to its server."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import mlflow
import pytest

from autogen_team.io.services import MlflowService

pytestmark = pytest.mark.usefixtures("forked_children")

SYNC = ("-m", "autogen_team", "sync")


@pytest.fixture
def offline_run(mlflow_server, tmp_path, monkeypatch):
    """Return the id of an offline run whose server is available now."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    service = MlflowService(mode="offline", experiment_name=tmp_path.name, autolog_disable=True)
    with service, service.run_context(service.RunConfig(name="train", log_system_metrics=False)) as run:
        for step in range(1500):
            mlflow.log_metric("loss", step, step=step)
        mlflow.log_param("depth", 3)
        mlflow.log_text("artifact", "notes.txt")
    return run.info.run_id


def copies(server: str, experiment: str) -> list[mlflow.entities.Run]:
    """Return the runs of an experiment on the server."""
    client = mlflow.MlflowClient(server)
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id]) if found else []


def test_offline_runs_are_copied_to_their_server_once(offline_run, mlflow_server, run_python, tmp_path):
    """The command needs no options; the second time there is nothing to copy."""
    status, out, err = run_python(*SYNC, "--json")
    assert status == 0, err
    (row,) = json.loads(out)["runs"]
    assert (row["happened"], row["source_id"], row["counts"]["metrics"]) == ("copied", offline_run, 1500)

    (copy,) = copies(mlflow_server, tmp_path.name)
    client = mlflow.MlflowClient(mlflow_server)
    assert (copy.info.run_name, copy.info.status, copy.data.params) == ("train", "FINISHED", {"depth": "3"})
    assert len(client.get_metric_history(copy.info.run_id, "loss")) == 1500
    assert [found.path for found in client.list_artifacts(copy.info.run_id)] == ["notes.txt"]

    status, out, err = run_python(*SYNC, "--json")
    assert [one["happened"] for one in json.loads(out)["runs"]] == ["unchanged"], err
    assert len(copies(mlflow_server, tmp_path.name)) == 1


def test_offline_runs_can_be_copied_elsewhere(offline_run, run_python, tmp_path):
    """`--to` gives the target of the runs that were meant for the configured server."""
    uri = f"sqlite:///{tmp_path}/other.db"
    status, out, err = run_python(*SYNC, "--to", uri, "--json")

    assert status == 0, err
    assert [row["source_id"] for row in json.loads(out)["runs"]] == [offline_run]
    assert [copy.info.run_name for copy in copies(uri, tmp_path.name)] == ["train"]


def test_offline_runs_for_all_servers_can_be_copied_elsewhere(
    offline_run, run_python, free_port, tmp_path, monkeypatch
):
    """With `--to` the runs for any server are copied; otherwise runs for other servers are listed with the remedy."""
    other = f"http://127.0.0.1:{free_port()}"
    service = MlflowService(mode="offline", tracking_uri=other, experiment_name=tmp_path.name, autolog_disable=True)
    with service, service.run_context(service.RunConfig(name="other", log_system_metrics=False)):
        pass

    status, out, err = run_python(*SYNC, "--dry-run", "--json")
    assert status == 0, err
    assert [row["source_id"] for row in json.loads(out)["runs"]] == [offline_run]
    (left,) = json.loads(out)["left"]
    assert (left["what"], left["store"]) == ("offline runs", other)

    status, out, err = run_python(*SYNC, "--dry-run")
    assert f"left: offline runs for {other}: set MLFLOW_TRACKING_URI to it" in err

    uri = f"sqlite:///{tmp_path}/all.db"
    status, out, err = run_python(*SYNC, "--to", uri, "--json")
    assert status == 0, err
    assert json.loads(out)["left"] == []
    assert sorted(copy.info.run_name for copy in copies(uri, tmp_path.name)) == ["other", "train"]


def test_a_dry_run_writes_nothing(offline_run, mlflow_server, run_python, tmp_path):
    """The table says what would be copied."""
    status, out, err = run_python(*SYNC, "--dry-run")

    assert status == 0, err
    (line,) = [line for line in out.splitlines() if "train" in line]
    assert "would copy" in line
    assert copies(mlflow_server, tmp_path.name) == []


def test_what_was_copied_can_be_deleted_here(offline_run, mlflow_server, run_python, tmp_path):
    """As with MLflow's own deletion, runs can be restored."""
    status, out, err = run_python(*SYNC, "--delete")

    assert status == 0, err
    assert "copied, deleted here" in out
    assert "nothing waits" in run_python(*SYNC)[2]
    assert len(copies(mlflow_server, tmp_path.name)) == 1


@pytest.fixture
def offline_agent(mlflow_server, tmp_path, monkeypatch):
    """Return a function that traces and registers a model in an offline run; it returns the trace's id."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)

    def work() -> str:
        service = MlflowService(mode="offline", experiment_name=tmp_path.name, autolog_disable=True)
        with service, service.run_context(service.RunConfig(name="agent", log_system_metrics=False)):
            with mlflow.start_span("ask") as span:
                span.set_inputs({"question": "2 + 2?"})
            model = mlflow.create_external_model(name="model")
            client = service.client()
            if not client.search_registered_models(f"name = '{tmp_path.name}'"):
                client.create_registered_model(tmp_path.name)
            client.create_model_version(tmp_path.name, f"models:/{model.model_id}", model_id=model.model_id)
            client.set_registered_model_alias(tmp_path.name, "night", "1")
        return span.trace_id

    return work


def test_traces_and_registered_models_are_copied_to_their_server(offline_agent, mlflow_server, run_python, tmp_path):
    """The table has the number of traces per run, and the number of each version on the server."""
    client = mlflow.MlflowClient(mlflow_server, mlflow_server)
    client.create_registered_model(tmp_path.name)
    client.create_model_version(tmp_path.name, "s3://theirs/model")
    trace_id = offline_agent()

    status, out, err = run_python(*SYNC, "--dry-run", "--json")
    assert status == 0, err
    assert [row["counts"]["traces"] for row in json.loads(out)["runs"]] == [1]
    assert [row["versions"] for row in json.loads(out)["registered"]] == [{"1": None}]
    status, out, err = run_python(*SYNC, "--delete", COLUMNS="200")
    assert status == 0, err
    assert "copied, deleted here" in out
    assert "1 as 2" in out

    (run,) = copies(mlflow_server, tmp_path.name)
    (trace,) = client.search_traces(locations=[run.info.experiment_id], run_id=run.info.run_id)
    assert (trace.info.trace_id, [span.name for span in trace.data.spans]) == (trace_id, ["ask"])
    assert trace.data.spans[0].inputs == {"question": "2 + 2?"}
    version = client.get_model_version_by_alias(tmp_path.name, "night")
    assert (int(version.version), version.run_id) == (2, run.info.run_id)

    status, out, err = run_python(*SYNC, "--json")
    assert status == 0, err
    assert {row["happened"] for rows in ("runs", "registered") for row in json.loads(out)[rows]} == {"unchanged"}


def test_any_local_store_can_be_a_source(store_uri, mlflow_server, run_python, tmp_path):
    """The source is given by its file name, and the target by the option."""
    client = mlflow.MlflowClient(store_uri)
    experiment_id = client.create_experiment(tmp_path.name)
    run = client.create_run(experiment_id, run_name="old")
    client.log_metric(run.info.run_id, "loss", 1.0)
    client.set_terminated(run.info.run_id)
    status, out, err = run_python(*SYNC, "mlflow.db", "--to", mlflow_server)

    assert status == 0, err
    assert "copied" in out
    assert [copy.info.run_name for copy in copies(mlflow_server, tmp_path.name)] == ["old"]


def test_journals_are_delivered_too(mlflow_server, start_python, run_python, tmp_path, monkeypatch):
    """Journals of jobs that ended or died during an outage are delivered."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    code = (
        "import mlflow, os; from autogen_team.io.services import MlflowService\n"
        "from autogen_team._ship import agent_link; agent_link.AgentLink.watch = lambda *_: None\n"
        f"service = MlflowService(experiment_name={tmp_path.name!r}, autolog_disable=True)\n"
        "with service, service.run_context(service.RunConfig(name='killed', log_system_metrics=False)):\n"
        "    for n in range(100): mlflow.log_metric('loss', n, step=n)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    assert start_python("-c", code).finish()[0] == -signal.SIGKILL
    status, out, err = run_python(*SYNC, "--dry-run")
    assert "would be delivered" in out, err
    status, out, err = run_python(*SYNC)

    assert (status, "delivered" in out) == (0, True), err
    (run,) = copies(mlflow_server, tmp_path.name)
    assert run.info.status == "KILLED"
    assert len(mlflow.MlflowClient(mlflow_server).get_metric_history(run.info.run_id, "loss")) == 100


def test_offline_runs_of_the_default_store_are_found(run_python, tmp_path):
    """The default store is a file in the working folder, given as a relative path."""
    code = (
        "import mlflow; from autogen_team.io.services import MlflowService\n"
        f"service = MlflowService(mode='offline', experiment_name={tmp_path.name!r}, autolog_disable=True)\n"
        "with service, service.run_context(service.RunConfig(name='train', log_system_metrics=False)): pass\n"
    )
    assert run_python("-c", code)[0] == 0
    status, out, err = run_python(*SYNC, "--json")

    assert status == 0, err
    assert [row["happened"] for row in json.loads(out)["runs"]] == ["copied"]
    assert [copy.info.run_name for copy in copies(f"sqlite:///{Path('mlflow.db').absolute()}", tmp_path.name)] == [
        "train"
    ]


def test_a_target_can_be_given_as_a_file(offline_run, run_python, tmp_path):
    """Target and source can be file names."""
    status, out, err = run_python(*SYNC, "--to", "archive.db", "--json")

    assert status == 0, err
    assert [row["happened"] for row in json.loads(out)["runs"]] == ["copied"]
    assert [copy.info.run_name for copy in copies(f"sqlite:///{Path('archive.db').absolute()}", tmp_path.name)] == [
        "train"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.db"], "there is no store 'nowhere.db'"),
        (["sqlite:///nowhere.db"], "nowhere.db"),
        (["mlflow.db", "--to", "sqlite:///mlflow.db"], "the same store"),
        (["mlflow.db", "--to", "htttp://localhost:5000"], "unknown scheme 'htttp'; did you mean http?"),
        (["--to", "gopher://bob:example-hunter2@localhost"], "gopher://bob:***@localhost has the unknown scheme"),
        (["--to", "localhost:5000"], "'localhost:5000' is not a URI: write http:// in front of it"),
        (["postgres://localhost/runs"], "did you mean postgresql?"),
    ],
)
def test_an_invalid_store_is_reported(store_uri, run_python, arguments, message):
    """The error is reported before any store is created."""
    status, out, err = run_python(*SYNC, *arguments)

    assert (status, out) == (2, ""), err
    assert message in err
    assert "Traceback" not in err
    assert not Path("nowhere.db").exists()


def test_a_server_that_is_down_is_reported(store_uri, free_port, run_python):
    """The error is one line, reported soon, without a traceback."""
    status, _, err = run_python(*SYNC, "mlflow.db", "--to", f"http://127.0.0.1:{free_port()}")

    assert status == 1
    assert "Connection refused" in err
    assert "Traceback" not in err


def test_a_run_that_cannot_be_copied_is_named_and_counts(store_uri, run_python, tmp_path):
    """One failed run is a failure of the command."""
    client = mlflow.MlflowClient(store_uri)
    run = client.create_run("0", run_name="broken")
    client.set_terminated(run.info.run_id)
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    artifacts.mkdir(parents=True)
    (artifacts / "gone").symlink_to("nowhere")
    status, out, _ = run_python(*SYNC, "mlflow.db", "--to", f"sqlite:///{tmp_path}/other.db")

    assert status == 1
    (line,) = [line for line in out.splitlines() if "broken" in line]
    assert "failed" in line
    assert "gone" in line
