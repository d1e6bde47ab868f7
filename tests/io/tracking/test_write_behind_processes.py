"""Items logged by threads, children and ending processes of a job arrive, each once."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path

import mlflow

from autogen_team._capture import lifecycle, write_behind
from autogen_team._ship import mlflow_backend


def test_a_process_that_never_stops_its_service_delivers_at_its_exit(store_uri, run_python, tmp_path):
    """A process that exits without stopping its service delivers its items and the end of its run."""
    code = (
        "import mlflow; from autogen_team.io.services import MlflowService\n"
        "MlflowService(autolog_disable=True).start()\n"
        "mlflow.start_run()\n"
        "for n in range(1000): mlflow.log_metric('loss', n, step=n)\n"
    )
    status, _, err = run_python("-c", code)

    assert status == 0, err
    (run,) = mlflow.MlflowClient(store_uri).search_runs(["1"])
    assert len(mlflow.MlflowClient(store_uri).get_metric_history(run.info.run_id, "loss")) == 1000
    assert run.info.status == "FINISHED"
    assert list((tmp_path / "state" / "journals").iterdir()) == []


def test_a_forked_child_logs_through_its_own_journal(store_uri, start_session, tmp_path, wait_until):
    """A forked child logs to its parent's run by its own journal, which is delivered even after a hard exit."""
    started = start_session(store_uri)
    with lifecycle.open_run(name="train") as run:
        mlflow.log_metric("parent", 1.0)
        child = os.fork()
        if child == 0:
            try:
                mlflow.MlflowClient().log_metric(run.info.run_id, "child", 2.0)
                assert write_behind.of(store_uri).store.flush()
                mlflow.MlflowClient().log_metric(run.info.run_id, "left", 3.0)
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert status == 0
        mlflow.log_metric("parent", 2.0, step=1)
        assert mlflow.get_run(run.info.run_id).info.status == "RUNNING"
    started.stop()
    wait_until(lambda: not list((tmp_path / "state" / "journals").iterdir()))

    stored = mlflow.MlflowClient(store_uri).get_run(run.info.run_id)
    assert stored.data.metrics == {"parent": 2.0, "child": 2.0, "left": 3.0}
    assert stored.info.status == "FINISHED"


def test_many_threads_log_at_once(store_uri, start_session):
    """Each value that eight threads log at once arrives once."""
    started = start_session(store_uri)
    with lifecycle.open_run(name="train") as run:
        client = mlflow.MlflowClient()

        def log(thread: int) -> None:
            for step in range(500):
                client.log_metric(run.info.run_id, f"m{thread}", step, step=step)

        threads = [threading.Thread(target=log, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    started.stop()

    client = mlflow.MlflowClient(store_uri)
    for number in range(8):
        history = client.get_metric_history(run.info.run_id, f"m{number}")
        assert [one.value for one in history] == list(range(500))


def test_items_that_threads_log_while_the_service_stops_are_not_lost(store_uri, start_session, wait_until):
    """Values logged by a thread during and after `stop` arrive once."""
    started = start_session(store_uri)
    with lifecycle.open_run(name="train") as run:
        client, logged, go_on = mlflow.MlflowClient(store_uri), [], [True]

        def log() -> None:
            while go_on:
                client.log_metric(run.info.run_id, "loss", len(logged), step=len(logged))
                logged.append(1)

        thread = threading.Thread(target=log)
        thread.start()
        wait_until(lambda: len(logged) > 200)
        started.stop()
        count = len(logged)
        wait_until(lambda: len(logged) > count + 5)
        go_on.clear()
        thread.join()

    history = mlflow.MlflowClient(store_uri).get_metric_history(run.info.run_id, "loss")
    assert sorted(one.value for one in history) == list(range(len(logged)))


def test_a_worker_of_multiprocessing_delivers_before_it_leaves(store_uri, start_session):
    """A worker of multiprocessing delivers its items before it ends, although it runs no exit handlers."""
    started = start_session(store_uri)
    with lifecycle.open_run(name="train") as run:
        client = mlflow.MlflowClient(store_uri)
        worker = multiprocessing.get_context("fork").Process(
            target=client.log_metric, args=(run.info.run_id, "worker", 1.0)
        )
        worker.start()
        worker.join()
        assert mlflow_backend.plain_store(store_uri).get_run(run.info.run_id).data.metrics == {"worker": 1.0}
    started.stop()


def test_the_agent_is_not_a_child_of_the_job(store_uri, run_python):
    """The agent is not a child of the job, so `os.wait` of the job finds no children."""
    code = (
        "import mlflow, os; from autogen_team.io.services import MlflowService\n"
        "service = MlflowService(autolog_disable=True)\n"
        "with service, service.run_context(service.RunConfig(name='x', log_system_metrics=False)):\n"
        "    try: os.wait()\n"
        "    except ChildProcessError: print('none')"
    )
    assert run_python("-c", code)[1] == "none\n"


def test_autologging_uses_the_journal_and_keeps_its_model(store_uri, run_python):
    """An autologged fit arrives with its parameters, metrics, dataset and model."""
    code = (
        "import mlflow; from autogen_team.io.services import MlflowService\n"
        "from sklearn.linear_model import LogisticRegression; from sklearn.datasets import load_iris\n"
        "service = MlflowService(autolog_silent=True)\n"
        "with service, service.run_context(service.RunConfig(name='fit', log_system_metrics=False)) as run:\n"
        "    LogisticRegression(max_iter=500).fit(*load_iris(return_X_y=True))\n"
        "print(run.info.run_id)\n"
    )
    status, out, err = run_python("-c", code)

    assert status == 0, err
    run = mlflow.MlflowClient(store_uri).get_run(out.split()[-1])
    assert run.data.params["max_iter"] == "500"
    assert "training_accuracy_score" in run.data.metrics
    assert len(run.inputs.dataset_inputs) == 1
    assert len(run.outputs.model_outputs) == 1
    assert Path("mlruns").exists()
