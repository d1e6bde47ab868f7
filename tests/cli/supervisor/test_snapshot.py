"""Snapshots of `autogen-team run`, and code that it refuses to run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlflow
import pytest

from testkit import repositories

pytestmark = [
    pytest.mark.usefixtures("forked_children"),
    pytest.mark.usefixtures("snapshots"),
    pytest.mark.skipif(not repositories.has_git(), reason="git is not installed"),
]


@pytest.fixture
def repository(store_uri) -> Path:
    """Return the working folder as a repository."""
    folder = repositories.make(Path.cwd())
    repositories.write(folder, {"job.py": "print(1)\n", "package/job.py": "print(2)\n", "package/__init__.py": ""})
    repositories.git(folder, "add", "job.py", "package")
    repositories.git(folder, "commit", "--quiet", "-m", "first")
    return folder


@pytest.fixture
def code(the_run, store_uri):
    """Return a function that reads a file of the snapshot of the run."""

    def read(name: str) -> str:
        path = mlflow.MlflowClient(store_uri).download_artifacts(the_run().info.run_id, f"code/{name}")
        return Path(path).read_text()

    return read


PYTHON = "import mlflow; mlflow.start_run(); mlflow.log_metric('a', 1)"
CONTEXT = "from autogen_team import GlobalContext\nwith GlobalContext() as c, c.run('x') as run: print(run.info.run_id)"
TARGETS = {
    "a script": ["job.py", "--epochs", "3"],
    "a module": ["-m", "package.job"],
    "a command": ["--", "sh", "-c", "echo 3"],
    "a command that tracks": ["--", sys.executable, "-c", PYTHON],
    "a command with a context": ["--", sys.executable, "-c", CONTEXT],
}


@pytest.mark.parametrize("words", TARGETS.values(), ids=TARGETS)
def test_the_commit_and_the_changes_are_recorded(repository, supervised, the_run, code, words):
    """They are recorded for any target, with the original command line."""
    repositories.write(repository, {"job.py": "print('changed')\n"})
    ended = supervised("--no-system-metrics", *words)

    assert ended.returncode == 0, ended.stderr
    tags = the_run().data.tags
    assert tags["mlflow.source.git.commit"] == repositories.git(repository, "rev-parse", "HEAD")
    assert tags["autogen_team.dirty"] == "true"
    facts = json.loads(code("run.json"))
    assert facts["command"] == ["autogen-team", "run", "--no-system-metrics", *words]
    assert facts["git"]["changed"] == ["job.py"]
    assert "+print('changed')" in code("changes.patch")


def test_changes_by_the_job_are_not_in_the_snapshot(repository, supervised, code):
    """The supervisor starts the snapshot before it imports MLflow, and the job starts later."""
    script = "import pathlib, time\ntime.sleep(2)\npathlib.Path('job.py').write_text('too late')\n"
    repositories.write(repository, {"job.py": script})
    ended = supervised("--no-system-metrics", "job.py")

    assert ended.returncode == 0, ended.stderr
    assert "+time.sleep(2)" in code("changes.patch")
    assert "+too late" not in code("changes.patch")


def test_a_job_that_dies_at_once_keeps_its_code(repository, supervised, the_run, code):
    """The supervisor uploads the snapshot."""
    repositories.write(repository, {"job.py": "import os\nos.kill(os.getpid(), 9)\n"})
    ended = supervised("--no-system-metrics", "job.py")

    assert ended.returncode == 137
    assert the_run().info.status == "KILLED"
    assert "+os.kill" in code("changes.patch")
    assert the_run().data.tags["autogen_team.dirty"] == "true"


def test_without_a_repository_nothing_is_printed(supervised, script, code):
    """In a folder without a repository, the snapshot has no patch, and git is not mentioned."""
    ended = supervised("--no-system-metrics", "--set", "alert_on=never", script("print(1)"))

    assert ended.returncode == 0
    assert b"git" not in ended.stderr
    assert json.loads(code("run.json"))["left_out"] == {"changes.patch": "the code is not in a git repository"}


def test_code_that_is_not_committed_is_refused(repository, supervised):
    """The message lists the files, and no run is created; stores of runs do not count as code."""
    repositories.write(repository, {"job.py": "print('changed')\n", "new file.py": "x\n", "mlruns/1/meta.yaml": "x"})
    ended = supervised("--require-clean", "job.py")

    commit = repositories.git(repository, "rev-parse", "HEAD")[:12]
    assert ended.returncode == 125
    assert ended.stderr.decode() == (
        f"error: --require-clean: 2 files differ from the commit {commit}; commit them, or add them to .gitignore:\n"
        "  job.py\n  new file.py\n"
    )
    assert ended.stdout == b""


def test_code_that_is_committed_is_run(repository, supervised, the_run, monkeypatch):
    """The variable has the same effect as the option."""
    monkeypatch.setenv("AUTOGEN_TEAM_RUN_REQUIRE_CLEAN", "true")
    ended = supervised("--no-system-metrics", "job.py")

    assert (ended.returncode, ended.stdout) == (0, b"1\n"), ended.stderr
    assert the_run().data.tags["autogen_team.dirty"] == "false"


@pytest.mark.parametrize("words", [["job.py"], ["-m", "job"], ["--", "true"]])
def test_code_outside_a_repository_is_refused(supervised, script, words):
    """Without a repository, the code cannot be identified."""
    script("print(1)")
    ended = supervised("--require-clean", *words)

    assert ended.returncode == 125
    assert ended.stderr == b"error: --require-clean: the code is not in a git repository, so it has no commit\n"


def test_a_repository_without_a_commit_is_refused(supervised, script):
    """Without a commit, changes cannot be determined."""
    script("print(1)")
    repositories.make(Path.cwd())
    ended = supervised("--require-clean", "job.py")

    assert (ended.returncode, b"there are no commits" in ended.stderr) == (125, True)


def test_without_git_code_is_refused(repository, supervised, monkeypatch, tmp_path):
    """Without git, the state of the code is unknown."""
    monkeypatch.setenv("PATH", str(tmp_path))
    ended = supervised("--require-clean", "job.py")

    assert (ended.returncode, b"git is not installed on this machine" in ended.stderr) == (125, True)
