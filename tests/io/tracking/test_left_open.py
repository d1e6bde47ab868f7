"""Runs that the job opened by fluent functions or a client, and that are open when the job ends."""

from __future__ import annotations

import threading
from pathlib import Path

import mlflow
import pytest

from autogen_team import GlobalContext
from autogen_team._capture import lifecycle
from autogen_team.io.services import AlertsService, LoggerService, MlflowService

REASON = "autogen_team.exception"


@pytest.fixture
def context(store_uri):
    """Return a context that is not started yet."""
    service = MlflowService(tracking_uri=store_uri, autolog_disable=True)
    return GlobalContext(
        logger_service=LoggerService(sink="log.txt"), alerts_service=AlertsService(enable=False), mlflow_service=service
    )


def end_of(context, run):
    """Return the status and the reason of a run from the store."""
    found = context.mlflow_service.client().get_run(run.info.run_id)
    return found.info.status, found.data.tags.get(REASON)


def client_run(name="logger"):
    """Create a run by a client, as the loggers of Lightning, Keras and Ray do."""
    return mlflow.MlflowClient().create_run("0", run_name=name)


ENDS = {
    "an exception": (ValueError("no data"), ("FAILED", "ValueError: no data")),
    "an exit status": (SystemExit(3), ("FAILED", "exit status 3")),
    "Ctrl-C": (KeyboardInterrupt(), ("KILLED", "SIGINT")),
}


@pytest.mark.parametrize(("error", "wanted"), ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("open_one", [mlflow.start_run, client_run], ids=["start_run", "create_run"])
def test_runs_of_a_failing_job_are_closed_with_the_reason(context, open_one, error, wanted):
    """A run that is open when the job ends by an exception is closed with its status and reason."""
    with pytest.raises(type(error)), context:
        run = open_one()
        raise error

    assert end_of(context, run) == wanted
    assert mlflow.active_run() is None


@pytest.mark.parametrize("error", [None, SystemExit(0)], ids=["end", "exit"])
def test_a_run_of_a_client_outlives_a_job_that_ends_well(context, error):
    """A run created by a client stays open when the job ends normally, because the job may hand it on."""
    try:
        with context:
            run = client_run()
            if error:
                raise error
    except SystemExit:
        pass

    assert end_of(context, run) == ("RUNNING", None)
    mlflow.MlflowClient(context.mlflow_service.tracking_uri).set_terminated(run.info.run_id)


def test_an_ended_run_keeps_its_status(context):
    """An ended run keeps its status when the job fails, also if another process has ended it."""
    other = mlflow.MlflowClient(context.mlflow_service.tracking_uri)
    with pytest.raises(ValueError, match="no data"), context:
        ended, handed_on = client_run(), client_run()
        mlflow.MlflowClient().set_terminated(ended.info.run_id)
        context.mlflow_service.flush()
        store = lifecycle.write_behind.of(context.mlflow_service.tracking_uri).store
        store._inner.update_run_info(handed_on.info.run_id, 3, 1, None)  # as another process would
        raise ValueError("no data")

    assert [other.get_run(run.info.run_id).info.status for run in (ended, handed_on)] == ["FINISHED", "FINISHED"]
    assert end_of(context, ended)[1] is end_of(context, handed_on)[1] is None


def test_an_inner_context_closes_runs_opened_inside_it(context):
    """An inner context that fails closes the runs opened inside it, and leaves others to the outer context."""
    with context:
        outside = client_run()
        inner = context.model_copy(update={"mlflow_service": context.mlflow_service.model_copy()})
        with pytest.raises(ValueError, match="no data"), inner:
            inside = client_run()
            raise ValueError("no data")

        assert end_of(context, outside) == ("RUNNING", None)
        assert end_of(context, inside) == ("FAILED", "ValueError: no data")
        mlflow.MlflowClient().set_terminated(outside.info.run_id)


def test_a_run_that_another_thread_has_open_is_left_to_it(context):
    """A run that another thread has open stays open when the main thread's context ends by an exception."""
    opened, may_end = threading.Event(), threading.Event()
    found = []

    def work():
        with mlflow.start_run() as run:
            found.append(run)
            opened.set()
            assert may_end.wait(60)

    thread = threading.Thread(target=work)
    with pytest.raises(ValueError, match="no data"), context:
        thread.start()
        assert opened.wait(60)
        raise ValueError("no data")

    assert end_of(context, found[0]) == ("RUNNING", None)
    mlflow.set_tracking_uri(context.mlflow_service.tracking_uri)
    may_end.set()
    thread.join()


def test_without_a_journal_open_runs_are_closed_as_well(context):
    """Without a journal, runs of `mlflow.start_run` are closed with the reason too."""
    service = context.mlflow_service.model_copy(update={"durable": False})
    with pytest.raises(ValueError, match="no data"), service:
        run = mlflow.start_run()
        raise ValueError("no data")

    assert end_of(context, run) == ("FAILED", "ValueError: no data")


@pytest.mark.parametrize("way", ["SIGTERM", "sys.exit(2)"])
def test_a_process_that_ends_closes_its_open_runs(start_python, store_uri, way):
    """A process that ends by SIGTERM or an exit status closes its open runs in every store."""
    code = (
        "import mlflow, os, signal, sys; from autogen_team import GlobalContext\n"
        "with GlobalContext():\n"
        "    one = mlflow.MlflowClient().create_run('0').info.run_id\n"
        "    mlflow.set_tracking_uri('sqlite:///other.db')\n"
        "    two = mlflow.MlflowClient().create_run('0').info.run_id\n"
        "    print('runs', one, two, flush=True)\n"
        f"    {'sys.exit(2)' if way == 'sys.exit(2)' else 'os.kill(os.getpid(), signal.SIGTERM)'}\n"
    )
    process = start_python("-c", code)
    ids = process.wait_for("runs ").split()[1:]
    process.finish()

    wanted = ("KILLED", "SIGTERM") if way == "SIGTERM" else ("FAILED", "exit status 2")
    for run_id, uri in zip(ids, (store_uri, f"sqlite:///{Path.cwd()}/other.db"), strict=True):
        found = mlflow.MlflowClient(uri).get_run(run_id)
        assert (found.info.status, found.data.tags[REASON]) == wanted
