"""Servers that fail in the middle of a job, in several ways."""

from __future__ import annotations

import json
import logging
import multiprocessing
import signal
import subprocess
import threading
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest
import sqlalchemy
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST

from autogen_team._capture import lifecycle, write_behind
from autogen_team._ship import backend, mlflow_backend, recovery, rest_backend
from autogen_team._spool import index, journal, reader
from autogen_team.errors import TrackingUnavailableError

SLOW = 0.2
"""Limit in seconds; a call that waits for the server takes longer. Microseconds are measured in `benchmarks/`."""


def hardly_wait(calls: int, log) -> bool:
    """Return whether at most one in twenty calls was slow; on a busy machine, some are slow without waiting."""
    slow = 0
    for number in range(calls):
        begun = time.perf_counter()
        log(number)
        slow += time.perf_counter() - begun > SLOW
    return slow <= calls // 20


def history(client: mlflow.MlflowClient, run_id: str, key: str = "loss") -> list[float]:
    """Return the values of a metric, in the order in which the store has them."""
    return [metric.value for metric in client.get_metric_history(run_id, key)]


def warnings_of(caplog) -> list[str]:
    """Return the warnings about the connection to the store."""
    return [record.message for record in caplog.records if "the MLflow store at" in record.message]


def test_a_server_that_is_killed_and_comes_back(server, start_session, caplog, tmp_path, wait_until):
    """An outage loses and repeats nothing, does not delay calls, and causes two warnings."""
    started = start_session(server.uri)
    with lifecycle.open_run(name="train") as run:
        run_id = run.info.run_id
        for step in range(100):
            mlflow.log_metric("loss", step, step=step)
        assert len(history(mlflow.MlflowClient(), run_id)) == 100
        server.kill()
        assert hardly_wait(300, lambda n: mlflow.log_metric("loss", 100 + n, step=100 + n))
        assert hardly_wait(50, lambda n: mlflow.log_param(f"p{n}", n))
        assert hardly_wait(50, lambda n: mlflow.set_tag("latest", n))
        wait_until(lambda: warnings_of(caplog))  # entries are collected for up to 4 s per request
        server.start()
        for step in range(400, 500):
            mlflow.log_metric("loss", step, step=step)
    started.stop()

    stored = server.client().get_run(run_id)
    assert history(server.client(), run_id) == list(range(500))
    assert len(stored.data.params) == 50
    assert stored.data.tags["latest"] == "49"
    assert stored.info.status == "FINISHED"
    cut, back = warnings_of(caplog)
    assert "cannot be reached: [Errno 111] Connection refused. The job continues" in cut
    assert "answers again after" in back
    assert list((tmp_path / "state" / "journals").iterdir()) == []


def test_a_server_on_postgresql_that_is_killed_and_comes_back(postgres_server, start_session):
    """An outage of a server on PostgreSQL loses and repeats nothing."""
    started = start_session(postgres_server.uri)
    with lifecycle.open_run(name="train") as run:
        for step in range(1500):
            mlflow.log_metric("loss", step, step=step)
        postgres_server.kill()
        for step in range(1500, 3000):
            mlflow.log_metric("loss", step, step=step)
        postgres_server.start()
    started.stop()

    assert history(postgres_server.client(), run.info.run_id) == list(range(3000))
    assert postgres_server.client().get_run(run.info.run_id).info.status == "FINISHED"


def test_a_server_that_is_suspended_and_continues(server, start_session):
    """While a server hangs, calls do not wait for it, and a read waits for less than 30 s."""
    started = start_session(server.uri, connect_timeout=5.0)
    with lifecycle.open_run(name="train") as run:
        mlflow.log_param("p", 1)
        server.send(signal.SIGSTOP)
        try:
            assert hardly_wait(300, lambda n: mlflow.log_metric("loss", n, step=n))
            begun = time.monotonic()
            assert mlflow.get_run(run.info.run_id).data.params == {"p": "1"}
            assert time.monotonic() - begun < 30
        finally:
            server.send(signal.SIGCONT)
    started.stop()

    assert history(server.client(), run.info.run_id) == list(range(300))


def test_a_server_that_never_comes_back(server, start_session, caplog):
    """Without its server, a job ends in time, and reports how many entries wait, where, and how to deliver them."""
    started = start_session(server.uri, flush_timeout=0.5)
    with lifecycle.open_run(name="train"):
        server.kill()
        mlflow.log_metric("loss", 1.0)
    begun = time.monotonic()
    started.stop()

    assert time.monotonic() - begun < 20
    (report,) = [record.message for record in caplog.records if "were not delivered within 0.5 s" in record.message]
    folder = Path(report.partition("they wait in ")[2].partition(". The agent")[0])
    left = [entry["op"] for entry in reader.read(folder) if entry["n"] > reader.acked(folder)]
    assert {"metrics", "info", "closed"} <= set(left)
    assert report.startswith(f"{len(left) - 1} entries ")  # all but the entry that ends the journal


