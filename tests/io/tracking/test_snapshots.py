"""A snapshot of the code is stored with the job's run, once, and the job does not wait for it."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from pathlib import Path

import mlflow
import psutil
import pytest

from autogen_team import GlobalContext
from autogen_team._capture import snapshots as engine
from autogen_team._snapshot import process
from testkit import repositories

pytestmark = [
    pytest.mark.usefixtures("forked_children"),
    pytest.mark.usefixtures("snapshots"),
    pytest.mark.skipif(not repositories.has_git(), reason="git is not installed"),
]
FILES = ["code/changes.patch", "code/packages.txt", "code/run.json"]
JOB = """
import os, signal, sys, time, mlflow
from autogen_team import GlobalContext
"""


@pytest.fixture
def folder(store_uri: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, a repository with a change that contains the store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    monkeypatch.setenv("AUTOGEN_TEAM_ALERTS_ENABLE", "false")
    monkeypatch.setenv("AUTOGEN_TEAM_MLFLOW_AUTOLOG_DISABLE", "true")
    found = repositories.make(Path.cwd(), None)
    repositories.write(found, {"train.py": "print(1)\n"})
    repositories.git(found, "add", "train.py")
    repositories.git(found, "commit", "--quiet", "-m", "first")
    repositories.write(found, {"train.py": "print(2)\n"})
    return found


def artifacts(store_uri: str, run_id: str) -> list[str]:
    """Return the files of the snapshot of a run."""
    return sorted(found.path for found in mlflow.MlflowClient(store_uri).list_artifacts(run_id, "code"))


def runs(store_uri: str) -> dict[str, mlflow.entities.Run]:
    """Return the runs of a store by their names."""
    client = mlflow.MlflowClient(store_uri)
    experiments = [one.experiment_id for one in client.search_experiments()]
    return {run.info.run_name: run for run in client.search_runs(experiments)}


def read(store_uri: str, run_id: str, name: str) -> str:
    """Return a file of the snapshot of a run."""
    return Path(mlflow.MlflowClient(store_uri).download_artifacts(run_id, f"code/{name}")).read_text()


def test_a_run_has_its_code(folder, store_uri, tmp_path):
    """The run has patch, packages and facts as files, and the commit and its state as tags; nothing stays on disk."""
    with GlobalContext() as context, context.run("train") as run:
        pass

    run_id = run.info.run_id
    assert artifacts(store_uri, run_id) == FILES
    assert "+print(2)" in read(store_uri, run_id, "changes.patch")
    tags = runs(store_uri)["train"].data.tags
    assert tags["autogen_team.dirty"] == "true"
    assert tags["mlflow.source.git.commit"] == repositories.git(folder, "rev-parse", "HEAD")
    assert list((tmp_path / "state/code").iterdir()) == []


def test_snapshots_can_be_disabled(folder, store_uri, tmp_path, monkeypatch):
    """Without a snapshot no process is started."""
    monkeypatch.setenv("AUTOGEN_TEAM_MLFLOW_SNAPSHOT", "false")
    monkeypatch.setattr(process, "make", lambda _: pytest.fail("a process was started"))
    with GlobalContext() as context, context.run("train") as run:
        pass

    assert artifacts(store_uri, run.info.run_id) == []
    assert "autogen_team.dirty" not in runs(store_uri)["train"].data.tags
    assert not (tmp_path / "state/code").exists()


def test_only_runs_of_the_job_have_a_snapshot(folder, store_uri):
    """Child runs have none; a second run of the job gets the same snapshot."""
    made = []
    with pytest.MonkeyPatch.context() as patch:
        make = process.make
        patch.setattr(process, "make", lambda order: made.append(order) or make(order))
        with GlobalContext() as context:
            with context.run("first"), context.run("child", nested=True):
                pass
            with context.run("second"):
                pass

    found = {name: artifacts(store_uri, run.info.run_id) for name, run in runs(store_uri).items()}
    assert found == {"first": FILES, "child": [], "second": FILES}
    assert len(made) == 1


def test_workers_take_no_snapshot(folder, store_uri, start_python):
    """Workers add a snapshot neither to their child runs nor to the job's run."""
    job = (
        "import multiprocessing\nfrom concurrent.futures import ProcessPoolExecutor\n"
        "def fold(number):\n    mlflow.log_metric('a', number)\n"
        "if __name__ == '__main__':\n"
        "    spawn = multiprocessing.get_context('spawn')\n"
        "    with GlobalContext() as context, context.run('train'), ProcessPoolExecutor(2, spawn) as pool:\n"
        "        list(pool.map(context.bind(fold, nested=True), range(2)))\n"
    )
    Path("job.py").write_text(JOB + job)
    status, _, err = start_python("job.py").finish()

    assert status == 0, err
    client = mlflow.MlflowClient(store_uri)
    every = client.search_runs([one.experiment_id for one in client.search_experiments()])
    found = [(run.info.run_name, bool(artifacts(store_uri, run.info.run_id))) for run in every]
    assert sorted(found) == [("fold", False), ("fold", False), ("train", True)]


