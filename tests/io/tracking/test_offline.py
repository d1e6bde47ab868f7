"""Jobs without their server, in each mode."""

from __future__ import annotations

import threading
from pathlib import Path

import mlflow
import pytest

from autogen_team._spool import index, journal, reader
from autogen_team._sync import offline_store
from autogen_team.errors import TrackingUnavailableError
from autogen_team.io.services import MlflowService


@pytest.fixture
def dead_server(free_port):
    """Return the URI of a server that does not run."""
    return f"http://127.0.0.1:{free_port()}"


def train(service: MlflowService) -> mlflow.ActiveRun:
    """Run a short job, and return its run."""
    with service, service.run_context(service.RunConfig(name="train", log_system_metrics=False)) as run:
        mlflow.log_metric("loss", 0.5)
        mlflow.log_text("artifact", "notes.txt")
    return run


@pytest.mark.parametrize("mode", ["auto", "offline"])
def test_a_job_works_without_its_server(dead_server, mode, tmp_path, caplog):
    """Without a server, `auto` and `offline` keep the run and its artifacts in a store in the state folder."""
    service = MlflowService(tracking_uri=dead_server, mode=mode, autolog_disable=True)
    run = train(service)

    uri = offline_store.store_uri(tmp_path / "state", dead_server)
    stored = mlflow.MlflowClient(uri).get_run(run.info.run_id)
    assert (stored.info.status, stored.data.metrics) == ("FINISHED", {"loss": 0.5})
    assert Path(stored.info.artifact_uri.removeprefix("file://"), "notes.txt").read_text() == "artifact"
    assert (tmp_path / "state") in Path(stored.info.artifact_uri.removeprefix("file://")).parents
    assert not Path("mlruns").exists()
    assert ("cannot be used" in caplog.text) == (mode == "auto")


def test_all_functions_of_mlflow_find_offline_runs_at_once(dead_server):
    """MLflow's functions find offline runs during the job, and the service's client finds them after it."""
    service = MlflowService(tracking_uri=dead_server, mode="offline", autolog_disable=True)
    with service:
        assert mlflow.get_tracking_uri().startswith("sqlite:///")
        with service.run_context(service.RunConfig(name="train", log_system_metrics=False)) as run:
            (found,) = mlflow.search_runs(output_format="list")
            assert found.info.run_id == run.info.run_id
    assert service.client().get_run(run.info.run_id).info.status == "FINISHED"
    assert service.link("1", run.info.run_id) is None


def test_entries_for_the_server_are_not_delivered_to_the_offline_store(dead_server, tmp_path, monkeypatch):
    """The run of a killed job is in the server's store only, because the offline store would reject its entries."""
    with monkeypatch.context() as patch:
        patch.setattr(journal, "started_at", lambda _: 1.0)
        killed = journal.Journal(tmp_path / "state", uri=dead_server)
        killed.append('"op":"params","run":"of-the-server","values":{"lr":"0.1"}}')
    folder = killed.folder
    killed.after_fork()  # releases the lock, as the death of the process would
    assert index.look(folder).state == "dead"

    service = MlflowService(tracking_uri=dead_server, mode="auto", connect_timeout=1, autolog_disable=True)
    with service, service.run_context(service.RunConfig(name="offline", log_system_metrics=False)):
        for thread in threading.enumerate():
            if thread.name == "autogen_team-recovery":
                thread.join()

    assert [entry["op"] for entry in reader.read(folder)] == ["journal", "params"]
    assert not (tmp_path / "state" / "refused.jsonl").exists()


def test_auto_is_online_when_the_server_answers(mlflow_server, tmp_path):
    """If the server answers, `auto` stores the run there and creates no offline store."""
    service = MlflowService(tracking_uri=mlflow_server, mode="auto", autolog_disable=True, experiment_name="auto")
    run = train(service)

    assert mlflow.MlflowClient(mlflow_server).get_run(run.info.run_id).info.status == "FINISHED"
    assert not (tmp_path / "state" / "offline").exists()


def test_online_is_the_default_and_an_error(dead_server, tmp_path):
    """By default, a job whose server does not answer fails to start, and creates no offline store."""
    with pytest.raises(TrackingUnavailableError, match="Connection refused"):
        MlflowService(tracking_uri=dead_server).start()

    assert not (tmp_path / "state" / "offline").exists()


def test_offline_does_not_probe_the_server(monkeypatch, dead_server):
    """`offline` does not probe the server."""
    from autogen_team._ship import server_probe

    monkeypatch.setattr(server_probe, "find_fault", lambda *_: pytest.fail("asked"))
    train(MlflowService(tracking_uri=dead_server, mode="offline", autolog_disable=True))


def test_runs_for_different_servers_are_kept_apart(dead_server, tmp_path):
    """Offline runs for different servers are in different stores, whose files contain no password."""
    for uri in (dead_server, "http://bob:hunter2-hunter2@127.0.0.1:1"):
        train(MlflowService(tracking_uri=uri, mode="offline", autolog_disable=True))

    stores = offline_store.find(tmp_path / "state")
    assert sorted(stores.values()) == sorted([dead_server, "http://bob:***@127.0.0.1:1"])
    texts = [path.read_text() for path in (tmp_path / "state" / "offline").glob("*/about.json")]
    assert "hunter2" not in "".join(texts)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_service_inside_an_offline_job_uses_its_store(dead_server, tmp_path, mode):
    """A service created inside an offline job uses the offline store, which it finds in the environment."""
    with MlflowService(tracking_uri=dead_server, mode="offline", autolog_disable=True):
        inner = MlflowService(mode=mode, autolog_disable=True, experiment_name="inner")
        run = train(inner)

    (uri,) = offline_store.find(tmp_path / "state")
    assert offline_store.find(tmp_path / "state") == {uri: dead_server}
    stored = mlflow.MlflowClient(uri).get_run(run.info.run_id)
    assert stored.info.status == "FINISHED"
    assert (tmp_path / "state") in Path(stored.info.artifact_uri.removeprefix("file://")).parents


def test_offline_runs_are_for_their_owner_only(dead_server, tmp_path):
    """Only the owner can read the folder of offline runs."""
    train(MlflowService(tracking_uri=dead_server, mode="offline", autolog_disable=True))

    assert (tmp_path / "state" / "offline").stat().st_mode & 0o777 == 0o700
