"""Runs inside, beside and after other runs: in tasks, in threads, and by their ids."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import mlflow
import pytest
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from autogen_team._capture import lifecycle, shared_runs
from autogen_team._process import run_events


@pytest.fixture
def started(store_uri, start_session):
    """Start tracking on a local store, and return a client."""
    start_session(store_uri)
    return mlflow.MlflowClient()


def open_run(name="train", **fields):
    """Open a run with only a name and the given fields."""
    return lifecycle.open_run(name=name, **fields)


def test_concurrent_tasks_log_to_their_own_runs(started):
    """Concurrent tasks log only to their own runs, which are children of the job's run."""

    async def work(number: int) -> str:
        with open_run(f"task {number}", nested=True) as run:
            for step in range(5):
                mlflow.log_metric("who", number, step=step)
                await asyncio.sleep(0.001)
                assert run_events.facts()["run_id"] == run.info.run_id
            mlflow.log_param("number", number)
        return run.info.run_id

    async def main() -> list[str]:
        return await asyncio.gather(*(work(number) for number in range(8)))

    with open_run("job") as job:
        ids = asyncio.run(main())
        mlflow.log_metric("after", 1.0)

    for number, run_id in enumerate(ids):
        assert [one.value for one in started.get_metric_history(run_id, "who")] == [number] * 5
        stored = started.get_run(run_id)
        assert stored.data.params == {"number": str(number)}
        assert (stored.data.tags[MLFLOW_PARENT_RUN_ID], stored.info.status) == (job.info.run_id, "FINISHED")
    assert started.get_run(job.info.run_id).data.metrics == {"after": 1.0}


def test_a_task_s_run_ends_as_the_task_does(started):
    """The run of a failed task is FAILED, that of a cancelled task KILLED, and a sibling's is FINISHED."""
    ids = {}

    async def work(name: str, seconds: float, error: Exception | None = None) -> None:
        with open_run(name) as run:
            ids[name] = run.info.run_id
            await asyncio.sleep(seconds)
            if error is not None:
                raise error

    async def main() -> None:
        failing = asyncio.create_task(work("failing", 0.01, ValueError("x")))
        cancelled = asyncio.create_task(work("cancelled", 600))
        going = asyncio.create_task(work("going", 0.1))
        await asyncio.wait([failing])
        cancelled.cancel()
        await asyncio.gather(failing, cancelled, going, return_exceptions=True)

    asyncio.run(main())

    assert {name: started.get_run(run_id).info.status for name, run_id in ids.items()} == {
        "failing": "FAILED",
        "cancelled": "KILLED",
        "going": "FINISHED",
    }


def test_what_threads_log_goes_to_the_job_s_run(started):
    """Metrics of threads without a run go to the job's run, and no other run is created."""
    with open_run() as run, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: mlflow.log_metric(f"m{number}", number), range(20)))

    assert len(started.get_run(run.info.run_id).data.metrics) == 20
    assert [found.info.run_id for found in started.search_runs(["1"])] == [run.info.run_id]


def test_runs_nest_only_on_request(started):
    """A second run is refused unless it is opened with `nested=True`."""
    with open_run("outer") as outer:
        with pytest.raises(Exception, match="already active"), open_run("inner"):
            pytest.fail("the block must not run")
        with open_run("inner", nested=True) as inner:
            pass

    assert started.get_run(inner.info.run_id).data.tags[MLFLOW_PARENT_RUN_ID] == outer.info.run_id


def test_a_run_can_be_the_child_of_another_process_s(started):
    """A run becomes the child of a run that is not open in this process by `parent_run_id`."""
    parent = started.create_run("1")
    with open_run("child", parent_run_id=parent.info.run_id) as run:
        pass

    assert started.get_run(run.info.run_id).data.tags[MLFLOW_PARENT_RUN_ID] == parent.info.run_id


def test_a_failed_run_can_be_resumed(started):
    """A run that failed can be resumed by its id, keeps its metrics, and is closed with a new status."""
    with pytest.raises(ValueError, match="x"), open_run("first") as first:
        mlflow.log_metric("loss", 1.0, step=0)
        raise ValueError("x")
    with open_run("second", run_id=first.info.run_id) as second:
        assert mlflow.get_run(second.info.run_id).info.status == "RUNNING"
        mlflow.log_metric("loss", 0.5, step=1)

    assert second.info.run_id == first.info.run_id
    stored = started.get_run(first.info.run_id)
    assert (stored.info.run_name, stored.info.status) == ("second", "FINISHED")
    assert run_events.EXCEPTION_TAG not in stored.data.tags
    assert len(started.get_metric_history(first.info.run_id, "loss")) == 2


def test_the_failure_of_a_worker_is_recorded_in_the_run_that_it_works_for(started, tmp_path):
    """The failure of a worker is noted in the run it works for, not in a run that it left open inside."""
    run = started.create_run("0", run_name="job")
    info = run.info
    fields = info.run_id, "job", info.experiment_id, "Default", info.user_id, info.start_time, "host", str(tmp_path)

    with pytest.raises(ValueError, match="bad fold"), shared_runs.work_for(shared_runs.Shared(*fields), "why"):
        inner = mlflow.start_run(run_name="inner")
        raise ValueError("bad fold")

    assert started.get_run(info.run_id).data.tags["why"] == "ValueError: bad fold"
    assert "why" not in started.get_run(inner.info.run_id).data.tags
