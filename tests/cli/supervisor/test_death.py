"""The supervisor closes the run of a job that dies, with the reason, and sends an alert."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from autogen_team._spool import journal
from autogen_team.cli._supervisor import ending
from autogen_team.cli._supervisor.wire import End
from testkit import forkserver

pytestmark = pytest.mark.usefixtures("forked_children")

RUN = ("-m", "autogen_team", "run")
REASON = "autogen_team.exception"
OUT_OF_MEMORY = "SIGKILL, perhaps for lack of memory: the kernel killed a process for it while the job ran"


def reason(run: mlflow.entities.Run) -> str:
    """Return why a run ended, without a lack of memory that another test may have caused at the same time."""
    return run.data.tags[REASON].removesuffix(OUT_OF_MEMORY.removeprefix("SIGKILL"))


def left_behind() -> list[str]:
    """Return the journals and logs that wait in the state folder."""
    state = Path(os.environ["AUTOGEN_TEAM_STATE_DIR"])
    return [str(path) for folder in ("journals", "logs") for path in (state / folder).glob("*")]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_an_unhandled_signal_is_the_reason(supervised, script, the_run, the_output, store_uri, number):
    """All acknowledged items, the log and the output are in the run, and an alert was sent."""
    path = script(
        "import mlflow, os, sys\n"
        "from loguru import logger\n"
        "for step in range(500): mlflow.log_metric('loss', step, step=step)\n"
        "logger.info('a line of log')\n"
        "print('printed last', flush=True)\n"
        f"os.kill(os.getpid(), {int(number)})\n"
    )

    ended = supervised(path)

    assert ended.returncode == 128 + number, ended.stderr
    run = the_run()
    assert (run.info.status, reason(run)) == ("KILLED", number.name)
    assert len(mlflow.MlflowClient(store_uri).get_metric_history(run.info.run_id, "loss")) == 500
    assert "printed last" in the_output()
    assert "a line of log" in the_output()
    assert "[autogen_team] job.py was killed: after" in ended.stderr.decode()
    assert ended.stdout == b"printed last\n"
    assert f"error: the job was killed by {number.name}" in ended.stderr.decode()
    assert left_behind() == []


def test_the_agent_does_not_recover_before_the_supervisor(script, the_run, wait_until):
    """Even if output is read slowly, the supervisor, which knows the exact reason, recovers before the agent."""
    path = script(
        "import mlflow, os\nmlflow.log_metric('a', 1)\nprint('x' * 150_000, flush=True)\nos.kill(os.getpid(), 9)"
    )
    journals = Path(os.environ["AUTOGEN_TEAM_STATE_DIR"], "journals")
    with forkserver.popen([*RUN, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until(lambda: any(map(journal.recoverer, journals.glob("*"))), timeout=60)
        _, err = process.communicate(timeout=60)

    assert b"job.py was killed" in err
    assert (the_run().info.status, reason(the_run())) == ("KILLED", "SIGKILL")


@pytest.mark.parametrize(("status", "recorded"), [(0, "FINISHED"), (3, "FAILED")])
def test_a_hard_exit_is_reported_by_its_status(supervised, script, the_run, status, recorded):
    """`os._exit` closes nothing, and its status is the reason."""
    ended = supervised(script(f"import os; os._exit({status})"))

    assert ended.returncode == status, ended.stderr
    assert the_run().info.status == recorded
    assert the_run().data.tags.get(REASON) == ("exit status 3" if status else None)
    assert left_behind() == []


def test_a_job_without_a_journal_is_closed_too(supervised, script, the_run):
    """Without a journal, the run is closed by its id."""
    ended = supervised("--set", "mlflow.durable=false", script("import os; os.kill(os.getpid(), 9)"))

    assert ended.returncode == 137, ended.stderr
    assert (the_run().info.status, reason(the_run())) == ("KILLED", "SIGKILL")


def test_runs_inside_of_the_run_are_closed_with_it(supervised, script, store_uri):
    """All open child runs are closed."""
    path = script(
        "import mlflow, os\nmlflow.start_run(nested=True)\nmlflow.log_metric('a', 1)\nos.kill(os.getpid(), 9)"
    )
    supervised(path)

    client = mlflow.MlflowClient(store_uri)
    found = client.search_runs([client.get_experiment_by_name("autogen_team").experiment_id])
    assert [run.info.status for run in found] == ["KILLED", "KILLED"]


def test_the_run_ends_when_the_job_does(supervised, script, the_run):
    """The end time is that of the job's death, not of its last entry."""
    supervised(script("import os, time; time.sleep(2); os.kill(os.getpid(), 9)"))

    info = the_run().info
    assert info.end_time - info.start_time >= 2000


