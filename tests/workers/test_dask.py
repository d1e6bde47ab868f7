"""The context in the workers of a real Dask cluster, on the loopback interface."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import copy
from typing import Any

import mlflow
import pytest
from distributed import Client

from autogen_team import GlobalContext
from autogen_team.errors import ConfigurationError, NotStartedError
from autogen_team.workers.dask import workers

pytestmark = pytest.mark.timeout(360)  # clusters take seconds to start, and many times that on a busy machine

BEGINNING = '''\
import asyncio, json, os, signal, sys
from pathlib import Path

import mlflow
from distributed import Client, LocalCluster
from loguru import logger

from autogen_team import GlobalContext
from autogen_team.io.services import AlertsService, LoggerService
from autogen_team.workers.dask import workers


def make_context():
    return GlobalContext(
        logger_service=LoggerService(sink="logs/job.log", serialize=True, level="DEBUG"),
        alerts_service=AlertsService(enable=False, app_name="job"),
    )


def make_cluster(size, threads=2, **fields):
    pages = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
    return LocalCluster(n_workers=size, threads_per_worker=threads, **pages, **fields)


def fold(number):
    logger.info("fold {}", number)
    logger.debug("the password is hunter2: https://bob:hunter2@host")
    mlflow.log_metric("accuracy", number / 10, step=number)
    return os.getpid()


def fail(number):
    raise ValueError(f"bad fold {number}")


def die_once(number):
    """Be killed in the middle, and do the rest the second time."""
    marker = Path(f"died-{number}")
    steps = range(number, number + 100) if not marker.exists() else range(number + 100, number + 200)
    for step in steps:
        mlflow.log_metric("accuracy", 0.5, step=step)
    if not marker.exists():
        marker.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def state_of_worker():
    from autogen_team.io import _job

    try:
        GlobalContext.current()
    except RuntimeError:
        return [_job.worker(), mlflow.active_run()]
    return "inside"


def steps_of(context, run):
    history = context.mlflow_service.client().get_metric_history(run.info.run_id, "accuracy")
    return sorted(metric.step for metric in history)


'''
FINISHED = """
if __name__ == "__main__":
    said = {}
    with make_cluster(2, host="127.0.0.1") as cluster, cluster.get_client() as client, make_context() as context:
        def do(fn, numbers):
            return client.gather(client.map(fn, numbers, pure=False))

        with context.run("train", log_system_metrics=False) as run:
            with workers(client, context):
                said["pids"] = do(fold, range(8))
                do(context.bind(fold, nested=True), range(10, 14))
                assert isinstance(client.submit(fail, 1).exception(), ValueError)
                assert isinstance(client.submit(context.bind(fail, nested="doomed"), 2).exception(), ValueError)
                before = set(client.scheduler_info()["workers"])
                cluster.scale(3)
                client.wait_for_workers(3, timeout=60)
                [new] = set(client.scheduler_info()["workers"]) - before
                said["new"] = client.submit(fold, 20, workers=[new]).result()
            said["steps after the block"] = steps_of(context, run)
            said["states after the block"] = list(client.run(state_of_worker).values())
            do(context.bind(fold, nested="late"), range(30, 32))
        with context.run("second", log_system_metrics=False) as run, workers(client, context, nested=True):
            said["pids of the second"] = do(fold, range(40, 46))
    print(json.dumps(said))
