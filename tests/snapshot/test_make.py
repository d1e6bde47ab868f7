"""The process that takes a snapshot: its output and limits, and that it does not disturb the job."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from autogen_team._snapshot import machine, make, process
from testkit import corpus, repositories
from testkit.repositories import write

SECRET = "example-secret-value"


@pytest.fixture
def order(tmp_path: Path) -> Callable[..., process.Order]:
    """Return a function that returns an order for a snapshot of the working folder."""

    def make_order(**fields: object) -> process.Order:
        given = {
            "folder": str(tmp_path / "state/code/job"),
            "command": ["python", "train.py"],
            "cwd": str(Path.cwd()),
            "script": None,
            "executable": sys.executable,
            "python": "3.12.1",
            "path": [],
        }
        return process.Order(**{**given, **fields})

    return make_order


@pytest.fixture
def made(order: Callable[..., process.Order]) -> Callable[..., Path]:
    """Return a function that takes a snapshot in a separate process, and returns its folder."""

    def run(**fields: object) -> Path:
        given = order(**fields)
        assert process.make(given)
        return Path(given.folder)

    return run


def facts(folder: Path) -> dict:
    """Return the content of `run.json`."""
    return json.loads((folder / "run.json").read_text())


@pytest.fixture
def repository() -> Path:
    """Return the working folder as a repository with a change."""
    folder = repositories.make(Path.cwd(), {"train.py": "print(1)\n", ".gitignore": "ignored\n"})
    write(folder, {"train.py": "print(2)\n", "new.py": "x\n"})
    return folder


needs_git = pytest.mark.skipif(not repositories.has_git(), reason="git is not installed")


@needs_git
def test_the_facts_say_what_ran_and_where(repository, made, monkeypatch):
    """`run.json` has the code, command, interpreter, machine and scheduler ids."""
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("APPTAINER_CONTAINER", "/images/train.sif")
    folder = made(path=sys.path)

    assert sorted(path.name for path in folder.iterdir()) == ["changes.patch", "packages.txt", "run.json"]
    found = facts(folder)
    assert found["command"] == ["python", "train.py"]
    assert (found["python"]["version"], found["folder"]) == ("3.12.1", str(Path.cwd()))
    assert found["scheduler"]["SLURM_JOB_ID"] == "42"
    assert found["container"]["image"] == "/images/train.sif"
    assert found["machine"]["cpus"] == os.cpu_count()
    assert found["git"] | {"commit": "", "top": ""} == {
        "top": "",
        "folder": "",
        "remote": None,
        "branch": "main",
        "commit": "",
        "is_pushed": False,
        "config": {},
        "is_dirty": True,
        "changed": ["new.py", "train.py"],
        "submodules": {},
    }
    assert found["left_out"] == {}
    assert (folder / "packages.txt").read_text().startswith("# Python 3.12.1\n")
    assert "pytest==" in (folder / "packages.txt").read_text()


@needs_git
def test_a_clean_tree_has_no_patch(repository, made):
    """`dirty` is false."""
    repositories.git(repository, "add", "--all")
    repositories.git(repository, "commit", "--quiet", "-m", "all")
    folder = made()

    assert not (folder / "changes.patch").exists()
    assert facts(folder)["git"]["is_dirty"] is False


@needs_git
def test_the_repository_is_that_of_the_script(tmp_path, made):
    """The working folder's repository counts only for an installed program, or without a script."""
    here = repositories.make(Path.cwd(), {"a.py": "x\n"})
    there = repositories.make(tmp_path / "there", {"src/train.py": "x\n"})

    def top(script: Path | None, name: str) -> str:
        return facts(made(script=script and str(script), folder=str(tmp_path / name)))["git"]["top"]

    assert top(there / "src/train.py", "1") == str(there)
    assert top(None, "2") == str(here)
    assert top(there / ".venv/bin/torchrun", "3") == str(here)


def test_without_a_repository_the_rest_is_complete(made):
    """The missing patch is reported, and nothing is printed."""
    folder = made()

    assert facts(folder)["left_out"] == {"changes.patch": "the code is not in a git repository"}
    assert "git" not in facts(folder)


def test_without_git_the_rest_is_complete(made, monkeypatch, tmp_path, capfd):
    """Nothing is printed."""
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = made()

    assert facts(folder)["left_out"] == {"changes.patch": "git is not installed on this machine"}
    assert capfd.readouterr() == ("", "")


@needs_git
def test_a_lock_file_of_the_project_is_kept(repository, made):
    """The lock file may be in the folder or in a parent inside the repository."""
    write(repository, {"uv.lock": f"url = 'https://ada:{SECRET}@host/simple'\n", "src/a.py": ""})
    folder = made(cwd=str(repository / "src"))

    assert (folder / "uv.lock").read_text() == "url = 'https://ada:***@host/simple'\n"
    assert list(facts(folder)["locks"]) == [str(repository / "uv.lock")]


def test_cells_are_kept_as_a_script(made):
    """Cells are written in Jupytext's format."""
    folder = made(cells=[(1, "import x"), (3, f"key = '{corpus.KEYS['openai']}'")], notebook="a.ipynb")

    assert (folder / "cells.py").read_text() == "# %% [1]\nimport x\n\n# %% [3]\nkey = '***'\n"
    assert facts(folder)["notebook"] == "a.ipynb"