def test_death_before_the_first_line_is_the_end_of_the_run(supervised, script, the_run, tmp_path):
    """The run exists even if the job has not opened one."""
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(
        "import os, sys\nif 'job.py' in sys.orig_argv[1]: os.kill(os.getpid(), 9)\n"
    )

    ended = supervised(script("pass"), env={**os.environ, "PYTHONPATH": str(tmp_path / "patch")})

    assert ended.returncode == 137
    assert b"the job was killed by SIGKILL" in ended.stderr
    assert (the_run().info.status, reason(the_run())) == ("KILLED", "SIGKILL")


def test_disabled_alerts_are_not_sent(supervised, script):
    """Disabled alerts are not sent by the supervisor either."""
    ended = supervised("--alert-on", "never", script("import os; os.kill(os.getpid(), 9)"))

    assert (ended.returncode, ended.stdout) == (137, b"")


def test_a_server_that_is_down_gets_the_end_later(server, supervised, script):
    """The journal waits for the server, and the user is informed at once."""
    path = script(
        "import mlflow, os, signal\n"
        f"os.killpg({server.pid}, signal.SIGKILL)\n"
        "mlflow.log_metric('late', 1)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    ended = supervised("--tracking-uri", server.uri, path)

    assert ended.returncode == 137
    assert b"could not be closed" in ended.stderr
    assert b"was killed" in ended.stderr
    server.kill()
    server.start()
    recover = [sys.executable, "-m", "autogen_team", "recover", "--tracking-uri", server.uri]
    client = mlflow.MlflowClient(server.uri)
    deadline = time.monotonic() + 60
    while True:  # the agent or the command recovers it
        subprocess.run(recover, check=False, capture_output=True, timeout=60)
        (run,) = client.search_runs([client.get_experiment_by_name("autogen_team").experiment_id])
        if run.info.status == "KILLED" or time.monotonic() > deadline:
            break
    assert (run.info.status, run.data.metrics) == ("KILLED", {"late": 1.0})


def test_a_killed_supervisor_ends_the_job(start_python, script, the_run, wait_until):
    """After SIGKILL of the supervisor, the job gets SIGTERM and closes its run itself."""
    path = script("import os, time; print('pid', os.getpid(), flush=True); time.sleep(600)")
    process = start_python("-m", "autogen_team", "run", path)
    pid = int(process.wait_for("pid").split()[1])
    process.popen.kill()

    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    assert (the_run().info.status, the_run().data.tags[REASON]) == ("KILLED", "SIGTERM")


def test_a_real_lack_of_memory_is_the_reason(script, the_run):
    """The kernel kills the job for exceeding a control group's limit of 400 MB."""
    group = Path(f"/sys/fs/cgroup/memory/autogen-team-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(400 * 2**20))
    except OSError:
        pytest.skip("memory control groups need root and cgroup v1")
    try:
        join = f"echo $$ > {group}/cgroup.procs && exec {sys.executable} -m autogen_team run job.py"
        script("held = []\nwhile True: held.append(bytearray(b'x' * 2**24))\n")
        ended = subprocess.run(["bash", "-c", join], capture_output=True, timeout=120, check=False)
    finally:
        for _ in range(100):
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.1)
    assert ended.returncode == 137, ended.stderr
    assert (the_run().info.status, the_run().data.tags[REASON]) == ("KILLED", OUT_OF_MEMORY)


FAILURE = {"kind": "ValueError", "text": "no data", "trace": "Traceback ..."}
ENDS = [
    (0, {}, None),
    (0, {"said": {"told": ["FAILED", "no data"]}}, ("FAILED", "no data")),
    (3, {}, ("FAILED", "exit status 3")),
    (1, {"said": {"failure": FAILURE}}, ("FAILED", "ValueError: no data")),
    (1, {"said": {"failure": {**FAILURE, "kind": "CancelledError"}}}, ("KILLED", "CancelledError")),
    (3, {"said": {"failure": FAILURE}}, ("FAILED", "exit status 3")),
    (143, {"said": {"signal": "SIGTERM"}}, ("KILLED", "SIGTERM")),
    (5, {"signal": signal.SIGTERM}, ("KILLED", "SIGTERM")),
    (5, {"signal": signal.SIGINT}, ("FAILED", "exit status 5")),
    (130, {"signal": signal.SIGINT}, ("KILLED", "SIGINT")),
    (-9, {}, ("KILLED", "SIGKILL")),
    (-9, {"lacked_memory": True}, ("KILLED", OUT_OF_MEMORY)),
    (-11, {"lacked_memory": True}, ("KILLED", "SIGSEGV")),
    (-40, {}, ("KILLED", "signal 40")),
]


@pytest.mark.parametrize(("status", "more", "wanted"), ENDS)
def test_the_most_exact_reason_is_used(status, more, wanted):
    """The exit status comes first, then the supervisor's observations, then the job's; memory explains only SIGKILL."""
    found = ending.verdict(End(1, status, 0.0, **more))

    assert (None if found is None else (found.status, found.reason)) == wanted
