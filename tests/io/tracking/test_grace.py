"""`grace` limits all waits after SIGTERM together, however many of them wait for a silent server."""

from __future__ import annotations

import signal
import time

import pytest

from autogen_team._process import grace
from autogen_team._spool import index

pytestmark = pytest.mark.usefixtures("forked_children")

JOB = """
import sys, mlflow
from autogen_team import GlobalContext
from autogen_team.io.services import MlflowService
with GlobalContext(mlflow_service=MlflowService(autolog_disable=True)) as context:
    with context.run("train", log_system_metrics=False) as run:
        for step in range(10): mlflow.log_metric("loss", step, step=step)
        assert context.mlflow_service.flush(60)
        print("run", run.info.run_id, flush=True)
        sys.stdin.readline()
        for step in range(10, 20): mlflow.log_metric("loss", step, step=step)
        context.logger.info("a line")
        try:
            print("logged", flush=True)
            while True: sys.stdin.readline()
        finally:
            print("finally", flush=True)
"""
SCRIPT = """
import sys, time, mlflow
for step in range(10): mlflow.log_metric("loss", step, step=step)
print("run", mlflow.active_run().info.run_id, flush=True)
sys.stdin.readline()
for step in range(10, 20): mlflow.log_metric("loss", step, step=step)
print("logged", flush=True)
while True: time.sleep(1)
"""
MOST = 25.0
"""Limit in seconds; with a silent server an end once took 52 s."""


def end_beside_a_silent_server(process, server) -> tuple[str, float]:
    """Freeze the server and end the process by SIGTERM; return its run's id and the duration in seconds."""
    run_id = process.wait_for("run ").split()[1]
    server.send(signal.SIGSTOP)
    try:
        process.popen.stdin.write("\n")
        process.popen.stdin.flush()
        process.wait_for("logged")
        began = time.monotonic()
        process.send(signal.SIGTERM)
        process.popen.wait(120)
        took = time.monotonic() - began
    finally:
        server.send(signal.SIGCONT)
    return run_id, took


@pytest.fixture
def is_closed(server):
    """Return a function that returns whether a run is closed with all its metrics."""

    def look(run_id: str) -> bool:
        client = server.client()
        run = client.get_run(run_id)
        steps = [metric.step for metric in client.get_metric_history(run_id, "loss")]
        return (run.info.status, steps) == ("KILLED", list(range(20)))

    return look


def test_a_job_leaves_in_time(server, start_python, wait_until, is_closed, tmp_path):
    """`finally` blocks run, the journal is complete, and the agent delivers it when the server answers again."""
    process = start_python("-c", JOB, stdin=-1, MLFLOW_TRACKING_URI=server.uri, AUTOGEN_TEAM_GRACE="4")
    run_id, took = end_beside_a_silent_server(process, server)

    assert took < MOST
    assert process.popen.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert "finally" in process.finish()[1]
    wait_until(lambda: is_closed(run_id))
    wait_until(lambda: index.find(tmp_path / "state") == [])
    assert server.client().get_run(run_id).data.tags["autogen_team.exception"] == "SIGTERM"


def test_a_supervised_job_leaves_in_time(server, start_python, wait_until, is_closed, tmp_path):
    """The job and the process that keeps its run share the limit."""
    path = tmp_path / "job.py"
    path.write_text(SCRIPT)
    environment = {"MLFLOW_TRACKING_URI": server.uri, "AUTOGEN_TEAM_GRACE": "6"}
    process = start_python("-m", "autogen_team", "run", str(path), stdin=-1, fresh=True, **environment)
    run_id, took = end_beside_a_silent_server(process, server)

    assert took < MOST
    assert process.popen.returncode == 128 + signal.SIGTERM
    wait_until(lambda: is_closed(run_id))


def test_each_wait_leaves_time_for_the_next():
    """Each wait gets half of the remaining time, and before a signal waits are not limited."""
    assert grace.bounded(30.0) == 30.0
    undo = grace.allow(8.0)
    try:
        assert grace.bounded(30.0) == 30.0
        grace.begin()
        first = grace.bounded(30.0)
        assert 3.0 < first <= 4.0
        assert grace.bounded(0.5) == 0.5
    finally:
        undo()
    assert grace.bounded(30.0) == 30.0


def test_without_a_limit_a_signal_bounds_nothing():
    """Without `grace`, a signal limits no wait."""
    grace.begin()

    assert grace.bounded(30.0) == 30.0


def test_the_time_counts_from_the_signal():
    """A process that learns of the signal later has less time left."""
    undo = grace.allow(8.0)
    try:
        grace.begin(time.monotonic() - 100)
        assert grace.bounded(30.0) == 0.0
    finally:
        undo()
