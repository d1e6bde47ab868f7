"""Each task has its own open runs, and inherits those that were open where it was created."""

from __future__ import annotations

import asyncio
import contextvars

import mlflow
import pytest

from autogen_team._capture import mlflow_internals, run_stacks
from testkit.runs import active_id, metrics, parent, status, stored_runs

PATIENCE = 60

pytestmark = pytest.mark.usefixtures("mlflow_as_it_was")


def test_tasks_do_not_share_runs(isolated):
    """Concurrent tasks log to their own runs only, and all their runs end."""

    async def work(number):
        with mlflow.start_run() as run:
            for step in range(3):
                await asyncio.sleep(0)
                mlflow.log_metric(f"of{number}", step)
            await asyncio.sleep(0)
            assert active_id() == run.info.run_id
        assert active_id() is None
        return run

    async def main():
        return await asyncio.gather(*[work(number) for number in range(3)])

    runs = asyncio.run(main())

    assert [metrics(run) for run in runs] == [{"of0": 2}, {"of1": 2}, {"of2": 2}]
    assert [status(run) for run in runs] == ["FINISHED"] * 3
    assert len(stored_runs()) == 3


def test_runs_of_sibling_tasks_are_children_of_the_run_that_they_were_created_in(isolated):
    """Runs of sibling tasks are children of the outer run, not of each other, and the outer run stays innermost."""

    async def work():
        with mlflow.start_run(nested=True) as run:
            await asyncio.sleep(0)
        return run

    async def main():
        with mlflow.start_run() as outer:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(work()) for _ in range(3)]
                await asyncio.sleep(0)
                assert active_id() == outer.info.run_id
            mlflow.log_metric("outer", 1)
        return outer, [task.result() for task in tasks]

    outer, inner = asyncio.run(main())

    assert [parent(run) for run in inner] == [outer.info.run_id] * 3
    assert metrics(outer) == {"outer": 1}
    assert {status(run) for run in (outer, *inner)} == {"FINISHED"}


def test_a_task_inherits_runs_that_were_open_when_it_was_created(isolated):
    """A task does not inherit a run that its creator opens after creating the task."""

    async def work():
        with mlflow.start_run(nested=True) as run:
            return parent(run)

    async def main():
        early = asyncio.create_task(work())
        with mlflow.start_run() as outer:
            late = asyncio.create_task(work())
            return outer.info.run_id, await early, await late

    outer_id, early, late = asyncio.run(main())

    assert (early, late) == (None, outer_id)


def test_a_task_of_sync_code_inherits_its_run(isolated):
    """The tasks of `asyncio.run` inside a run inherit that run."""

    async def main():
        mlflow.log_metric("inside", 1)
        with mlflow.start_run(nested=True) as inner:
            return inner

    with mlflow.start_run() as outer:
        inner = asyncio.run(main())
        assert active_id() == outer.info.run_id

    assert metrics(outer) == {"inside": 1}
    assert parent(inner) == outer.info.run_id


def test_an_ended_run_is_not_active_in_tasks_that_inherited_it(isolated):
    """A task that outlives its inherited run has no active run, and may open a new outermost one."""

    async def main():
        ended = asyncio.Event()
        with mlflow.start_run() as outer:
            task = asyncio.create_task(work(outer, ended))
            await asyncio.sleep(0)
        ended.set()
        return await task

    async def work(outer, ended):
        assert active_id() == outer.info.run_id
        await ended.wait()
        assert active_id() is None
        with mlflow.start_run() as run:
            return run

    assert parent(asyncio.run(main())) is None


def test_a_run_that_a_child_ends_has_ended_for_its_parent_too(isolated):
    """A run that a child task ends is no longer active in the parent task."""

    async def end():
        mlflow.end_run("KILLED")

    async def main():
        with mlflow.start_run() as run:
            await asyncio.create_task(end())
            assert active_id() is None
        return run

    assert status(asyncio.run(main())) == "KILLED"


def test_a_task_keeps_its_runs_in_any_context(isolated):
    """Code that a task runs in another context sees and changes the runs of the task."""

    async def main():
        with mlflow.start_run() as run:
            foreign = contextvars.Context().run(active_id)
            contextvars.Context().run(mlflow.start_run, nested=True)
            mlflow.end_run()
            return run.info.run_id, foreign, active_id()

    run_id, foreign, after = asyncio.run(main())

    assert (foreign, after) == (run_id, run_id)


def test_tasks_that_share_a_context_do_not_share_their_runs(isolated):
    """Tasks that share a context have separate runs."""

    async def work():
        with mlflow.start_run(nested=True) as run:
            for _ in range(3):
                await asyncio.sleep(0)
                assert active_id() == run.info.run_id

    async def main():
        context = contextvars.copy_context()
        await asyncio.gather(*[asyncio.create_task(work(), context=context) for _ in range(2)])

    asyncio.run(main())

    assert [run.info.status for run in stored_runs()] == ["FINISHED"] * 2


