"""Each thread and each process has its own open runs; logging without one goes to the job's run."""

from __future__ import annotations

import asyncio
import contextvars

import mlflow
import pytest
from mlflow.tracking import fluent

from autogen_team._capture import run_stacks
from testkit.runs import active_id, in_thread, metrics, parent, status, stored_runs

PATIENCE = 60

pytestmark = pytest.mark.usefixtures("mlflow_as_it_was")


def test_what_a_thread_logs_goes_to_the_run_of_the_main_thread(isolated):
    """A thread without a run logs to the innermost run of the main thread, and creates no stray run."""
    with mlflow.start_run(), mlflow.start_run(nested=True) as inner:
        in_thread(mlflow.log_metric, "threaded", 1)
        assert in_thread(active_id) is None

    assert metrics(inner) == {"threaded": 1}
    assert len(stored_runs()) == 2


def test_what_a_thread_logs_goes_to_the_only_outermost_run(isolated):
    """A thread without a run logs to the innermost run of a task, if there is only one outermost run."""

    async def main():
        with mlflow.start_run(), mlflow.start_run(nested=True) as inner:
            await asyncio.get_running_loop().run_in_executor(None, mlflow.log_metric, "threaded", 1)
        return inner

    assert metrics(asyncio.run(main())) == {"threaded": 1}


def test_tasks_with_children_of_one_run_share_that_run(isolated):
    """If several tasks have child runs of one parent, a thread without a run logs to the parent."""

    async def work(ready, done):
        with mlflow.start_run(nested=True):
            ready.release()
            await done.wait()

    async def main():
        ready, done = asyncio.Semaphore(0), asyncio.Event()
        with mlflow.start_run() as outer:
            async with asyncio.TaskGroup() as group:
                for _ in range(2):
                    group.create_task(work(ready, done))
                    await ready.acquire()
                in_thread(mlflow.log_metric, "threaded", 1)
                done.set()
        return outer

    assert metrics(asyncio.run(main())) == {"threaded": 1}


def test_a_task_s_run_has_precedence_over_that_of_the_waiting_main_thread(isolated):
    """While the main thread waits for tasks, a thread logs to the run of the task, not of the main thread."""

    async def main():
        with mlflow.start_run(nested=True) as inner:
            in_thread(mlflow.log_metric, "threaded", 1)
        return inner

    with mlflow.start_run():
        assert metrics(asyncio.run(main())) == {"threaded": 1}


def test_a_thread_that_opens_a_run_keeps_it(isolated):
    """A run that a thread opens is not nested in the main thread's, and each thread logs to its own run."""

    def work():
        with mlflow.start_run() as run:
            mlflow.log_metric("threaded", 1)
        return run

    with mlflow.start_run() as main:
        own = in_thread(work)
        mlflow.log_metric("main", 1)

    assert parent(own) is None
    assert (metrics(own), metrics(main)) == ({"threaded": 1}, {"main": 1})


def test_a_run_with_a_parent_elsewhere_does_not_count_as_independent(isolated, helper, other_helper):
    """A run that names its parent is not an independent run, so the parent stays the job's run."""
    job = helper(mlflow.start_run)
    other_helper(mlflow.start_run, nested=True, parent_run_id=job.info.run_id)

    mlflow.log_metric("main", 1)

    assert metrics(job) == {"main": 1}


def test_the_main_thread_s_run_is_the_job_s_run(isolated, helper):
    """Among independent runs of several threads, the main thread's is the job's run."""
    helper(mlflow.start_run)

    with mlflow.start_run() as main:
        in_thread(mlflow.log_metric, "threaded", 1)

    assert metrics(main) == {"threaded": 1}


def test_ambiguous_logging_opens_a_new_run(isolated, helper, other_helper, caplog):
    """Logging that could belong to several runs opens a new run, as in plain MLflow, with one warning."""
    runs = [helper(mlflow.start_run), other_helper(mlflow.start_run)]

    def work():
        mlflow.log_metric("threaded", 1)
        mlflow.log_metric("threaded", 2)
        stray = mlflow.active_run()
        mlflow.end_run()
        return stray

    assert run_stacks.job_run() is None
    strays = [in_thread(work), in_thread(work)]

    assert [metrics(run) for run in (*runs, *strays)] == [{}, {}, {"threaded": 2}, {"threaded": 2}]
    (record,) = [record for record in caplog.records if record.name == "autogen_team"]
    assert record.levelname == "WARNING"
    assert "while 2 runs are open in other threads" in record.message
    assert "pass run_id" in record.message


def test_without_any_run_mlflow_opens_one(isolated, caplog):
    """Logging without any open run opens one, as in plain MLflow, without a warning."""
    assert run_stacks.job_run() is None

    mlflow.log_metric("plain", 1)

    assert metrics(mlflow.active_run()) == {"plain": 1}
    assert "autogen_team" not in {record.name for record in caplog.records}


def test_to_thread_sees_the_run_of_its_task(isolated):
    """A thread that runs in a copy of a task's context, as with `asyncio.to_thread`, has the run of that task."""

    def nested():
        with mlflow.start_run(nested=True) as run:
            return parent(run)

    async def work():
        with mlflow.start_run() as run:
            context = contextvars.copy_context()
            return (
                run.info.run_id,
                await asyncio.to_thread(active_id),
                await asyncio.to_thread(nested),
                await asyncio.get_running_loop().run_in_executor(None, context.run, active_id),
            )

    async def main():
        return await asyncio.gather(work(), work())

    first, second = asyncio.run(main())

    assert len(set(first)) == len(set(second)) == 1
    assert first[0] != second[0]