"""


@dataclass(frozen=True)
class Job:
    """What a job has left behind."""

    folder: Path
    said: dict[str, Any]
    alerts: list[str]

    def client(self) -> mlflow.MlflowClient:
        """Return a client of its store."""
        uri = f"sqlite:///{self.folder / 'mlflow.db'}"
        return mlflow.MlflowClient(uri, uri)

    def runs(self, **tags: str) -> list[mlflow.entities.Run]:
        """Return the runs, the first one first; with tags only those that have them."""
        client = self.client()
        ids = [one.experiment_id for one in client.search_experiments()]
        found = client.search_runs(ids, order_by=["attributes.start_time ASC"])
        return [run for run in found if tags.items() <= run.data.tags.items()]

    def run(self, name: str) -> mlflow.entities.Run:
        """Return the only run of that name."""
        [run] = [run for run in self.runs() if run.info.run_name == name]
        return run

    def children(self, parent: str = "train") -> list[mlflow.entities.Run]:
        """Return the children of the run of that name."""
        return self.runs(**{"mlflow.parentRunId": self.run(parent).info.run_id})

    def steps(self, run: mlflow.entities.Run) -> list[int]:
        """Return the steps at which the metric was logged."""
        return sorted(metric.step for metric in self.client().get_metric_history(run.info.run_id, "accuracy"))

    def log_lines(self) -> list[dict[str, Any]]:
        """Return the lines of the files of all workers, each with the name of its file."""
        files = sorted((self.folder / "logs").glob("job-*.log"))
        return [{"file": path.stem, **json.loads(line)} for path in files for line in path.read_text().splitlines()]


def run_job(folder: Path, database: Path, main: str) -> Job:
    """Run a job to its end, which must be a good one, in that folder."""
    copy(database, folder / "mlflow.db")
    (folder / "job.py").write_text(BEGINNING + main)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AUTOGEN_TEAM_", "MLFLOW_"))
    }
    environment |= {"AUTOGEN_TEAM_STATE_DIR": str(folder / "state"), "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "job.py"]
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    *alerts, said = ended.stdout.splitlines()
    return Job(folder, json.loads(said), alerts)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Job:
    """Return a job that has used a cluster of two worker processes in all ways; see above."""
    return run_job(tmp_path_factory.mktemp("dask"), migrated_database, FINISHED)


def test_what_tasks_log_is_the_runs(finished):
    """All threads of all workers, without a change to the functions; it has arrived when the block ends."""
    assert finished.said["steps after the block"] == [*range(8), 20]
    assert finished.run("train").info.status == "FINISHED"
    assert finished.steps(finished.run("train")) == [*range(8), 20]


def test_lines_are_in_a_file_for_each_worker(finished):
    """They carry the id of the run and the name of the worker; secrets are masked, the level is the job's."""
    run_id = finished.run("train").info.run_id
    lines = [line for line in finished.log_lines() if line["run_id"] == run_id and line["function"] == "fold"]
    said = sorted(line["message"] for line in lines if line["level"] == "INFO")
    assert said == sorted(f"fold {number}" for number in [*range(8), 20])
    assert [line for line in lines if line["file"] != f"job-{line['worker']}"] == []
    pids = {*finished.said["pids"], finished.said["new"]}
    assert {int(line["worker"].rpartition("-")[2]) for line in lines} == pids
    assert "hunter2@" not in json.dumps(lines)
    assert "DEBUG" in {line["level"] for line in lines}


def test_a_worker_that_joins_later_is_inside(finished):
    """Of a cluster that grows; it has a process, so a file, of its own."""
    assert finished.said["new"] not in finished.said["pids"]
    [line] = [line for line in finished.log_lines() if line["message"] == "fold 20"]
    assert line["worker"].endswith(f"-{finished.said['new']}")


def test_bound_tasks_have_runs_of_their_own(finished):
    """Children of the run, in the plugin's workers as in those without it."""
    children = finished.children()
    found = sorted((run.info.run_name, finished.steps(run)) for run in children if run.info.run_name != "doomed")
    assert found == [*(("fold", [step]) for step in range(10, 14)), ("late", [30]), ("late", [31])]
    assert {run.info.status for run in children if run.info.run_name != "doomed"} == {"FINISHED"}


def test_a_failing_task_alerts_if_it_has_a_run(finished):
    """A task of the run itself fails where its result is asked for; nobody else alerts."""
    doomed = finished.run("doomed")
    assert (doomed.info.status, doomed.data.tags["autogen_team.exception"]) == ("FAILED", "ValueError: bad fold 2")
    [alert] = finished.alerts
    assert alert.startswith("[job] doomed failed: ")
    run_id = finished.run("train").info.run_id
    [line] = [line for line in finished.log_lines() if "bad fold 1" in line["message"]]  # it is Dask's own line
    assert (line["level"], line["run_id"]) == ("ERROR", run_id)


def test_workers_are_outside_after_the_block(finished):
    """No context runs there, no run is open, and nothing is left to deliver when all have gone."""
    assert finished.said["states after the block"] == [[None, None]] * 3
    assert list((finished.folder / "state" / "journals").glob("*")) == []


def test_each_worker_can_have_a_run(finished):
    """A child of the job's, with what all tasks of that worker log; it ends with the block."""
    children = finished.children("second")
    pids = [int(run.data.tags["autogen_team.worker"].rpartition("-")[2]) for run in children]
    assert len(set(pids)) == len(pids) == 3
    assert set(pids) >= set(finished.said["pids of the second"])
    assert sorted(step for run in children for step in finished.steps(run)) == list(range(40, 46))
    assert {run.info.status for run in children} == {"FINISHED"}
    assert finished.steps(finished.run("second")) == []


