"""Files of a job in the state folder are private with any umask, as docs/security.md says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX file modes")

JOB = """
import os, sys
os.umask(0)
from pathlib import Path
import mlflow
from autogen_team import GlobalContext, MlflowService, AlertsService

uri, mode, end = sys.argv[1:]
Path("model.bin").write_bytes(b"weights")
service = MlflowService(tracking_uri=uri, mode=mode, autolog_disable=True)
context = GlobalContext(mlflow_service=service, alerts_service=AlertsService(enable=False))
with context, context.run("train", log_system_metrics=None):
    context.logger.info("begun")
    mlflow.log_param("customers", "secret")
    mlflow.log_artifact("model.bin")
    if end == "killed":
        os.kill(os.getpid(), 9)
"""


def below(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield the folder and everything in it, with the permission bits."""
    for path in [folder, *folder.rglob("*")]:
        yield path, path.stat().st_mode & 0o777


def is_private(path: Path, top: Path) -> bool:
    """Return whether the path, or a folder between it and the top, is private."""
    on_the_way = [each for each in (path, *path.parents) if each == top or top in each.parents]
    return any(each.stat().st_mode & 0o077 == 0 for each in on_the_way)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return the state folder of the test."""
    return tmp_path / "state"


def test_everything_is_in_the_folder_of_the_argument(run_python, store_uri, tmp_path, state):
    """The journal, the run's log and the locks are there, and nothing is in the folder of the variable."""
    job = JOB.replace("mode=mode,", f"mode=mode, state_dir={str(tmp_path / 'own')!r},")
    assert run_python("-c", job, store_uri, "online", "killed")[0] == -9

    assert {"journals", "logs", "locks"} <= {path.name for path in (tmp_path / "own").iterdir()}
    assert not state.exists()


def run_jobs(run_python, store_uri: str, dead_uri: str) -> None:
    """Run a job that is killed, and an offline job."""
    assert run_python("-c", JOB, store_uri, "online", "killed")[0] == -9
    status, _, err = run_python("-c", JOB, dead_uri, "offline", "")
    assert status == 0, err


def test_files_of_a_job_are_private(run_python, store_uri, free_port, state):
    """Journals, run logs, offline runs with their artifacts, and locks are private."""
    run_jobs(run_python, store_uri, f"http://127.0.0.1:{free_port()}")
    found = dict(below(state))

    names = {path.name for path in state.iterdir()}
    assert {"journals", "logs", "offline", "locks"} <= names
    for path, mode in found.items():
        assert mode == (0o700 if path.is_dir() else 0o600) or "offline" in path.parts or "files" in path.parts, path
        assert is_private(path, state), path
    assert found[state / "offline"] == 0o700


def test_an_open_state_folder_has_private_content(run_python, store_uri, free_port, state):
    """The folder's mode is not changed, its content is still private, and `doctor` reports the mode."""
    state.mkdir()
    state.chmod(0o755)
    run_jobs(run_python, store_uri, f"http://127.0.0.1:{free_port()}")

    assert state.stat().st_mode & 0o777 == 0o755
    for path, _ in below(state):
        assert path == state or is_private(path, state), path


def test_no_secret_of_a_store_is_written_into_the_state_folder(run_python, free_port, state):
    """The password is neither in a journal, nor beside an offline run, nor in its log."""
    status, _, err = run_python("-c", JOB, f"http://bob:hunter2-and-more@127.0.0.1:{free_port()}", "offline", "")

    assert status == 0, err
    files = [path for path, _ in below(state) if path.is_file()]
    assert len(files) > 3
    assert [path for path in files if b"hunter2-and-more" in path.read_bytes()] == []
