"""Undelivered data on this machine, as a table and as JSON."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import mlflow

from autogen_team.io.services import MlflowService

STATUS = ("-m", "autogen_team", "status")
JOB = (
    "from autogen_team.io.services import MlflowService; import mlflow\n"
    "service = MlflowService(autolog_disable=True)\n"
    "with service, service.run_context(service.RunConfig(name='train', log_system_metrics=False)):\n"
    "    mlflow.log_metric('loss', 1.0)\n"
    "    print('ready', flush=True); input()\n"
)


def test_an_empty_state_folder_is_reported(run_python):
    """The message on stderr names the folder."""
    status, out, err = run_python(*STATUS)

    assert (status, out) == (0, "")
    assert "none wait in" in err
    assert json.loads(run_python(*STATUS, "--json")[1]) == {"journals": [], "offline": []}


def test_a_dotenv_that_is_not_utf_8_is_one_line(run_python):
    """The error is one line, as with other commands."""
    Path(".env").write_bytes(b"NAME=caf\xe9\n")
    status, out, err = run_python(*STATUS)

    assert (status, out) == (2, "")
    assert err.startswith("error: .env is not valid UTF-8")
    assert err.count("\n") == 1


def test_a_running_job_is_alive(store_uri, start_python, run_python):
    """The row has the open run, host, process and store."""
    job = start_python("-c", JOB, stdin=subprocess.PIPE)
    job.wait_for("ready")
    _, out, err = run_python(*STATUS)
    (found,) = json.loads(run_python(*STATUS, "--json")[1])["journals"]
    job.finish("go on\n")

    (line,) = [line for line in out.splitlines() if "train (open)" in line]
    assert f"{job.popen.pid}" in line, err
    assert "alive" in line
    assert store_uri in line
    assert (found["state"], found["open_runs"][0]["name"]) == ("alive", "train")
    assert run_python(*STATUS)[1] == ""


def test_offline_runs_are_listed_with_their_destination(free_port, run_python):
    """The server's URL is shown without a password."""
    uri = f"http://bob:hunter2-hunter2@127.0.0.1:{free_port()}"
    service = MlflowService(tracking_uri=uri, mode="offline", autolog_disable=True)
    with service, service.run_context(service.RunConfig(name="train", log_system_metrics=False)):
        mlflow.log_metric("loss", 1.0)
    _, out, _ = run_python(*STATUS)

    assert "bob:***@" in out
    assert "hunter2" not in out


def test_mlflow_is_not_imported(run_python):
    """Without importing MLflow the command is fast."""
    code = (
        "import sys; sys.argv = ['autogen-team', 'status']\n"
        "from autogen_team.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('mlflow', 'sqlalchemy', 'apprise') if name in sys.modules])"
    )

    assert run_python("-c", code, fresh=True)[1] == "[]\n"
