"""`autogen-team reproduce`: restore the code and packages of a run, without running it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from autogen_team._snapshot import process
from testkit import corpus, forkserver, repositories
from testkit.repositories import git, write

pytestmark = pytest.mark.skipif(not repositories.has_git(), reason="git is not installed")


@pytest.fixture(autouse=True)
def plain_git(store_uri, monkeypatch):
    """Provide a store, and git without the user's settings."""
    for name, value in repositories.PLAIN.items():
        monkeypatch.setenv(name, value)
    for name, value in {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "protocol.file.allow",
        "GIT_CONFIG_VALUE_0": "always",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository with a change."""
    folder = repositories.make(tmp_path / "project", {"train.py": "print(1)\n", "src/a.py": "x\n"})
    write(folder, {"train.py": "print(2)\n", "src/new.py": "y\n"})
    return folder


@pytest.fixture
def record(store_uri, tmp_path) -> Callable[..., mlflow.entities.Run]:
    """Return a function that creates a run with the snapshot of a folder, as a job does."""
    client = mlflow.MlflowClient(store_uri)

    def make(
        folder: Path, name: str = "train", *, packages: str | None = None, **fields: object
    ) -> mlflow.entities.Run:
        found = client.get_experiment_by_name("autogen_team")
        experiment = found.experiment_id if found else client.create_experiment("autogen_team")
        run = client.create_run(experiment, run_name=name)
        given = {
            "folder": str(tmp_path / "code" / run.info.run_id),
            "command": ["python", str(folder / "train.py"), "--epochs", "3"],
            "cwd": str(folder),
            "script": str(folder / "train.py"),
            "executable": sys.executable,
            "python": ".".join(map(str, sys.version_info[:3])),
            "path": [],
            **fields,
        }
        assert process.make(process.Order(**given))
        if packages is not None:
            Path(given["folder"], "packages.txt").write_text(packages)
        client.log_artifacts(run.info.run_id, given["folder"], "code")
        return run

    return make


@pytest.fixture
def reproduce() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs the command, by default without a venv."""

    def run(*words: str, venv: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
        arguments = ["-m", "autogen_team", "reproduce", *words, *([] if venv else ["--no-venv"])]
        given = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "env": {**os.environ, **environment},
        }
        with forkserver.popen(arguments, **given) as popen:
            out, err = popen.communicate(timeout=90)
        return subprocess.CompletedProcess(words, popen.returncode, out, err)

    return run


def test_the_code_of_a_run_is_restored(repository, record, reproduce):
    """Files are restored byte by byte in a new folder; the command is printed, not run."""
    run = record(repository)
    ended = reproduce(run.info.run_id, "--into", "again")

    assert ended.returncode == 0, ended.stderr
    again = Path("again").absolute()
    assert repositories.tree(again) == repositories.tree(repository)
    assert ended.stdout == f"cd {again} && python {again}/train.py --epochs 3\n"
    assert ended.stderr == f"run   train ({run.info.run_id})\ncode  {again}\n"
    assert git(again, "rev-parse", "HEAD") == git(repository, "rev-parse", "HEAD")


def test_a_run_is_found_by_its_name(repository, record, reproduce):
    """The last run of that name is used, and the folder is named after it."""
    record(repository, "nightly train")
    write(repository, {"train.py": "print(3)\n"})
    run = record(repository, "nightly train")
    ended = reproduce("nightly train")

    assert ended.returncode == 0, ended.stderr
    assert Path(f"nightly-train-{run.info.run_id[:8]}/train.py").read_text() == "print(3)\n"


def test_the_command_is_for_the_same_folder(repository, record, reproduce):
    """If the job was started in a subfolder, the command changes to it."""
    run = record(repository, cwd=str(repository / "src"), command=["autogen-team", "run", "-m", "a b"])
    ended = reproduce(run.info.run_id, "--into", "again")

    assert ended.stdout == f"cd {Path('again/src').absolute()} && autogen-team run -m 'a b'\n"
    assert json.loads(reproduce(run.info.run_id, "--into", "as json", "--json").stdout) == {
        "run": run.info.run_id,
        "code": str(Path("as json").absolute()),
        "folder": str(Path("as json/src").absolute()),
        "command": ["autogen-team", "run", "-m", "a b"],
    }


def test_the_repository_is_cloned_from_its_remote(repository, record, reproduce, tmp_path):
    """On another machine, the job's folder does not exist."""
    remote = tmp_path / "remote.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(repository), str(remote))
    git(repository, "remote", "add", "origin", str(remote))
    run = record(repository)
    expected = repositories.tree(repository)
    repository.rename(tmp_path / "gone")
    ended = reproduce(run.info.run_id, "--into", "again")

    assert ended.returncode == 0, ended.stderr
    assert repositories.tree(Path("again")) == expected


def test_a_commit_that_was_never_pushed_is_reported(repository, record, reproduce, tmp_path):
    """The message has the place where the commit was."""
    remote = tmp_path / "remote.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(repository), str(remote))
    git(repository, "remote", "add", "origin", str(remote))
    git(repository, "commit", "--quiet", "-am", "not pushed")
    run = record(repository)
    repository.rename(tmp_path / "gone")
    ended = reproduce(run.info.run_id, "--into", "again")

    assert ended.returncode == 1
    assert "and was not pushed when the job ran" in ended.stderr


def test_a_clean_clone_is_used_as_it_is(repository, record, reproduce, tmp_path):
    """The commit is checked out in the clone; a clone with changes is refused."""
    run = record(repository)
    git(tmp_path, "clone", "--quiet", str(repository), str(tmp_path / "clone"))
    (tmp_path / "clone/train.py").write_text("mine\n")
    refused = reproduce(run.info.run_id, "--into", str(tmp_path / "clone"))
    git(tmp_path / "clone", "checkout", "--quiet", "train.py")
    ended = reproduce(run.info.run_id, "--into", str(tmp_path / "clone"))

    assert (refused.returncode, "has uncommitted changes" in refused.stderr) == (1, True)
    assert ended.returncode == 0, ended.stderr
    assert repositories.tree(tmp_path / "clone") == repositories.tree(repository)


def test_a_folder_with_other_files_is_refused(repository, record, reproduce):
    """Existing files are not changed."""
    write(Path("again"), {"mine.txt": "x"})
    ended = reproduce(record(repository).info.run_id, "--into", "again")

    assert (ended.returncode, "neither empty nor a clone" in ended.stderr) == (1, True)
    assert [path.name for path in Path("again").iterdir()] == ["mine.txt"]


def test_submodules_are_restored_with_their_changes(repository, record, reproduce, tmp_path):
    """Submodules are cloned as by `git clone --recurse-submodules`."""
    lib = repositories.make(tmp_path / "lib", {"lib.py": "lib = 1\n"})
    git(repository, "submodule", "--quiet", "add", str(lib), "lib")
    git(repository, "commit", "--quiet", "-m", "lib")
    write(repository, {"lib/lib.py": "lib = 2\n"})
    ended = reproduce(record(repository).info.run_id, "--into", "again")

    assert ended.returncode == 0, ended.stderr
    assert repositories.tree(Path("again")) == repositories.tree(repository)


def test_line_endings_are_those_of_the_job(repository, record, reproduce):
    """Line endings of unchanged files follow core.autocrlf; .gitattributes may be one of the changes."""
    git(repository, "config", "core.autocrlf", "true")
    write(
        repository,
        {"src/a.py": "x\r\n", "b.txt": "a\r\nb\r\n", "c.txt": "a\nb\n", ".gitattributes": "c.txt eol=lf\r\n"},
    )
    ended = reproduce(record(repository).info.run_id, "--into", "again")

    assert ended.returncode == 0, ended.stderr
    here, there = repositories.tree(repository), repositories.tree(Path("again"))
    assert {name: there[name] for name in ("src/a.py", "b.txt", "c.txt", ".gitattributes")} == {
        name: here[name] for name in ("src/a.py", "b.txt", "c.txt", ".gitattributes")
    }


def test_without_a_commit_the_patch_is_the_whole_code(record, reproduce, tmp_path):
    """A new repository is created."""
    folder = repositories.make(tmp_path / "project")
    write(folder, {"train.py": "print(1)\n"})
    ended = reproduce(record(folder).info.run_id, "--into", "again")

    assert ended.returncode == 0, ended.stderr
    assert repositories.tree(Path("again")) == repositories.tree(folder)


def test_masked_and_omitted_content_is_reported(repository, record, reproduce):
    """A file whose patch does not apply stays as committed."""
    key = corpus.KEYS["openai"]
    write(repository, {"a.py": f"key = '{key}'\n"})
    git(repository, "add", "a.py")
    git(repository, "commit", "--quiet", "-m", "a secret")
    write(repository, {"a.py": "key = None\n", "b.py": f"key = '{key}'\n", "c.bin": os.urandom(2_000_000)})
    run = record(repository, command=["python", "train.py", "--token", "abc"])
    ended = reproduce(run.info.run_id, "--into", "again")

    assert ended.returncode == 0, ended.stderr
    assert "a.py: not applied, because a masked secret" in ended.stderr
    assert "b.py: has *** in place of a secret" in ended.stderr
    assert "c.bin: not kept: 2000000 bytes exceed the limit" in ended.stderr
    assert "replace ***" in ended.stderr
    assert Path("again/a.py").read_text() == f"key = '{key}'\n"
    assert Path("again/b.py").read_text() == "key = '***'\n"


WRONG = {"no-such-run": "there is no run with this id or name", "f" * 32: "cannot be read"}


@pytest.mark.parametrize("wanted", WRONG)
def test_an_unknown_run_is_reported(reproduce, wanted):
    """A run is looked up by id or name."""
    ended = reproduce(wanted)

    assert (ended.returncode, ended.stdout) == (1, "")
    assert WRONG[wanted] in ended.stderr


def test_a_run_without_code_is_reported(reproduce, store_uri):
    """A run of plain MLflow has no code, for example."""
    mlflow.MlflowClient(store_uri).create_run("0", run_name="plain")
    ended = reproduce("plain")

    assert ended.returncode == 1
    assert "run 'plain' cannot be read: it has no code/run.json" in ended.stderr
    assert not list(Path.cwd().glob("plain-*"))


def test_code_outside_a_repository_is_reported(reproduce, record, tmp_path):
    """Such code was not stored."""
    (tmp_path / "nowhere").mkdir()
    ended = reproduce(record(tmp_path / "nowhere").info.run_id)

    assert ended.returncode == 1
    assert "was not kept: the code is not in a git repository" in ended.stderr


def wheel(folder: Path, name: str, version: str) -> Path:
    """Create a wheel with one module, and return it."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    place = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"version = '{version}'\n",
        f"{place}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{place}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }

    def row(name: str, text: str) -> str:
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        return f"{name},sha256={digest},{len(text)}\n"

    files[f"{place}/RECORD"] = "".join(row(*item) for item in files.items()) + f"{place}/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name_, text in files.items():
            archive.writestr(name_, text)
    return path


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_the_packages_are_installed(repository, record, reproduce, tmp_path, installer):
    """The installer is uv if available, otherwise pip; the command uses the venv. Missing files are reported."""
    (tmp_path / "bin").mkdir()
    for program in ("git", "python3", "env"):
        (tmp_path / "bin" / program).symlink_to(subprocess.check_output(["which", program], text=True).strip())
    if installer == "uv":
        uv = Path(__file__).parents[2] / ".venv-uv/bin/uv"
        if not uv.exists():
            pytest.skip("uv is not installed")
        (tmp_path / "bin/uv").symlink_to(uv)
    made = wheel(tmp_path, "example_tool", "1.5")
    packages = f"# Python 3\nexample_tool @ {made.as_uri()}\ngone @ file:///nowhere/gone.whl\n"
    run = record(repository, packages=packages)
    ended = reproduce(run.info.run_id, "--into", "again", venv=True, PATH=str(tmp_path / "bin"))

    assert ended.returncode == 0, ended.stderr
    assert "gone @ file:///nowhere/gone.whl: not installed: /nowhere/gone.whl does not exist" in ended.stderr
    python = Path("again/.venv/bin/python").absolute()
    found = subprocess.check_output([python, "-c", "import example_tool; print(example_tool.version)"], text=True)
    assert found == "1.5\n"
    assert ended.stdout == f"cd {Path('again').absolute()} && {python} {Path('again').absolute()}/train.py --epochs 3\n"
    assert git(Path("again"), "status", "--porcelain", "--untracked-files=all", "--", ".venv") == ""


def test_a_package_that_cannot_be_installed_is_reported(repository, record, reproduce):
    """The message has the installer's error, and the code is restored."""
    run = record(repository, packages="no-such-package-of-ours @ file:///dev/null\n")
    ended = reproduce(run.info.run_id, "--into", "again", venv=True)

    assert ended.returncode == 1
    assert "failed: " in ended.stderr
    assert Path("again/train.py").read_text() == "print(2)\n"


def test_an_editable_install_uses_the_new_folder(repository, tmp_path):
    """The project itself is installed from the new folder, other repositories at their commit."""
    from autogen_team.cli.reproduce import _Again

    facts = {"git": {"top": "/old/project"}, "installed_in_place": {"My_Project": "/old/project/src"}}
    again = _Again(None, tmp_path, facts, Path("/new"))

    assert again._requirements(
        [
            "-e git+ssh://git@host/a.git@abc#egg=my_project&subdirectory=src",
            "-e git+https://host/b.git@def#egg=other&subdirectory=c",
            "numpy==2.0",
        ]
    ) == ["-e /new/src", "other @ git+https://host/b.git@def#subdirectory=c", "numpy==2.0"]


def test_the_command_can_be_pasted_into_a_shell(repository, record, reproduce):
    """Arguments are quoted for the shell."""
    words = ["python", "train.py", "a b", "$HOME", "it's"]
    ended = reproduce(record(repository, command=words).info.run_id, "--into", "again")

    assert shlex.split(ended.stdout.partition(" && ")[2]) == words