def test_a_thread_that_sees_a_task_s_run_may_open_an_independent_one(isolated):
    """A thread that has inherited a task's run may open an independent run, and has the task's again after it."""

    def work():
        with mlflow.start_run() as own:
            assert active_id() == own.info.run_id
        return own, contextvars.copy_context().run(active_id)

    async def main():
        with mlflow.start_run() as run:
            own, after = await asyncio.to_thread(work)
            assert active_id() == run.info.run_id
        return run, own, after

    run, own, after = asyncio.run(main())

    assert parent(own) is None
    assert after == run.info.run_id
    assert [status(one) for one in (run, own)] == ["FINISHED"] * 2


def test_a_thread_that_sees_a_task_s_run_may_name_another_parent(isolated, helper):
    """A thread that has inherited a task's run may open a child of another run by `parent_run_id`."""
    other = helper(mlflow.start_run)

    def work():
        with mlflow.start_run(nested=True, parent_run_id=other.info.run_id) as run:
            return parent(run)

    async def main():
        with mlflow.start_run():
            return await asyncio.to_thread(work)

    assert asyncio.run(main()) == other.info.run_id


def test_a_run_that_cannot_be_opened_changes_nothing(isolated):
    """A failed `start_run` in a thread leaves the inherited run active."""

    def work():
        with pytest.raises(Exception, match="no-such-run"):
            mlflow.start_run("no-such-run")
        return active_id()

    async def main():
        with mlflow.start_run() as run:
            return run.info.run_id, await asyncio.to_thread(work)

    run_id, seen = asyncio.run(main())

    assert seen == run_id


def test_the_job_s_run_is_available_everywhere(isolated):
    """`job_run` returns the caller's innermost run, or else the run of the main thread."""
    assert run_stacks.job_run() is None
    with mlflow.start_run() as run:
        assert run_stacks.job_run() is run
        assert in_thread(run_stacks.job_run) is run
        with mlflow.start_run(nested=True) as inner:
            assert run_stacks.job_run() is inner
    assert in_thread(run_stacks.job_run) is None


def test_without_isolation_the_job_s_run_is_the_thread_s():
    """Without isolation, `job_run` returns the run of the calling thread, or None."""
    with mlflow.start_run() as run:
        assert run_stacks.job_run() is run
        assert in_thread(run_stacks.job_run) is None


@pytest.mark.parametrize("is_isolated", [True, False])
def test_a_run_that_another_thread_has_left_open_is_forgotten(is_isolated, helper):
    """`forget` drops a run that another thread has left open, and the runs inside it."""
    undo = run_stacks.isolate() if is_isolated else lambda: None
    runs = [helper(mlflow.start_run), helper(mlflow.start_run, nested=True), helper(mlflow.start_run, nested=True)]
    outer, middle, inner = [run.info.run_id for run in runs]

    assert run_stacks.forget(middle) == [inner, middle]
    assert helper(active_id) == outer
    assert run_stacks.forget(outer) == [outer]
    assert helper(active_id) is None
    assert run_stacks.forget(outer) == []
    undo()


def test_a_run_of_an_ended_thread_is_still_listed(isolated):
    """A run that an ended thread has left open is still listed, until it is forgotten."""
    run = in_thread(mlflow.start_run)

    assert list(fluent._active_run_stack.get_all_thread_values().values()) == [[run]]
    assert run_stacks.forget(run.info.run_id) == [run.info.run_id]
    assert fluent._active_run_stack.get_all_thread_values() == {}


def test_a_forked_child_has_no_run(store_uri, run_python):
    """A forked child has MLflow's own state and no run; it can isolate again, and the parent's run continues."""
    code = f"""if True:
        import os, sys, mlflow
        from mlflow.tracking import fluent
        from autogen_team._capture import run_stacks
        mlflow.set_tracking_uri({store_uri!r})
        plain = fluent._active_run_stack
        if os.fork() == 0:  # nothing is isolated yet
            sys.exit(0 if fluent._active_run_stack is plain else 1)
        assert os.wait()[1] == 0
        undo = run_stacks.isolate()
        with mlflow.start_run() as run:
            if os.fork() == 0:
                assert mlflow.active_run() is None and run_stacks.job_run() is None
                assert fluent._active_run_stack is plain
                mlflow.log_metric("child", 1)
                assert mlflow.active_run().info.run_id != run.info.run_id
                undo()
                mlflow.end_run()
                again = run_stacks.isolate()
                assert mlflow.active_run() is None and run_stacks.job_run() is None
                again()
                sys.exit(0)
            assert os.wait()[1] == 0
            mlflow.log_metric("parent", 1)
        undo()
        assert fluent._active_run_stack is plain
    """
    exit_status, _, err = run_python("-W", "ignore", "-c", code)

    assert exit_status == 0, err
    found = [(run.info.status, run.data.metrics) for run in stored_runs()]
    assert sorted(found, key=str) == [("FINISHED", {"child": 1}), ("FINISHED", {"parent": 1})]