def test_a_callback_of_a_task_belongs_to_its_run(isolated):
    """A callback that the loop calls for a task logs to the run of that task."""

    async def main():
        done = asyncio.Event()
        with mlflow.start_run() as run:
            asyncio.get_running_loop().call_soon(lambda: (mlflow.log_metric("called", 1), done.set()))
            await done.wait()
        return run

    assert metrics(asyncio.run(main())) == {"called": 1}


def test_a_run_that_a_task_leaves_open_belongs_to_its_thread(isolated):
    """A run that a task leaves open is active after `asyncio.run`, and can be ended there."""

    async def setup():
        return mlflow.start_run()

    run = asyncio.run(setup())
    assert active_id() == run.info.run_id
    mlflow.log_metric("after", 1)
    mlflow.end_run()

    assert (status(run), metrics(run)) == ("FINISHED", {"after": 1})


def test_a_run_that_a_task_leaves_open_is_seen_by_the_tasks_after_it(isolated):
    """A run that one notebook cell leaves open is active in the next cells, with or without a shared context."""

    async def cell(work, **fields):
        return work(**fields)

    async def main():
        notebook = contextvars.copy_context()

        async def run_cell(work, context=None, **fields):
            return await asyncio.create_task(cell(work, **fields), context=context)

        outer = await run_cell(mlflow.start_run, notebook)
        inner = await run_cell(mlflow.start_run, nested=True)
        seen = await run_cell(active_id, notebook)
        await run_cell(mlflow.end_run)
        await run_cell(mlflow.end_run, notebook)
        return outer, inner, seen

    outer, inner, seen = asyncio.run(main())

    assert parent(inner) == outer.info.run_id
    assert seen == inner.info.run_id
    assert [status(run) for run in (outer, inner)] == ["FINISHED"] * 2


def test_a_task_without_a_run_uses_one_that_another_task_has_left_open(isolated):
    """A run opened inside `asyncio.wait_for`, a task in Python 3.11, is active in the awaiting task afterwards."""

    async def setup():
        mlflow.start_run()

    async def main():
        assert active_id() is None
        await asyncio.wait_for(setup(), PATIENCE)
        mlflow.log_metric("after", 1)
        mlflow.end_run()

    asyncio.run(main())

    (run,) = stored_runs()
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"after": 1})


def test_a_second_run_in_the_same_task_is_refused(isolated):
    """`start_run` without `nested` is refused while the task has or inherits a run."""

    async def work():
        with pytest.raises(Exception, match="already active"):
            mlflow.start_run()

    async def main():
        with mlflow.start_run():
            await asyncio.create_task(work())

    asyncio.run(main())


def test_traces_belong_to_the_run_of_their_task(isolated):
    """Traces of concurrent tasks belong to the run of their own task."""

    async def work(both):
        with mlflow.start_run() as run:
            await both.wait()
            with mlflow.start_span("call") as span:
                await both.wait()
            return run.info.run_id, span.trace_id

    async def main():
        both = asyncio.Barrier(2)
        return await asyncio.gather(work(both), work(both))

    found = asyncio.run(main())
    mlflow.flush_trace_async_logging()

    sources = [mlflow.get_trace(trace_id).info.trace_metadata["mlflow.sourceRun"] for _, trace_id in found]
    assert sources == [run_id for run_id, _ in found]


def test_a_forgotten_run_is_active_nowhere(isolated):
    """`forget` drops a run and those that its owner has open inside it, but not runs of child tasks."""

    async def child(ready, done):
        with mlflow.start_run(nested=True) as run:
            ready.set()
            await done.wait()
            return run.info.run_id, mlflow_internals.open_run_ids()

    async def main():
        ready, done = asyncio.Event(), asyncio.Event()
        outer = mlflow.start_run()
        task = asyncio.create_task(child(ready, done))
        await ready.wait()
        inner = mlflow.start_run(nested=True)
        forgotten = run_stacks.forget(outer.info.run_id)
        assert mlflow_internals.open_run_ids() == []
        done.set()
        own, seen = await task
        assert forgotten == [inner.info.run_id, outer.info.run_id]
        assert seen == [own]
        assert run_stacks.forget(outer.info.run_id) == []

    asyncio.run(main())


def test_runs_inside_a_forgotten_run_are_forgotten_too(isolated):
    """`forget` in a child task also drops the runs that this task has open inside the run."""

    async def leave(outer):
        inner = mlflow.start_run(nested=True)
        return inner.info.run_id, run_stacks.forget(outer.info.run_id), active_id()

    async def main():
        outer = mlflow.start_run()
        inner_id, forgotten, seen = await asyncio.create_task(leave(outer))
        assert forgotten == [inner_id, outer.info.run_id]
        assert (seen, active_id()) == (None, None)

    asyncio.run(main())