def artifacts_of(server, run) -> dict[str, str]:
    """Return the text files of a run on the server's disk, with their content."""
    folder = server.folder / "artifacts" / run.info.experiment_id / run.info.run_id / "artifacts"
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.txt")}


def test_runs_can_be_begun_without_the_server(server, start_session, caplog):
    """Runs begun in an outage arrive with all their content, nesting and status; their local ids stay valid."""
    started = start_session(server.uri)
    with lifecycle.open_run(name="search") as search:
        server.kill()
        with lifecycle.open_run(name="outer", nested=True, tags={"fold": 1}) as outer:
            mlflow.log_metric("loss", 0.5)
            mlflow.log_text("text", "notes.txt")
            mlflow.log_image(np.zeros((8, 8, 3), dtype=np.uint8), key="image", step=1)
            assert mlflow.get_run(outer.info.run_id).info.run_name == "outer"
            with pytest.raises(ValueError, match="x"), lifecycle.open_run(name="inner", nested=True) as inner:
                mlflow.log_param("depth", 3)
                raise ValueError("x")
        server.start()
        mlflow.log_metric("loss", 0.25)
        # The local ids stay valid for the rest of the process.
        assert mlflow.get_run(outer.info.run_id).data.metrics == {"loss": 0.5}
        mlflow.MlflowClient().log_metric(outer.info.run_id, "later", 1.0)
        mlflow.MlflowClient().log_text(inner.info.run_id, "later", "later.txt")
        assert len(mlflow.MlflowClient().get_metric_history(outer.info.run_id, "loss")) == 1
    started.stop()

    client = server.client()
    stored = {run.info.run_name: run for run in client.search_runs([search.info.experiment_id])}
    assert {name: run.info.status for name, run in stored.items()} == {
        "search": "FINISHED",
        "outer": "FINISHED",
        "inner": "FAILED",
    }
    assert stored["outer"].info.start_time == outer.info.start_time
    assert stored["outer"].data.metrics == {"loss": 0.5, "later": 1.0}
    assert stored["outer"].data.tags["fold"] == "1"
    assert stored["outer"].data.tags["autogen_team.local_run_id"] == outer.info.run_id
    assert stored["outer"].data.tags["mlflow.parentRunId"] == search.info.run_id
    assert stored["inner"].data.tags["mlflow.parentRunId"] == stored["outer"].info.run_id
    assert stored["inner"].data.params == {"depth": "3"}
    assert artifacts_of(server, stored["outer"]) == {"notes.txt": "text"}
    assert artifacts_of(server, stored["inner"]) == {"later.txt": "later"}
    assert f"has the id {stored['outer'].info.run_id} there: {server.uri}/#/" in caplog.text


def test_a_full_disk_does_not_hide_the_new_id_of_a_run(server, start_session, caplog, monkeypatch):
    """The new id of a run begun in an outage is logged, although the journal's disk is full."""
    started = start_session(server.uri)
    with lifecycle.open_run(name="first"):
        server.kill()
        with lifecycle.open_run(name="late", nested=True) as late:
            mlflow.log_metric("loss", 0.5)

        def full(*_):
            raise journal.JournalError("the disk is full")

        monkeypatch.setattr(write_behind.of(server.uri).journal, "run_created", full)
        server.start()
    started.stop()

    (stored,) = [run for run in server.client().search_runs([late.info.experiment_id]) if run.info.run_name == "late"]
    assert stored.data.metrics == {"loss": 0.5}
    assert f"has the id {stored.info.run_id} there" in caplog.text
    assert "JournalError" not in caplog.text


