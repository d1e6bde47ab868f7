"""`autogen-team run --job`: one run for all starts of a command, and one active start at a time."""

from __future__ import annotations

import re
import signal
import socket

import mlflow
import pytest

from autogen_team._process.run_events import ATTEMPT_TAG, EXCEPTION_TAG, JOB_TAG, PREEMPTED_TAG

pytestmark = pytest.mark.usefixtures("forked_children")

RUN = ("-m", "autogen_team", "run")
COUNTS = """
import sys, mlflow
from autogen_team import GlobalContext
mlflow.log_param("words", len(sys.argv))
context = GlobalContext.current()
first = (context.last_step("loss") if context.last_step("loss") is not None else -1) + 1
for step in range(first, first + 3):
    mlflow.log_metric("loss", step, step=step)
print("attempt", context.attempt, "from", first, flush=True)
sys.exit(int(sys.argv[1]))
"""
WAITS = """
import signal, sys, mlflow
mlflow.log_metric("loss", 1)
try:
    print("ready", flush=True)
    sys.stdin.readline()
finally:
    print("finally", flush=True)
"""


@pytest.mark.timeout(400)
def test_starts_of_a_command_share_a_run(supervised, script, the_run, store_uri):
    """A Python script continues its run with changed parameters, and each start has its own output."""
    path = script(COUNTS)
    first = supervised("--job", "nightly", path, "3")
    second = supervised("--job", "nightly", path, "4", "more")
    third = supervised("--job", "nightly", path, "0")

    assert [one.returncode for one in (first, second, third)] == [3, 4, 0], third.stderr
    assert (first.stdout, third.stdout) == (b"attempt 1 from 0\n", b"attempt 3 from 6\n")
    assert b"autogen_team.claim" not in third.stderr
    run = the_run()
    assert (run.info.status, run.data.tags[JOB_TAG], run.data.tags[ATTEMPT_TAG]) == ("FINISHED", "nightly", "3")
    history = mlflow.MlflowClient(store_uri).get_metric_history(run.info.run_id, "loss")
    assert sorted(metric.step for metric in history) == list(range(9))
    assert (run.data.params["words"], run.data.tags[f"{ATTEMPT_TAG}.2.param.words"]) == ("2", "3")
    assert [run.data.tags[f"{ATTEMPT_TAG}.{number}"].split(", on ")[0] for number in (1, 2)] == [
        "FAILED, exit status 3",
        "FAILED, exit status 4",
    ]
    assert EXCEPTION_TAG not in run.data.tags
    names = [file.path for file in mlflow.MlflowClient(store_uri).list_artifacts(run.info.run_id, "logs")]
    outputs = [name for name in names if "/output-" in name]
    assert len(outputs) == 3
    assert sorted("".join(re.findall(r"-attempt-\d", name)) for name in outputs) == ["", "-attempt-2", "-attempt-3"]


def test_a_running_job_is_refused(start_python, script, the_run, store_uri):
    """The exit status is 125, the command is not started, and the message names the running process."""
    path = script(WAITS)
    first = start_python(*RUN, "--job", "nightly", path, stdin=-1)
    first.wait_for("ready")
    second = start_python(*RUN, "--job", "nightly", path, stdin=-1)
    status, out, err = second.finish()

    assert (status, out) == (125, ""), err
    assert re.search(rf"the job 'nightly' runs already: process \d+ on {re.escape(socket.gethostname())}", err)
    assert the_run().info.status == "RUNNING"
    assert first.finish("\n")[0] == 0
    assert the_run().info.status == "FINISHED"


@pytest.mark.parametrize("words", [("--job", "auto"), ("--job", "it's"), ("--job", "x", "--stale", "soon")])
def test_an_invalid_job_name_is_a_usage_error(supervised, script, words):
    """The error is reported before the command is started."""
    ended = supervised(*words, script("print('started')"))

    assert (ended.returncode, ended.stdout) == (2, b""), ended.stderr


@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_job_that_its_scheduler_ends_is_preempted(start_python, script, the_run, number):
    """`finally` blocks run, the alert says that the job will continue, and the next start removes the tag."""
    path = script(WAITS)
    slurm = {"SLURM_JOB_ID": "4711", "AUTOGEN_TEAM_ALERTS_ENABLE": "false"}
    job = start_python(*RUN, "--job", "auto", "--name", "train", path, stdin=-1, **slurm)
    job.wait_for("ready")
    job.send(number)
    job.wait_for("finally")
    status, _, err = job.finish()

    assert status == 128 + number, err
    run = the_run()
    assert (run.info.status, run.data.tags[EXCEPTION_TAG]) == ("KILLED", number.name)
    assert (run.data.tags[JOB_TAG], run.data.tags[PREEMPTED_TAG]) == ("slurm-4711", "true")
    assert "train was preempted" in err
    assert "it continues when the job slurm-4711 is started again; this was start 1" in err
    again = start_python(*RUN, "--job", "auto", path, stdin=-1, **slurm)
    again.wait_for("ready")
    assert again.finish("\n")[0] == 0
    assert PREEMPTED_TAG not in the_run().data.tags
    assert the_run().data.tags[f"{ATTEMPT_TAG}.1"].startswith(f"KILLED, {number.name}, preempted, on ")


def test_a_plain_kill_is_not_a_preemption(start_python, script, the_run):
    """Without a scheduler, SIGTERM is not a preemption."""
    job = start_python(*RUN, script(WAITS), stdin=-1)
    job.wait_for("ready")
    job.send(signal.SIGTERM)
    job.wait_for("finally")
    _, _, err = job.finish()

    assert "job.py was killed" in err
    assert PREEMPTED_TAG not in the_run().data.tags


def test_a_handler_of_the_job_decides_over_the_signals_of_a_scheduler(start_python, script, the_run):
    """A handler like submitit's checkpoints and exits; handlers installed in C stay too."""
    path = script(
        "import faulthandler, os, signal, sys, mlflow\n"
        "def leave(number, frame): print('left', flush=True); sys.exit(7)\n"
        "signal.signal(signal.SIGUSR2, leave)\n"
        "faulthandler.register(signal.SIGUSR1)\n"
        "mlflow.log_metric('loss', 1)\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    job = start_python(*RUN, "--job", "auto", path, stdin=-1, SLURM_JOB_ID="1")
    job.wait_for("ready")
    job.send(signal.SIGUSR2)
    job.wait_for("left")
    status, _, err = job.finish()

    assert status == 7, err
    assert "Current thread" in err
    assert (the_run().info.status, the_run().data.tags[EXCEPTION_TAG]) == ("KILLED", "SIGUSR2")
    assert the_run().data.tags[PREEMPTED_TAG] == "true"
