"""Delivery in the background stores the same as plain MLflow, with the same errors at the same calls."""

from __future__ import annotations

import math
import resource
import shutil
import signal
import sys

import mlflow
import numpy as np
import pytest
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.rest_store import RestStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking._tracking_service.utils import _get_store

from autogen_team._capture import lifecycle, mlflow_internals, write_behind
from autogen_team._capture.store import LOCAL_ID, DurableStore
from autogen_team._ship import agent_link, mlflow_backend, signs, sql_bulk
from autogen_team._spool import journal, reader
from autogen_team.errors import NotStartedError
from autogen_team.io.services import MlflowService

pytestmark = pytest.mark.filterwarnings("ignore:.*is a folder")


@pytest.fixture(params=["sqlite", "server", "folder", "postgres"])
def any_uri(request, store_uri, tmp_path, monkeypatch):
    """Return a store of each kind."""
    if request.param == "server":
        return request.getfixturevalue("mlflow_server")
    if request.param == "postgres":
        return request.getfixturevalue("postgres_uri")
    if request.param == "folder":
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        return (tmp_path / "mlruns").as_uri()
    return store_uri


def start_plain(uri: str, experiment: str) -> None:
    """Point plain MLflow at the store."""
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    mlflow.set_experiment(experiment)


def log_all_sorts() -> str:
    """Log by every function that MLflow offers, and return the run's id."""
    client = mlflow.MlflowClient()
    with mlflow.start_run(run_name="all sorts", tags={"first": "1"}, description="about") as run:
        run_id = run.info.run_id
        mlflow.log_metric("single", 0.25, step=3, timestamp=1000)
        mlflow.log_metrics({"a": 1.0, "b/c d": 2}, step=4, timestamp=2000)
        for step, value in enumerate([1.0, math.nan, math.inf, -math.inf, 1e-320, -0.0]):
            mlflow.log_metric("odd", value, step=step, timestamp=3000 + step)
        mlflow.log_metric("a", 0.5, step=2, timestamp=5000)  # an older step does not replace the latest
        mlflow.log_metric("async", 1, synchronous=False, timestamp=6000)
        client.log_metric(run_id, "by client", np.float32(0.5), timestamp=7000, step=1)
        mlflow.log_param("p", {"any": "thing"})
        mlflow.log_params({f"q{number}": number for number in range(250)})
        mlflow.log_param("p", {"any": "thing"})  # logging the same value again is accepted
        mlflow.log_param("long", "x" * 7000)
        mlflow.set_tag("t", 1)
        mlflow.set_tags({f"u{number}": number for number in range(150)})
        mlflow.set_tag("gone", "soon")
        mlflow.delete_tag("gone")
        client.set_tag(run_id, "mlflow.runName", "renamed")
        client.log_batch(
            run_id,
            [Metric("batch", float(number % 7), 8000 + number // 3, number // 3) for number in range(1500)],
            [Param("in batch", "1")],
            [RunTag("in batch", "2")],
        )
        dataset = mlflow.data.from_numpy(np.arange(6).reshape(3, 2), name="six")
        mlflow.log_input(dataset, context="training")
    return run_id


def content(run_id: str) -> dict[str, object]:
    """Return the stored content of a run, without values that differ between runs."""
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    different = {"mlflow.user", "mlflow.source.name", "autogen_team.opened_by", *signs.tags(0)}
    return {
        "info": (run.info.run_name, run.info.status, run.info.end_time is not None),
        "params": run.data.params,
        "tags": {key: value for key, value in run.data.tags.items() if key not in different},
        "latest": {key: repr(value) for key, value in run.data.metrics.items()},
        "history": {
            key: sorted((one.step, one.timestamp, repr(one.value)) for one in client.get_metric_history(run_id, key))
            for key in run.data.metrics
        },
        "inputs": [(found.dataset.to_dictionary(), found.tags[0].value) for found in run.inputs.dataset_inputs],
    }


def test_the_store_has_the_same_as_with_plain_mlflow(any_uri, start_session):
    """Every kind of item arrives as plain MLflow stores it, with history, order and latest value."""
    start_plain(any_uri, "tests")
    plain = content(log_all_sorts())
    started = start_session(any_uri)
    durable_id = log_all_sorts()
    started.stop()

    start_plain(any_uri, "tests")
    assert content(durable_id) == plain


def test_a_read_returns_earlier_writes(any_uri, start_session):
    """A read in the same process sees everything that was logged before it."""
    start_session(any_uri)
    with lifecycle.open_run(name="train") as run:
        run_id = run.info.run_id
        mlflow.log_metric("loss", 0.5)
        assert mlflow.get_run(run_id).data.metrics == {"loss": 0.5}
        mlflow.log_metric("loss", 0.25, step=1)
        assert len(mlflow.MlflowClient().get_metric_history(run_id, "loss")) == 2
        mlflow.log_param("of", run_id)  # other tests have runs in this store too
        (found,) = mlflow.search_runs(filter_string=f"params.of = '{run_id}'", output_format="list")
        assert found.info.run_id == run_id
    assert mlflow.get_run(run_id).info.status == "FINISHED"


def test_logged_items_arrive_without_a_flush(any_uri, start_session, wait_until):
    """A metric arrives in the store without a flush or a read."""
    started = start_session(any_uri)
    with lifecycle.open_run(name="train") as run:
        mlflow.log_metric("loss", 0.5)
        plain = mlflow_backend.plain_store(any_uri)
        wait_until(lambda: plain.get_run(run.info.run_id).data.metrics == {"loss": 0.5}, timeout=20)
    started.stop()


@pytest.mark.parametrize("any_uri", ["sqlite", "server", "postgres"], indirect=True)  # a folder has no such traces
def test_traces_belong_to_the_run(any_uri, start_session):
    """A trace inside a run is stored as a trace of that run."""
    start_session(any_uri)
    with lifecycle.open_run(name="agent") as run:
        with mlflow.start_span("call") as span:
            span.set_inputs({"question": 1})
        mlflow.flush_trace_async_logging()
        (found,) = mlflow.search_traces(run_id=run.info.run_id, return_type="list")

    assert found.info.trace_id == span.trace_id


def test_the_uri_and_the_class_of_the_store_stay_the_same(store_uri, mlflow_server, start_session):
    """MLflow's tracking URI and the class of its store look like those of plain MLflow."""
    start_session(store_uri)
    assert mlflow.get_tracking_uri() == store_uri
    assert isinstance(_get_store(), SqlAlchemyStore)
    start_session(mlflow_server)
    assert mlflow.get_tracking_uri() == mlflow_server
    assert isinstance(_get_store(), RestStore)
    assert _get_store().get_host_creds().host == mlflow_server


def test_stop_restores_the_store_of_mlflow(store_uri, start_session):
    """`stop` restores MLflow's own store object, and leaves nothing in its registry."""
    before = _get_store(store_uri)
    started = start_session(store_uri)
    assert _get_store(store_uri) is not before
    started.stop()

    assert _get_store(store_uri) is before
    assert "_get_store_with_resolved_uri" not in vars(mlflow_internals.tracking._tracking_store_registry)


class _Searches:
    """A finder that records the names of modules and finds none."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def find_spec(self, name: str, *_: object) -> None:
        """Record the name."""
        self.names.append(name)


def test_logging_does_not_search_for_modules(store_uri, start_session, monkeypatch):
    """Searching for a missing module takes a hundred times as long as the rest of a call."""
    start_session(store_uri)
    searches = _Searches()
    with mlflow.start_run():
        mlflow.log_metric("a", 1.0)
        monkeypatch.setattr(sys, "meta_path", [searches, *sys.meta_path])
        mlflow.log_metric("a", 1.0)
        mlflow.log_metrics({"a": 1.0, "b": 2.0})
        mlflow.log_param("c", 1)
        mlflow.set_tag("d", "e")

    assert searches.names == []


def test_two_services_share_one_journal(store_uri, start_session, tmp_path):
    """Two services on one store share a journal, which the last one delivers and closes."""
    first, second = start_session(store_uri), start_session(store_uri)
    with lifecycle.open_run(name="train") as run:
        mlflow.log_metric("loss", 1.0)
        assert len(list((tmp_path / "state" / "journals").iterdir())) == 1
    first.stop()
    assert write_behind.of(store_uri) is not None
    second.stop()

    assert write_behind.of(store_uri) is None
    assert mlflow.MlflowClient(store_uri).get_run(run.info.run_id).data.metrics == {"loss": 1.0}


def test_an_unknown_or_deleted_run_is_refused(store_uri, start_session):
    """Logging to an unknown or deleted run is refused at the call, as by plain MLflow."""
    start_session(store_uri)
    client = mlflow.MlflowClient()
    with pytest.raises(MlflowException, match="not found"):
        client.log_metric("0" * 32, "loss", 1.0)
    run = client.create_run("1")
    client.delete_run(run.info.run_id)
    with pytest.raises(MlflowException, match="active"):
        client.log_metric(run.info.run_id, "loss", 1.0)
    client.restore_run(run.info.run_id)
    client.log_metric(run.info.run_id, "loss", 1.0)
    assert client.get_run(run.info.run_id).data.metrics == {"loss": 1.0}


def test_secrets_in_parameters_and_tags_are_masked(store_uri, start_session):
    """Secrets in parameters and tags are neither in the journal nor in the store."""
    started = start_session(store_uri)
    address = "postgresql://bob:hunter2-hunter2@db/runs"
    with lifecycle.open_run(name="train") as run:
        mlflow.log_param("db", address)
        mlflow.log_params({"db2": address})
        mlflow.set_tag("db", address)
        text = str(reader.read(write_behind.of(store_uri).journal.folder))
    started.stop()

    assert "hunter2" not in text
    assert "hunter2" not in str(mlflow.MlflowClient(store_uri).get_run(run.info.run_id).data)


def test_secrets_in_the_name_of_a_run_are_masked(store_uri, start_session):
    """Secrets in the names of runs are masked, in our runs and in plain ones, also in a new name."""
    started = start_session(store_uri)
    address = "train on postgresql://bob:hunter2-hunter2@db/runs"
    with lifecycle.open_run(name=address, tags={"at": address}, description=address) as run:
        with mlflow.start_run(run_name=address, nested=True) as inner:
            mlflow.MlflowClient().update_run(inner.info.run_id, name=f"again {address}")
        text = str(reader.read(write_behind.of(store_uri).journal.folder))
    started.stop()

    client = mlflow.MlflowClient(store_uri)
    assert client.get_run(run.info.run_id).info.run_name == "train on postgresql://bob:***@db/runs"
    assert client.get_run(inner.info.run_id).info.run_name == "again train on postgresql://bob:***@db/runs"
    found = [text, *(str(client.get_run(each.info.run_id).to_dictionary()) for each in (run, inner))]
    assert not any("hunter2" in each for each in found)


def test_log_metrics_writes_the_same_as_mlflow(any_uri, start_session):
    """`log_metrics` logs to the active run, and converts whole numbers and arrays of one element."""
    started = start_session(any_uri)
    with lifecycle.open_run(name="train") as run:
        started.log_metrics({"loss": 0.5, "whole": 3, "array": np.array([4.0])}, 7)
        started.log_metrics({"loss": math.nan}, 8)
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")

    assert [(one.step, repr(one.value)) for one in history] == [(7, "0.5"), (8, "nan")]
    assert mlflow.get_run(run.info.run_id).data.metrics["whole"] == 3.0
    assert mlflow.get_run(run.info.run_id).data.metrics["array"] == 4.0


def test_log_metrics_needs_a_run(store_uri):
    """`log_metrics` raises an error if the service is not running or no run is open."""
    service = MlflowService(tracking_uri=store_uri, autolog_disable=True)
    with pytest.raises(NotStartedError, match="is not running"):
        service.log_metrics({"loss": 1.0})
    with service, pytest.raises(NotStartedError, match="no run is open"):
        service.log_metrics({"loss": 1.0})


def test_secrets_are_masked_without_a_journal_too(any_uri):
    """Without a journal, every call masks secrets, also after a service with a journal has stopped."""
    secret = "postgresql://bob:hunter2-hunter2@db/runs"
    durable = MlflowService(tracking_uri=any_uri, autolog_disable=True)
    plain = MlflowService(tracking_uri=any_uri, autolog_disable=True, durable=False)
    durable.start()
    with plain:
        before = mlflow.start_run(run_name=f"first {secret}")
        mlflow.log_param("db", secret)
        durable.stop()
        mlflow.end_run()
        with mlflow.start_run(run_name=f"second {secret}", tags={"at": secret}) as run:
            client = mlflow.MlflowClient()
            mlflow.log_param("db", secret)
            mlflow.log_params({"db2": secret}, synchronous=False).wait()
            client.log_param(run.info.run_id, "db3", secret, synchronous=False).wait()
            mlflow.set_tag("db", secret)
            mlflow.set_tag("db2", secret, synchronous=False).wait()
            client.log_batch(
                run.info.run_id, [Metric("loss", 1.0, 0, 0)], [Param("db4", secret)], [RunTag("db3", secret)]
            )
            client.update_run(run.info.run_id, name=f"again {secret}")

    found = [mlflow.MlflowClient(any_uri).get_run(each.info.run_id) for each in (before, run)]
    assert "hunter2" not in str([each.to_dictionary() for each in found])
    assert found[1].info.run_name == "again postgresql://bob:***@db/runs"
    assert set(found[1].data.params.values()) == {"postgresql://bob:***@db/runs"}
    assert len(found[1].data.params) == 4


@pytest.mark.parametrize("first", [True, False])
def test_a_journal_is_used_in_any_order_of_starts(store_uri, first):
    """A journal is used if one of two services has one, in whichever order they start."""
    services = [
        MlflowService(tracking_uri=store_uri, autolog_disable=True, durable=each) for each in (first, not first)
    ]
    with services[0], services[1], mlflow.start_run():
        before = write_behind.of(store_uri).journal.number
        mlflow.log_metric("loss", 1.0)
        assert write_behind.of(store_uri).journal.number == before + 1


def test_without_a_journal_everything_waits_for_the_store(store_uri, tmp_path):
    """With `durable=False`, all calls write to the store directly, and no journal is created."""
    service = MlflowService(tracking_uri=store_uri, autolog_disable=True, durable=False)
    with service, service.run_context(service.RunConfig(name="train", log_system_metrics=False)) as run:
        service.log_metrics({"loss": 1.0}, 2)
        mlflow.log_metric("plain", 2.0)
        assert mlflow.MlflowClient(store_uri).get_run(run.info.run_id).data.metrics == {"loss": 1.0, "plain": 2.0}
        assert not (tmp_path / "state" / "journals").exists()


def test_without_a_writable_state_folder_items_go_to_the_store(store_uri, start_session, tmp_path, caplog):
    """If the folder of journals cannot be written, items go straight to the store, with one report."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "journals").write_text("a file where a folder should be")
    started = start_session(store_uri)
    with lifecycle.open_run(name="train") as run:
        for step in range(20):
            mlflow.log_metric("loss", step, step=step)
        mlflow.log_param("p", 1)
    started.stop()

    stored = mlflow.MlflowClient(store_uri).get_run(run.info.run_id)
    assert len(mlflow.MlflowClient(store_uri).get_metric_history(run.info.run_id, "loss")) == 20
    assert (stored.data.params, stored.info.status) == ({"p": "1"}, "FINISHED")
    assert len([record for record in caplog.records if "the journal cannot be written" in record.message]) == 1


def test_while_the_disk_is_full_entries_bypass_the_journal(store_uri, start_session, caplog, monkeypatch):
    """While the disk is full, entries bypass the journal; the start and the end of that are reported once each."""
    monkeypatch.setattr(journal, "SEGMENT", 4096)
    monkeypatch.setattr(journal, "_RETRY", 0.0)
    started = start_session(store_uri)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    full = OSError(28, "No space left on device")
    with lifecycle.open_run(name="train") as run:
        for step in range(100):
            mlflow.log_metric("loss", step, step=step)
            if step == 30:
                monkeypatch.setattr(journal, "_allocate", lambda *_: (_ for _ in ()).throw(full))
            if step == 70:
                monkeypatch.undo()
    started.stop()
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    signal.signal(signal.SIGXFSZ, before)

    history = mlflow.MlflowClient(store_uri).get_metric_history(run.info.run_id, "loss")
    assert [one.value for one in history] == list(range(100))
    said = [record.message for record in caplog.records if "the journal " in record.message]
    assert len(said) == 2
    assert "No space left on device" in said[0]
    assert "the journal is writable again" in said[1]


def test_a_run_begun_in_an_outage_is_later_like_any_other(store_uri, start_session):
    """A stored run that still has the tag of an outage is read and written like any other run."""
    client = mlflow.MlflowClient(store_uri)
    run_id = client.create_run("0", tags={LOCAL_ID: "0" * 32}).info.run_id
    client.log_metric(run_id, "loss", 0.5)
    started = start_session(store_uri)

    assert [mlflow.get_run(run_id).data.metrics for _ in range(2)] == [{"loss": 0.5}] * 2
    mlflow.MlflowClient().log_metric(run_id, "later", 1.0)
    assert [mlflow.get_run(run_id).data.metrics for _ in range(2)] == [{"loss": 0.5, "later": 1.0}] * 2
    assert not write_behind.of(store_uri).store.is_to_be_made(run_id)
    started.stop()


def test_runs_that_are_only_read_are_not_remembered(store_uri, start_session):
    """A run that is only read is not kept in memory, because a report may read 100,000 runs."""
    client = mlflow.MlflowClient(store_uri)
    run_id = client.create_run("0").info.run_id
    started = start_session(store_uri)
    mlflow.get_run(run_id)

    assert write_behind.of(store_uri).store.info_of(run_id) is None
    started.stop()


def test_an_uninitialized_store_has_no_attributes():
    """An uninitialized `DurableStore`, as in `copy`, has no attributes and does not recurse."""
    assert not hasattr(DurableStore.__new__(DurableStore), "uri")


def test_the_agent_ends_although_the_journal_was_deleted(store_uri, start_session, tmp_path, monkeypatch):
    """The agent is told of the end of a job although the journal's folder was deleted."""
    dismissed, dismiss = [], agent_link.AgentLink.dismiss
    monkeypatch.setattr(agent_link.AgentLink, "dismiss", lambda self: (dismissed.append(1), dismiss(self)))
    started = start_session(store_uri)
    with lifecycle.open_run(name="train"):
        mlflow.log_metric("loss", 1.0)
        write_behind.of(store_uri).flush(20.0)
        shutil.rmtree(tmp_path / "state" / "journals")
        dismissed.clear()
    started.stop()

    assert len(dismissed) == 1


@pytest.mark.parametrize("database", ["store_uri", "postgres_uri"])
def test_our_statement_writes_the_same_rows_as_log_batch(request, database):
    """Our own statement leaves the same rows as `log_batch`, also for metrics that are already stored."""
    store = mlflow_backend.plain_store(request.getfixturevalue(database))
    metrics = [
        {"key": f"k{number % 3}", "value": value, "timestamp": 1000 + number // 2, "step": number % 5}
        for number, value in enumerate([1.0, math.nan, math.inf, -1.5, 0.0, math.nan] * 20)
    ]
    ids = [store.create_run("0", "me", 0, [], None).info.run_id for _ in range(2)]
    again = [metric for metric in metrics if not math.isnan(metric["value"])]  # where MLflow 3.10 fails itself
    for some in (metrics, again):
        assert sql_bulk.insert_metrics(store, ids[0], some)
        store.log_batch(ids[1], [Metric(**metric) for metric in some], [], [])
    assert sql_bulk.insert_metrics(store, ids[0], metrics)

    def rows(table: str, run_id: str) -> list[tuple[object, ...]]:
        with store.engine.connect() as connection:
            query = f"select key, value, timestamp, step, is_nan from {table} where run_uuid = '{run_id}'"
            return sorted(connection.exec_driver_sql(query).fetchall())

    for table in ("metrics", "latest_metrics"):
        assert rows(table, ids[0]) == rows(table, ids[1])
        assert rows(table, ids[0])


def test_unexpected_tables_are_written_by_mlflow_s_own_methods(store_uri, start_session, monkeypatch):
    """If MLflow's tables or methods are not as expected, metrics arrive by MLflow's own methods."""

    def changed(*_):
        raise AttributeError("_update_latest_metrics_if_necessary")

    monkeypatch.setattr(sql_bulk, "insert_metrics", changed)
    started = start_session(store_uri)
    with lifecycle.open_run(name="train") as run:
        mlflow.log_metric("loss", 1.0)
    started.stop()

    assert mlflow.MlflowClient(store_uri).get_run(run.info.run_id).data.metrics == {"loss": 1.0}
