"""The context in workers of a real Dask cluster, on the loopback interface."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from distributed import Client

from autogen_team import GlobalContext
from autogen_team.errors import ConfigurationError, NotStartedError
from autogen_team.workers.dask import workers

FUNCTIONS = '''
from pathlib import Path

import dask
from distributed import Client, LocalCluster

from autogen_team.workers.dask import workers

# By default, a cluster gives up a dead worker if its replacement takes more than 15 s to start.
dask.config.set({"distributed.deploy.lost-worker-timeout": "300s"})


def make_cluster(size, **fields):
    pages = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
    return LocalCluster(n_workers=size, threads_per_worker=2, **pages, **fields)


def fail(number):
    logger.debug("look at https://bob:hunter2@host")
    raise ValueError(f"bad fold {number}")


def die_once(number):
    """Be killed halfway the first time, and do the rest the second time."""
    marker = Path(f"died-{number}")
    first = number if not marker.exists() else number + 100
    for step in range(first, first + 100):
        mlflow.log_metric("accuracy", 0.5, step=step)
    if not marker.exists():
        marker.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def what_runs():
    from autogen_team._process import Undo, identity, run_events

    try:
        GlobalContext.current()
    except RuntimeError:
        return [identity.worker(), mlflow.active_run()]
    return "inside"


def steps_of(context, run):
    history = context.mlflow_service.client().get_metric_history(run.info.run_id, "accuracy")
    return sorted(metric.step for metric in history)
'''


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    """Return the output of the job; it is filled when the job has run."""
    return {}


@pytest.fixture(scope="module")
def job(run_slow_job: Callable[[str, str], Any], said: dict[str, Any]) -> Any:
    """Return a job that has used all functions with a cluster of two worker processes."""
    found = run_slow_job(
        """
        import json
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
                said["what runs after the block"] = list(client.run(what_runs).values())
                do(context.bind(fold, nested="late"), range(30, 32))
            with context.run("second", log_system_metrics=False), workers(client, context, nested=True):
                said["pids of the second"] = do(fold, range(40, 46))
        print(json.dumps(said))
        """,
        FUNCTIONS,
    )
    said.update(json.loads(found.out[-1]))
    return found


def test_metrics_of_tasks_are_in_the_run(job, said):
    """Metrics of all threads of all workers are in the run when the block ends; the functions are unchanged."""
    train = job.store.run("train")

    assert said["steps after the block"] == [*range(8), 20]
    assert (train.info.status, job.store.steps(train)) == ("FINISHED", [*range(8), 20])


def test_lines_are_in_a_file_for_each_worker(job, said):
    """Lines have the run id and the worker's name; the level is the job's, and secrets are masked."""
    run_id = job.store.run("train").info.run_id
    lines = [line for line in job.log_lines() if line.get("run_id") == run_id and line["function"] == "fold"]

    assert sorted(line["message"] for line in lines) == sorted(f"fold {number}" for number in [*range(8), 20])
    assert [line for line in lines if line["file"] != f"job-{line['worker']}"] == []
    assert {int(line["worker"].rpartition("-")[2]) for line in lines} == {*said["pids"], said["new"]}
    debug = [line["message"] for line in job.log_lines() if line["level"] == "DEBUG" and line["function"] == "fail"]
    assert debug == ["look at https://bob:***@host"] * 2


def test_a_worker_that_is_added_later_joins_the_context(job, said):
    """A worker added later joins the context, and has its own log file."""
    [line] = [line for line in job.log_lines() if line["message"] == "fold 20"]

    assert said["new"] not in said["pids"]
    assert line["worker"].endswith(f"-{said['new']}")


def test_bound_tasks_have_their_own_runs(job, said):
    """Bound functions have child runs, in workers that have joined the context and in others."""
    children = [run for run in job.store.children() if run.info.run_name != "doomed"]

    found = sorted((run.info.run_name, job.store.steps(run)) for run in children)
    assert found == [*(("fold", [step]) for step in range(10, 14)), ("late", [30]), ("late", [31])]
    assert {run.info.status for run in children} == {"FINISHED"}


def test_a_failing_task_alerts_if_it_has_a_run(job, said):
    """Only a failing task with its own run alerts; other failures are raised to the caller."""
    doomed = job.store.run("doomed")
    [line] = [line for line in job.log_lines() if "bad fold 1" in line["message"]]  # logged by Dask

    assert (doomed.info.status, doomed.data.tags["autogen_team.exception"]) == ("FAILED", "ValueError: bad fold 2")
    [alert, *details] = job.out[:-1]
    assert all(line.startswith("    ") for line in details)
    assert alert.startswith("[job] doomed failed: ")
    assert (line["level"], line["run_id"]) == ("ERROR", job.store.run("train").info.run_id)


def test_workers_leave_the_context_after_the_block(job, said):
    """Workers have neither a context nor an open run, and nothing is left to deliver."""
    assert said["what runs after the block"] == [[None, None]] * 3
    assert job.journals() == []


def test_each_worker_can_have_a_run(job, said):
    """A worker's child run contains the metrics of all its tasks, and ends with the block."""
    children = job.store.children("second")
    pids = [int(run.data.tags["autogen_team.worker"].rpartition("-")[2]) for run in children]

    assert len(set(pids)) == len(pids) == 3
    assert set(pids) >= set(said["pids of the second"])
    assert sorted(step for run in children for step in job.store.steps(run)) == list(range(40, 46))
    assert {run.info.status for run in children} == {"FINISHED"}
    assert job.store.steps(job.store.run("second")) == []