def test_only_rank_0_takes_a_snapshot(folder, store_uri, monkeypatch):
    """A rank other than 0 takes none, even if it has not found the others."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with GlobalContext() as context, context.run("train") as run:
        pass

    assert artifacts(store_uri, run.info.run_id) == []


def test_the_repository_is_that_of_the_script(folder, store_uri, start_python, tmp_path):
    """The repository is that of the script's folder, not of the working folder."""
    there = repositories.make(tmp_path / "there", {"job.py": JOB + "with GlobalContext() as c, c.run('there'): pass\n"})
    status, _, err = start_python(str(there / "job.py")).finish()

    assert status == 0, err
    run = runs(store_uri)["there"]
    facts = json.loads(read(store_uri, run.info.run_id, "run.json"))
    assert (facts["git"]["top"], facts["script"]) == (str(there), str(there / "job.py"))
    assert run.data.tags["autogen_team.dirty"] == "false"
    assert artifacts(store_uri, run.info.run_id) == ["code/packages.txt", "code/run.json"]


def test_a_killed_job_keeps_its_code(folder, store_uri, start_python, wait_until, monkeypatch):
    """If the job dies before its snapshot is taken, the agent, which outlives the job, waits for the snapshot."""
    Path("job.py").write_text(
        JOB + "with GlobalContext() as c, c.run('victim', log_system_metrics=False):\n"
        "    mlflow.log_metric('a', 1)\n    print('open', flush=True)\n    time.sleep(600)\n"
    )
    repositories.git(folder, "config", "filter.slow.clean", "sleep 2; cat")
    repositories.write(folder, {".gitattributes": "slow.txt filter=slow\n", "slow.txt": "x\n"})
    job = start_python("job.py")
    job.wait_for("open")
    wait_until(lambda: list(Path(os.environ["AUTOGEN_TEAM_STATE_DIR"], "code").glob(f"*{process.PART}")))
    job.send(signal.SIGKILL)
    wait_until(lambda: runs(store_uri)["victim"].info.status == "KILLED")
    run_id = runs(store_uri)["victim"].info.run_id
    wait_until(lambda: artifacts(store_uri, run_id) == FILES)

    assert "slow.txt" in read(store_uri, run_id, "changes.patch")
    wait_until(lambda: "autogen_team.dirty" in runs(store_uri)["victim"].data.tags)


def test_a_job_that_ends_waits_a_bounded_time(folder, store_uri, monkeypatch, caplog):
    """At the time limit the run is FINISHED without the snapshot, and a warning says so."""
    monkeypatch.setattr(engine, "PATIENCE", 0.2)
    monkeypatch.setattr(process, "make", lambda _: time.sleep(5.0) or False)
    begun = time.monotonic()
    context = GlobalContext(logger_service={"intercept": False})
    with caplog.at_level(logging.WARNING), context, context.run("train"):
        pass

    assert time.monotonic() - begun < 60.0
    assert runs(store_uri)["train"].info.status == "FINISHED"
    assert "was not uploaded within 0.2 s" in caplog.text


def test_a_child_that_is_forked_does_not_wait(folder, store_uri):
    """The parent uploads the snapshot."""
    with GlobalContext() as context, context.run("train") as run:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0

    assert artifacts(store_uri, run.info.run_id) == FILES


def test_a_job_may_wait_for_all_its_children(folder, store_uri):
    """The snapshot process is not a child of the job."""
    before = set(psutil.Process().children())
    with GlobalContext() as context, context.run("train") as run:
        deadline = time.monotonic() + 60.0
        while not artifacts(store_uri, run.info.run_id):
            assert time.monotonic() < deadline
        assert set(psutil.Process().children()) <= before


def test_a_snapshot_is_uploaded_to_a_server(folder, server, monkeypatch):
    """The server receives it like other artifacts."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    with GlobalContext() as context, context.run("train") as run:
        pass

    assert artifacts(server.uri, run.info.run_id) == FILES


def test_a_secret_of_the_job_is_not_in_the_snapshot(folder, store_uri):
    """A secret added before the run, for example from a vault, is masked."""
    repositories.write(folder, {"train.py": "key = 'correct-horse'\n"})
    with GlobalContext() as context:
        context.redact("correct-horse")
        with context.run("train") as run:
            pass

    assert "correct-horse" not in read(store_uri, run.info.run_id, "changes.patch")
    assert json.loads(read(store_uri, run.info.run_id, "run.json"))["patch"]["masked_lines"] == {"train.py": 1}