def test_the_death_of_a_worker_is_recovered(tmp_path, migrated_database, wait_until):
    """The nanny's next one is inside again and does the task; what the dead one logged arrives, its child is KILLED."""
    job = run_job(
        tmp_path,
        migrated_database,
        """
if __name__ == "__main__":
    said = {}
    with make_cluster(1, host="127.0.0.1") as cluster, cluster.get_client() as client, make_context() as context:
        with context.run("train", log_system_metrics=False), workers(client, context):
            said["pids"] = [client.submit(die_once, 0).result()]
            said["pids"].append(client.submit(context.bind(die_once, nested="child"), 1000).result())
    said["dead"] = [int(path.read_text()) for path in sorted(Path().glob("died-*"))]
    print(json.dumps(said))
""",
    )

    assert len({*job.said["pids"], *job.said["dead"]}) == 3  # the second task dies in the successor of the first's
    train = job.run("train")
    wait_until(lambda: "RUNNING" not in {run.info.status for run in job.runs()})
    wait_until(lambda: list((tmp_path / "state" / "journals").glob("*")) == [])
    assert (train.info.status, job.steps(train)) == ("FINISHED", list(range(200)))
    dead, alive = job.children()
    assert (dead.info.status, job.steps(dead)) == ("KILLED", list(range(1000, 1100)))
    assert (alive.info.status, job.steps(alive)) == ("FINISHED", list(range(1100, 1200)))


def test_threads_of_a_cluster_without_processes_are_inside(tmp_path, migrated_database):
    """Nothing is started in the process that has it all, and all of it runs on after the block."""
    job = run_job(
        tmp_path,
        migrated_database,
        """
if __name__ == "__main__":
    with make_cluster(1, processes=False) as cluster, cluster.get_client() as client, make_context() as context:
        with context.run("train", log_system_metrics=False) as run:
            with workers(client, context):
                client.gather(client.map(fold, range(6), pure=False))
                client.gather(client.map(context.bind(fold, nested=True), range(10, 13), pure=False))
            mlflow.log_metric("accuracy", 1.0, step=6)
            assert state_of_worker() == "inside"
    print("{}")
""",
    )

    assert job.steps(job.run("train")) == list(range(7))
    assert sorted(job.steps(run) for run in job.children()) == [[10], [11], [12]]
    assert job.log_lines() == []  # no worker has a file: there is none but the job's
    assert len(job.runs()) == 4


def test_a_cluster_may_be_gone_before_the_block(tmp_path, migrated_database):
    """Its workers have delivered when they were closed; leaving the block says so, and raises nothing."""
    job = run_job(
        tmp_path,
        migrated_database,
        """
if __name__ == "__main__":
    cluster = make_cluster(1, host="127.0.0.1")
    client = cluster.get_client()
    with make_context() as context, context.run("train", log_system_metrics=False):
        with workers(client, context):
            client.submit(fold, 3).result()
            cluster.close()
        client.close()
    print("{}")
""",
    )

    assert (job.run("train").info.status, job.steps(job.run("train"))) == ("FINISHED", [3])
    assert "could not be told that they are done" in (tmp_path / "logs" / "job.log").read_text()


@pytest.fixture
def client() -> Iterator[Client]:
    """Return a client of a cluster that is this process."""
    pages = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
    with Client(processes=False, n_workers=1, threads_per_worker=1, **pages) as client:
        yield client


def enter(*arguments: Any) -> Callable[[], None]:
    """Return a function that enters the block."""

    def enter() -> None:
        with workers(*arguments):
            raise AssertionError("it was entered")

    return enter


def test_what_is_no_client_is_an_error():
    """It says what was given, and what to give."""
    with pytest.raises(ConfigurationError, match=r"client is 'tcp://.*'; it must be a distributed.Client: pass"):
        enter("tcp://127.0.0.1:8786", GlobalContext())()


def test_an_asynchronous_client_is_an_error(client):
    """The event loop that it belongs to cannot wait for itself; functions can be bound all the same."""

    async def use() -> None:
        async with Client(client.cluster.scheduler_address, asynchronous=True) as other:
            enter(other, GlobalContext())()

    with pytest.raises(ConfigurationError, match=r"an asynchronous one; pass .* or submit `context.bind\(fn\)`"):
        asyncio.run(use())


def test_a_closed_client_is_an_error(client):
    """It knows no workers any more."""
    client.close()

    with pytest.raises(ConfigurationError, match=r"which is closed; make a new one"):
        enter(client, GlobalContext())()


def test_a_context_that_does_not_run_is_an_error(client):
    """And the cluster is left alone."""
    with pytest.raises(NotStartedError, match=r"call start\(\) first"):
        enter(client, GlobalContext())()
    assert client.submit(abs, -1).result() == 1


def test_the_engine_is_loaded_only_when_it_is_asked_for(run_python):
    """A job without Dask does not pay for it."""
    code = "import sys, autogen_team.workers; sys.exit(sum(name in sys.modules for name in ('distributed', 'joblib')))"
    status, _, err = run_python("-c", code)

    assert status == 0, err