def test_the_death_of_a_worker_is_recovered(run_slow_job, wait_until):
    """The replacement of a dead worker repeats the task; entries of the dead one arrive, and its child is KILLED."""
    job = run_slow_job(
        """
        with make_cluster(1, host="127.0.0.1") as cluster, cluster.get_client() as client, make_context() as context:
            with context.run("train", log_system_metrics=False), workers(client, context):
                pids = [client.submit(die_once, 0).result()]
                pids.append(client.submit(context.bind(die_once, nested="child"), 1000).result())
            print(*pids, *(path.read_text() for path in Path().glob("died-*")))
        """,
        FUNCTIONS,
    )

    assert len(set(job.out[-1].split())) == 3  # the second task kills the worker that replaced the first one
    wait_until(lambda: job.journals() == [])  # the agents of the dead workers deliver the rest
    train = job.store.run("train")
    assert (train.info.status, job.store.steps(train)) == ("FINISHED", list(range(200)))
    dead, alive = job.store.children()
    assert (dead.info.status, job.store.steps(dead)) == ("KILLED", list(range(1000, 1100)))
    assert (alive.info.status, job.store.steps(alive)) == ("FINISHED", list(range(1100, 1200)))


def test_threads_of_a_cluster_without_processes_use_the_job_s_context(run_slow_job):
    """In a cluster of threads no second context is started, and the job's context continues after the block."""
    job = run_slow_job(
        """
        with make_cluster(1, processes=False) as cluster, cluster.get_client() as client, make_context() as context:
            with context.run("train", log_system_metrics=False):
                with workers(client, context):
                    client.gather(client.map(fold, range(6), pure=False))
                    client.gather(client.map(context.bind(fold, nested=True), range(10, 13), pure=False))
                mlflow.log_metric("accuracy", 1.0, step=6)
                assert what_runs() == "inside"
        """,
        FUNCTIONS,
    )

    assert job.store.steps(job.store.run("train")) == list(range(7))
    assert sorted(job.store.steps(run) for run in job.store.children()) == [[10], [11], [12]]
    assert len(job.store.runs()) == 4
    assert job.log_lines() == []
    assert {line.get("worker") for line in job.log_lines("job.log")} == {None}


def test_a_bound_function_fails_after_the_context_has_stopped(run_slow_job):
    """A bound function that runs after the context has stopped raises, instead of starting a second context."""
    job = run_slow_job(
        """
        with make_cluster(1, processes=False) as cluster, cluster.get_client() as client:
            with make_context() as context, context.run("train", log_system_metrics=False):
                late = context.bind(fold)
                sent = pickle.loads(pickle.dumps(late))
            del context, late
            assert "GlobalContext has stopped" in str(client.submit(sent, 1).exception())
        """,
        FUNCTIONS,
    )

    assert job.store.steps(job.store.run("train")) == []


def test_a_cluster_can_be_closed_before_the_block_ends(run_slow_job):
    """Closed workers have delivered everything; leaving the block logs a warning and raises nothing."""
    job = run_slow_job(
        """
        cluster = make_cluster(1, host="127.0.0.1")
        client = cluster.get_client()
        with make_context() as context, context.run("train", log_system_metrics=False):
            with workers(client, context):
                client.submit(fold, 3).result()
                cluster.close()
            client.close()
        """,
        FUNCTIONS,
    )

    assert (job.store.run("train").info.status, job.store.steps(job.store.run("train"))) == ("FINISHED", [3])
    warnings = [line["message"] for line in job.log_lines("job.log") if line["logger"] == "autogen_team"]
    assert [text.partition("> ")[2].partition(":")[0] for text in warnings] == ["could not be stopped"]


@pytest.fixture
def client() -> Iterator[Client]:
    """Return a client of a cluster in this process."""
    pages = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
    with Client(processes=False, n_workers=1, threads_per_worker=1, **pages) as client:
        yield client


def enter(*arguments: Any) -> Callable[[], None]:
    """Return a function that enters the block."""

    def enter() -> None:
        with workers(*arguments):
            raise AssertionError("the block must not run")

    return enter


def test_a_value_that_is_not_a_client_is_an_error():
    """The message has the value, and what to pass instead."""
    with pytest.raises(ConfigurationError, match=r"client is 'tcp://.*'; it must be a distributed.Client: pass"):
        enter("tcp://127.0.0.1:8786", GlobalContext())()


def test_an_asynchronous_client_is_an_error(client):
    """Its event loop cannot wait for itself; functions can still be bound."""

    async def use() -> None:
        async with Client(client.cluster.scheduler_address, asynchronous=True) as other:
            enter(other, GlobalContext())()

    with pytest.raises(ConfigurationError, match=r"which is asynchronous; pass .* or submit `context.bind\(fn\)`"):
        asyncio.run(use())


def test_a_closed_client_is_an_error(client):
    """A closed client has no workers."""
    client.close()

    with pytest.raises(ConfigurationError, match=r"which is closed; create a new one"):
        enter(client, GlobalContext())()


def test_a_stopped_context_is_an_error(client):
    """The cluster is not changed."""
    with pytest.raises(NotStartedError, match=r"is not running: call start\(\)"):
        enter(client, GlobalContext())()
    assert client.submit(abs, -1).result() == 1


def test_dask_is_imported_only_on_request(run_python):
    """Importing `autogen_team.workers` does not import Dask."""
    code = "import sys, autogen_team.workers; sys.exit(sum(name in sys.modules for name in ('distributed', 'joblib')))"
    status, _, err = run_python("-c", code)

    assert status == 0, err