def test_runs_begun_without_the_server_survive_the_job(server, start_python, tmp_path):
    """Recovery creates a run that was begun in an outage by a job that was killed, once the server is back."""
    code = (
        "import mlflow, os, time; from autogen_team.io.services import MlflowService\n"
        "from autogen_team._ship import agent_link; agent_link.AgentLink.watch = lambda *_: None\n"
        f"service = MlflowService(tracking_uri={server.uri!r}, autolog_disable=True, connect_timeout=2)\n"
        "service.start()\n"
        "print('ready', flush=True); input()\n"
        "with service.run_context(service.RunConfig(name='late', log_system_metrics=False)):\n"
        "    for n in range(100): mlflow.log_metric('loss', n, step=n)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    process = start_python("-c", code, stdin=subprocess.PIPE)
    process.wait_for("ready")
    server.kill()
    process.finish("go\n")
    (found,) = index.find(tmp_path / "state")
    stores = server.uri, server.uri, tmp_path / "state"
    assert "Connection refused" in recovery.recover(found, *stores).problem
    server.start()
    assert recovery.recover(found, *stores).problem == ""

    (run,) = [run for run in server.client().search_runs(["1"]) if run.info.run_name == "late"]
    assert run.info.status == "KILLED"
    assert history(server.client(), run.info.run_id) == list(range(100))


def test_a_read_without_the_server_fails_soon(server, start_session):
    """A read that needs the server fails within 30 s, with an error that is MLflow's and ours."""
    start_session(server.uri, flush_timeout=0.5)
    with lifecycle.open_run(name="train"):
        server.kill()
        begun = time.monotonic()
        with pytest.raises(MlflowException, match="Connection refused"):
            mlflow.search_runs(output_format="list")
        with pytest.raises(TrackingUnavailableError, match="MLFLOW_TRACKING_URI"):
            mlflow.MlflowClient().search_experiments()
        assert time.monotonic() - begun < 30


def test_a_changed_parameter_is_refused_without_the_server(server, start_session):
    """A changed parameter is refused during an outage, because the run's parameters are known."""
    start_session(server.uri, flush_timeout=0.5)
    with lifecycle.open_run(name="train"):
        mlflow.log_param("depth", 3)
        server.kill()
        with pytest.raises(MlflowException, match="depth") as raised:
            mlflow.log_param("depth", 5)

    assert raised.value.error_code == "INVALID_PARAMETER_VALUE"


def test_a_404_of_a_proxy_is_an_outage(proxy, mlflow_server, start_session, tmp_path):
    """A 404 of a proxy counts as an outage; only MLflow itself can refuse an item."""
    started = start_session(proxy.uri)
    with lifecycle.open_run(name="train") as run:
        proxy.status = 404
        for step in range(50):
            mlflow.log_metric("loss", step, step=step)
        assert not write_behind.of(proxy.uri).shipper.flush(1.0, give_up_when_cut=True)
        proxy.status = 200
    started.stop()

    assert history(mlflow.MlflowClient(mlflow_server), run.info.run_id) == list(range(50))
    assert not (tmp_path / "state" / "refused.jsonl").exists()


def test_an_exhausted_database_pool_is_an_outage(proxy, mlflow_server, start_session, tmp_path):
    """A server whose database pool is exhausted refuses nothing, although it answers `BAD_REQUEST`."""
    started = start_session(proxy.uri)
    with lifecycle.open_run(name="train") as run:
        said = "QueuePool limit of size 5 overflow 10 reached, connection timed out, timeout 30.00 (Background on this"
        proxy.answer = json.dumps({"error_code": "BAD_REQUEST", "message": said}).encode()
        proxy.status = 400
        for step in range(50):
            mlflow.log_metric("loss", step, step=step)
        assert not write_behind.of(proxy.uri).flush(10.0)
        proxy.status = 200
    started.stop()

    assert history(mlflow.MlflowClient(mlflow_server), run.info.run_id) == list(range(50))
    assert not (tmp_path / "state" / "refused.jsonl").exists()


def test_sqlalchemy_s_message_about_an_exhausted_pool_is_as_expected():
    """SQLAlchemy still words an exhausted pool as expected, which distinguishes a busy server from a refusal."""
    engine = sqlalchemy.create_engine(
        "sqlite://", poolclass=sqlalchemy.pool.QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.01
    )
    with engine.connect(), pytest.raises(sqlalchemy.exc.TimeoutError) as caught:
        engine.connect()

    assert rest_backend._BUSY[0].removeprefix("BAD_REQUEST: ") in str(caught.value)


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (sqlalchemy.exc.TimeoutError("QueuePool limit"), backend.Unreachable),
        (sqlalchemy.exc.InternalError("insert", {}, Exception("read-only")), backend.Unreachable),
        (sqlalchemy.exc.ProgrammingError("x", {}, Exception(), connection_invalidated=True), backend.Unreachable),
        (sqlalchemy.exc.DataError("insert", {}, Exception("too long")), backend.Refused),
        (None, backend.Refused),
    ],
    ids=["empty pool", "lost primary", "lost connection", "bad value", "MLflow itself"],
)
def test_a_transient_error_of_a_database_is_not_a_refusal(cause, kind):
    """A transient error of the database counts as an outage, and a bad value as refused."""
    with pytest.raises(kind), mlflow_backend._translated():
        raise mlflow.MlflowException("no", error_code=BAD_REQUEST) from cause