@needs_git
def test_a_snapshot_contains_no_secret(repository, made, monkeypatch):
    """Secrets of the environment and of the command line, and those added by the job, are masked."""
    monkeypatch.setenv("DB_PASSWORD", SECRET)
    write(repository, {"new.py": f"a = '{SECRET}'\nb = 'correct-horse'\nc = 'my-own-7'\n", f"{SECRET}.txt": "x\n"})
    repositories.git(repository, "remote", "add", "origin", f"https://ada:{SECRET}@host/a.git")
    folder = made(
        command=["train.py", "--password", "battery-staple", "--db=x", f"--note={SECRET}", "--api-key=staple-7"],
        secrets=["correct-horse"],
        patterns=[r"my-own-\d"],
    )

    shown = "".join(path.read_text() for path in folder.iterdir())
    assert [one for one in (SECRET, "correct-horse", "my-own-7", "battery-staple", "staple-7") if one in shown] == []
    assert facts(folder)["command"] == ["train.py", "--password", "***", "--db=x", "--note=***", "--api-key=***"]


def test_the_folder_is_for_its_owner_only(made):
    """The folder is private, like the journal."""
    folder = made()

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@needs_git
def test_a_snapshot_has_a_limited_size(repository, made):
    """A snapshot has at most one megabyte; omitted files are listed."""
    lines = [f"{number}-{number * 7919}" for number in range(60_000)]
    write(repository, {f"{name}.py": "\n".join(lines) for name in "abc"} | {"uv.lock": "x\n" * 300_000})
    folder = made()

    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_100_000
    left_out = facts(folder)["left_out"]
    assert "the snapshot would exceed 1000000 bytes" in left_out.values()
    assert b"this patch is incomplete: run.json lists" in (folder / "changes.patch").read_bytes()


@needs_git
def test_a_snapshot_is_taken_apart_from_the_job(repository, made, tmp_path):
    """The process has a low priority, a CPU limit and its own session."""
    write(repository, {".gitattributes": "new.py filter=look\n"})
    look = f"nice > {tmp_path}/nice; ulimit -t > {tmp_path}/limit; ps -o sid= -p $$ > {tmp_path}/session; cat"
    repositories.git(repository, "config", "filter.look.clean", look)
    made()

    assert int((tmp_path / "nice").read_text()) >= min(19, os.nice(0) + 10)
    assert int((tmp_path / "limit").read_text()) <= 3
    assert int((tmp_path / "session").read_text()) != os.getsid(0)


@needs_git
@pytest.mark.parametrize("spin", ["while :; do :; done", "kill -XCPU $$"], ids=["our clock", "the kernel's"])
def test_a_patch_that_takes_too_long_is_left_out(repository, made, spin):
    """The limit is two seconds of CPU time, in a filter or in git, by either clock; the rest is complete."""
    write(repository, {".gitattributes": "new.py filter=spin\n"})
    repositories.git(repository, "config", "filter.spin.clean", spin)
    folder = made()

    assert "CPU time" in facts(folder)["left_out"]["changes.patch"]
    assert (folder / "packages.txt").exists()


def test_the_job_gets_no_child(made):
    """A job that waits for all its children does not wait for this process."""
    before = psutil.Process().children()
    made()

    assert set(psutil.Process().children()) <= set(before)


def test_old_snapshots_of_dead_jobs_are_removed(made, tmp_path):
    """Such a job was killed and never recovered."""
    old, new = tmp_path / "state/code/old", tmp_path / "state/code/new"
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (time.time() - 30 * 86_400,) * 2)
    made()

    assert (old.exists(), new.exists()) == (False, True)


def test_without_an_executable_there_is_no_snapshot(order, monkeypatch):
    """An embedded Python has no executable of its own."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")

    assert process.make(order()) is False


def test_a_snapshot_that_fails_is_not_an_error_of_the_job(order, tmp_path, capfd):
    """Nothing is printed if the folder cannot be written, for example."""
    (tmp_path / "state").write_text("a file")

    assert process.make(order()) is False
    assert capfd.readouterr() == ("", "")


SMI = """#!/bin/sh
echo "0, NVIDIA H200, 143771, GPU-1234, 570.86.15"
echo "1, NVIDIA H200, [N/A], GPU-5678, 570.86.15"
"""


def test_gpus_and_their_driver_are_recorded(monkeypatch, tmp_path):
    """The list is that of nvidia-smi."""
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    assert machine.gpus() == {
        "driver": "570.86.15",
        "devices": [
            {"index": "0", "name": "NVIDIA H200", "memory_mib": 143771, "uuid": "GPU-1234"},
            {"index": "1", "name": "NVIDIA H200", "memory_mib": None, "uuid": "GPU-5678"},
        ],
    }
    program.write_text("#!/bin/sh\nexit 9\n")
    assert machine.gpus() == {"problem": "nvidia-smi: CalledProcessError"}


def test_the_scheduler_is_recorded_by_its_variables():
    """Other variables of the environment are not stored."""
    environment = {
        "SLURM_JOB_ID": "1",
        "SLURM_ARRAY_TASK_ID": "2",
        "SKYPILOT_TASK_ID": "sky-3",
        "RANK": "0",
        "SLURM_JWT": "secret",
        "HOME": "/home/ada",
    }

    assert list(machine.scheduler(environment)) == ["RANK", "SKYPILOT_TASK_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID"]


def test_masked_commands_stay_commands():
    """Only values are masked."""
    mask = make.Redactor({})

    assert make.masked_command(["a", "--token", "-x", "--secret-key", "abc", "b"], mask) == [
        *("a", "--token", "-x", "--secret-key", "***", "b"),
    ]
