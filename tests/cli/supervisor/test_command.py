"""Any command can be supervised, not only Python."""

from __future__ import annotations

import signal
import sys

import pytest

REASON = "autogen_team.exception"


def test_a_command_finds_the_run_in_its_environment(supervised, the_run, the_output):
    """Plain MLflow in any child process logs to that run."""
    code = "import mlflow; mlflow.start_run(); mlflow.log_metric('loss', 0.5); print(mlflow.active_run().info.run_id)"
    ended = supervised("--name", "mine", "--", "sh", "-c", f'"{sys.executable}" -c "{code}"; echo words')

    assert ended.returncode == 0, ended.stderr
    run = the_run()
    assert ended.stdout.decode().splitlines() == [run.info.run_id, "words"]
    assert (run.info.run_name, run.info.status, run.data.metrics) == ("mine", "FINISHED", {"loss": 0.5})
    assert "words" in the_output()


@pytest.mark.parametrize(
    ("words", "expected"), [([], "id"), (["--experiment-name=other"], ""), (["--experiment-id", "7"], "")]
)
def test_the_experiment_is_given_once(supervised, words, expected):
    """`mlflow run` rejects an experiment given twice, by options or variables."""
    script = 'echo "${MLFLOW_EXPERIMENT_ID:+id}${MLFLOW_EXPERIMENT_NAME:+name}"'
    ended = supervised("--experiment", "mine", "--", "sh", "-c", script, "sh", *words)

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.decode() == f"{expected}\n"


@pytest.mark.parametrize(
    ("command", "status", "recorded", "reason"),
    [
        ("exit 0", 0, "FINISHED", None),
        ("exit 3", 3, "FAILED", "exit status 3"),
        ("kill -9 $$", 137, "KILLED", "SIGKILL"),
        ("kill -TERM $$", 143, "KILLED", "SIGTERM"),
        ("kill -35 $$", 163, "KILLED", "signal 35"),
    ],
)
def test_the_run_ends_like_the_command(supervised, the_run, command, status, recorded, reason):
    """The run has the command's exit status or the signal that ended it."""
    ended = supervised("--", "sh", "-c", command)

    assert ended.returncode == status, ended.stderr
    told = the_run().data.tags.get(REASON)
    if told is not None:
        told = told.split(",")[0]  # another test may have caused a lack of memory at the same time
    assert (the_run().info.status, told) == (recorded, reason)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--", "no-such-command"], 127, "command 'no-such-command' not found"),
        (["--", "./data.txt"], 126, "'./data.txt' is not executable"),
        (["sh", "-c", "true"], 2, "to run a command, put -- before it: autogen-team run -- sh"),
    ],
)
def test_a_command_that_cannot_be_run_is_reported_as_by_a_shell(supervised, script, words, status, message):
    """The messages are those of a shell, and no run is created."""
    script("words", "data.txt")

    ended = supervised(*words)

    assert (ended.returncode, ended.stdout) == (status, b"")
    assert message in ended.stderr.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_reaches_the_command(start_python, the_run, number):
    """The command gets the signal once, and decides how it ends."""
    name = number.name.removeprefix("SIG")
    wait = "while true; do sleep 0.05; done"
    command = f"n=0; trap 'n=$((n+1)); echo got $n; sleep 0.3; exit 5' {name}; echo ready; {wait}"
    process = start_python("-m", "autogen_team", "run", "--", "bash", "-c", command)
    process.wait_for("ready")
    process.send(number)
    status, out, err = process.finish()

    assert status == 5, err
    assert out.splitlines()[0] == "got 1"
    expected = ("KILLED", "SIGTERM") if number is signal.SIGTERM else ("FAILED", "exit status 5")
    assert (the_run().info.status, the_run().data.tags[REASON]) == expected


def test_a_double_dash_after_the_target_is_an_argument(supervised, script):
    """Only `--` before the target introduces a command."""
    ended = supervised(script("import sys; print(sys.argv[1:])"), "--", "x")

    assert ended.stdout == b"['--', 'x']\n", ended.stderr


def test_a_script_that_the_system_cannot_execute_is_126(supervised, the_run, tmp_path):
    """The file is executable without an interpreter line; a shell would guess one."""
    job = tmp_path / "job.sh"
    job.write_text("echo hello\n")
    job.chmod(0o700)

    ended = supervised("--", str(job))

    assert ended.returncode == 126
    assert b"cannot be executed: Exec format error" in ended.stderr
    assert b"Traceback" not in ended.stderr
    assert the_run().info.status == "FAILED"