def test_a_log_handler_that_raises_stops_no_delivery(server, start_session, wait_until):
    """A log handler that raises an exception stops neither the delivery nor the job."""

    class Broken(logging.Handler):
        def handle(self, record):
            raise OSError("the disk of the log is full")

    handler = Broken()
    logging.getLogger("autogen_team").addHandler(handler)
    try:
        started = start_session(server.uri)
        with lifecycle.open_run(name="train") as run:
            mlflow.log_metric("loss", 0.0, step=0)
            server.kill()
            for step in range(1, 50):
                mlflow.log_metric("loss", step, step=step)
            wait_until(lambda: write_behind.of(server.uri)._availability.is_cut)
            server.start()
            mlflow.log_metric("loss", 50.0, step=50)
        started.stop()
    finally:
        logging.getLogger("autogen_team").removeHandler(handler)

    assert history(server.client(), run.info.run_id) == list(range(51))


def test_a_thread_that_could_not_be_started_is_started_later(store_uri, start_session, monkeypatch):
    """If the delivery thread cannot start, `flush` returns early, and the delivery is done later."""
    started = start_session(store_uri)
    start = threading.Thread.start

    def limited(thread):
        if thread.name == "autogen_team-tracking":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", limited)
        run = mlflow.start_run()
        mlflow.log_metric("loss", 1.0)
        began = time.monotonic()
        assert not write_behind.of(store_uri).flush(20.0)
        assert time.monotonic() - began < 18.0  # it did not wait for 20 s
    mlflow.end_run()
    started.stop()

    assert mlflow.MlflowClient(store_uri).get_run(run.info.run_id).data.metrics == {"loss": 1.0}


def test_a_worker_waits_for_a_busy_server(proxy, mlflow_server, start_session, wait_until, tmp_path):
    """A worker that ends retries while the server answers 429, and leaves no journal behind."""
    started = start_session(proxy.uri)
    with lifecycle.open_run(name="train") as run:
        proxy.status = 429  # an answer, so the server counts as reachable
        client = mlflow.MlflowClient(proxy.uri)
        worker = multiprocessing.get_context("fork").Process(
            target=client.log_metric, args=(run.info.run_id, "worker", 1.0)
        )
        worker.start()
        wait_until(lambda: proxy.refused > 2)  # it has tried, has probed the server, and tries again
        proxy.status = 200
        worker.join()
    started.stop()

    assert mlflow.MlflowClient(mlflow_server).get_run(run.info.run_id).data.metrics == {"worker": 1.0}
    assert list((tmp_path / "state" / "journals").iterdir()) == []


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_server_that_answers_with_errors(proxy, mlflow_server, start_session, caplog, status):
    """A server that answers 5xx or 429 counts as an outage, with one warning at its start and one at its end."""
    started = start_session(proxy.uri)
    with lifecycle.open_run(name="train") as run:
        proxy.status = status
        for step in range(200):
            mlflow.log_metric("loss", step, step=step)
        working = write_behind.of(proxy.uri)
        assert not working.store.flush()
        proxy.status = 200
    started.stop()

    assert history(mlflow.MlflowClient(mlflow_server), run.info.run_id) == list(range(200))
    assert str(status) in warnings_of(caplog)[0]
    assert len(warnings_of(caplog)) == 2


def test_a_slow_server_does_not_delay_calls(proxy, mlflow_server, start_session):
    """A server that takes half a second per request does not delay calls of the job."""
    started = start_session(proxy.uri)
    with lifecycle.open_run(name="train") as run:
        proxy.delay = 0.5
        assert hardly_wait(500, lambda n: mlflow.log_metric("loss", n, step=n))
    started.stop()
    proxy.delay = 0.0

    assert history(mlflow.MlflowClient(mlflow_server), run.info.run_id) == list(range(500))


def test_a_refused_item_is_noted_and_does_not_delay_others(mlflow_server, start_session, caplog, tmp_path):
    """A parameter that another process has set is refused and noted, and all other items arrive."""
    started = start_session(mlflow_server)
    with lifecycle.open_run(name="train") as run:
        working = write_behind.of(mlflow_server)
        assert working.store.flush()
        working.shipper.pause(timeout=10)
        for number in range(20):
            mlflow.log_param(f"p{number}", "ours")
        mlflow.log_metric("loss", 1.0)
        working.store._inner.log_batch(run.info.run_id, [], [mlflow.entities.Param("p7", "theirs")], [])
        working.shipper.resume()
    started.stop()

    stored = mlflow.MlflowClient(mlflow_server).get_run(run.info.run_id)
    assert stored.data.params == {**{f"p{number}": "ours" for number in range(20)}, "p7": "theirs"}
    assert stored.data.metrics == {"loss": 1.0}
    assert stored.info.status == "FINISHED"
    refused = (tmp_path / "state" / "refused.jsonl").read_text()
    assert '"key":"p7","value":"ours"' in refused
    assert refused.count("\n") == 1
    assert [record.levelname for record in caplog.records if "rejected an item" in record.message] == ["ERROR"]
