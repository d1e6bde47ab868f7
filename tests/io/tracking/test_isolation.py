"""Each task and each thread has its own open runs, and what has none goes to the job's."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import weakref
from concurrent.futures import ThreadPoolExecutor

import mlflow
import pytest
from mlflow.evaluation import fluent as evaluation
from mlflow.tracing.processor import base_mlflow
from mlflow.tracking import fluent
from mlflow.tracking._model_registry import fluent as registry

from autogen_team.io._tracking import isolation, seam

PATIENCE = 60


@pytest.fixture(autouse=True)
def mlflow_as_it_was(store_uri):
    """Use the store of the test, and give MLflow back to the next one as this one found it."""
    restore = seam.keep_uris()
    mlflow.set_tracking_uri(store_uri)
    yield
    while mlflow.active_run() is not None:
        mlflow.end_run()
    fluent._active_run_stack.reset()
    restore()


@pytest.fixture
def isolated():
    """Isolate until the end of the test."""
    undo = isolation.isolate()
    yield
    undo()


def in_thread(work, *arguments):
    """Call it in a thread of its own, which has none of the caller's context, and return what it returns."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work, *arguments).result(PATIENCE)


def living_thread():
    """Yield a function that does things in one thread, one after the other, and end the runs that it leaves open."""
    with ThreadPoolExecutor(1) as executor:
        yield lambda work, **fields: executor.submit(work, **fields).result(PATIENCE)
        executor.submit(lambda: [mlflow.end_run() for _ in seam.open_run_ids()]).result(PATIENCE)


@pytest.fixture
def helper():
    """Return a function that does things in a thread that lives on."""
    yield from living_thread()


@pytest.fixture
def other_helper():
    """Return one for another thread."""
    yield from living_thread()


def metrics(run):
    """Return the metrics of the run as they are stored."""
    return mlflow.get_run(run.info.run_id).data.metrics


def status(run):
    """Return the status of the run as it is stored."""
    return mlflow.get_run(run.info.run_id).info.status


def parent(run):
    """Return the id of the run that this one is nested in."""
    return run.data.tags.get("mlflow.parentRunId")


def active_id():
    """Return the id of the innermost run that the caller sees, None if it sees none."""
    run = mlflow.active_run()
    return run and run.info.run_id


def stored_runs():
    """Return all runs of the store."""
    return mlflow.MlflowClient().search_runs(["0"])


def test_tasks_do_not_see_each_other_s_runs(isolated):
    """However their waiting interleaves, each logs into its own run, and all of them end."""

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
    """And not of each other; the outer run stays innermost where it was opened."""

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


def test_a_task_inherits_what_was_open_when_it_was_created(isolated):
    """Not what its creator opens before the task asks for the first time."""

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
    """`asyncio.run` inside a run is inside that run."""

    async def main():
        mlflow.log_metric("inside", 1)
        with mlflow.start_run(nested=True) as inner:
            return inner

    with mlflow.start_run() as outer:
        inner = asyncio.run(main())
        assert active_id() == outer.info.run_id

    assert metrics(outer) == {"inside": 1}
    assert parent(inner) == outer.info.run_id


def test_a_run_that_has_ended_is_gone_from_the_tasks_that_inherited_it(isolated):
    """A task that outlives the run that it was created in may open its own."""

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
    """As in MLflow, whose tasks share all runs."""

    async def end():
        mlflow.end_run("KILLED")

    async def main():
        with mlflow.start_run() as run:
            await asyncio.create_task(end())
            assert active_id() is None
        return run

    assert status(asyncio.run(main())) == "KILLED"


def test_a_task_is_itself_in_any_context(isolated):
    """Code that it runs in another context sees its runs, and so does the code after that."""

    async def main():
        with mlflow.start_run() as run:
            foreign = contextvars.Context().run(active_id)
            contextvars.Context().run(mlflow.start_run, nested=True)
            mlflow.end_run()
            return run.info.run_id, foreign, active_id()

    run_id, foreign, after = asyncio.run(main())

    assert (foreign, after) == (run_id, run_id)


def test_tasks_that_share_a_context_do_not_share_their_runs(isolated):
    """The task decides, the context only says what it begins with."""

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
    """The loop calls it outside of any task, in a copy of the context."""

    async def main():
        done = asyncio.Event()
        with mlflow.start_run() as run:
            asyncio.get_running_loop().call_soon(lambda: (mlflow.log_metric("called", 1), done.set()))
            await done.wait()
        return run

    assert metrics(asyncio.run(main())) == {"called": 1}


def test_a_run_that_a_task_leaves_open_belongs_to_its_thread(isolated):
    """The code after `asyncio.run` logs into it and ends it."""

    async def setup():
        return mlflow.start_run()

    run = asyncio.run(setup())
    assert active_id() == run.info.run_id
    mlflow.log_metric("after", 1)
    mlflow.end_run()

    assert (status(run), metrics(run)) == ("FINISHED", {"after": 1})


def test_a_run_that_a_task_leaves_open_is_seen_by_the_tasks_after_it(isolated):
    """Each cell of a notebook is a task of its own, and only some share a context."""

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


def test_a_task_without_a_run_gets_what_another_has_left_open(isolated):
    """As when the run is opened by something that is awaited with a time limit, which is a task in Python 3.11."""

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


def test_what_a_thread_logs_goes_to_the_run_of_the_main_thread(isolated):
    """The innermost one, and no stray run is made."""
    with mlflow.start_run(), mlflow.start_run(nested=True) as inner:
        in_thread(mlflow.log_metric, "threaded", 1)
        assert in_thread(active_id) is None

    assert metrics(inner) == {"threaded": 1}
    assert len(stored_runs()) == 2


def test_what_a_thread_logs_goes_to_the_only_outermost_run(isolated):
    """Wherever that was opened: here in a task."""

    async def main():
        with mlflow.start_run(), mlflow.start_run(nested=True) as inner:
            await asyncio.get_running_loop().run_in_executor(None, mlflow.log_metric, "threaded", 1)
        return inner

    assert metrics(asyncio.run(main())) == {"threaded": 1}


def test_tasks_with_children_of_one_run_share_that_run(isolated):
    """What a thread logs might belong to any of the children, so it goes to their parent."""

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


def test_the_run_of_a_waiting_main_thread_counts_less_than_those_of_its_tasks(isolated):
    """The child of a task is the innermost run then."""

    async def main():
        with mlflow.start_run(nested=True) as inner:
            in_thread(mlflow.log_metric, "threaded", 1)
        return inner

    with mlflow.start_run():
        assert metrics(asyncio.run(main())) == {"threaded": 1}


def test_a_thread_that_opens_a_run_keeps_it(isolated):
    """As in plain MLflow: it is not nested, and neither thread logs into the other's."""

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
    """A worker that names its parent leaves it clear which run is the job's."""
    job = helper(mlflow.start_run)
    other_helper(mlflow.start_run, nested=True, parent_run_id=job.info.run_id)

    mlflow.log_metric("main", 1)

    assert metrics(job) == {"main": 1}


def test_among_independent_runs_the_main_thread_s_is_the_job_s(isolated, helper):
    """It is where the job began."""
    helper(mlflow.start_run)

    with mlflow.start_run() as main:
        in_thread(mlflow.log_metric, "threaded", 1)

    assert metrics(main) == {"threaded": 1}


def test_what_could_belong_to_several_runs_gets_its_own(isolated, helper, other_helper, caplog):
    """As in plain MLflow; it is said once what to do about it."""
    runs = [helper(mlflow.start_run), other_helper(mlflow.start_run)]

    def work():
        mlflow.log_metric("threaded", 1)
        mlflow.log_metric("threaded", 2)
        stray = mlflow.active_run()
        mlflow.end_run()
        return stray

    assert isolation.job_run() is None
    strays = [in_thread(work), in_thread(work)]

    assert [metrics(run) for run in (*runs, *strays)] == [{}, {}, {"threaded": 2}, {"threaded": 2}]
    (record,) = [record for record in caplog.records if record.name == "autogen_team"]
    assert record.levelname == "WARNING"
    assert "while 2 are open elsewhere" in record.message
    assert "pass run_id" in record.message


def test_without_any_run_mlflow_opens_one(isolated, caplog):
    """Nothing is different then, and nothing is said."""
    assert isolation.job_run() is None

    mlflow.log_metric("plain", 1)

    assert metrics(mlflow.active_run()) == {"plain": 1}
    assert "autogen_team" not in {record.name for record in caplog.records}


def test_to_thread_sees_the_run_of_its_task(isolated):
    """Also when there are others; and so does any thread that runs in a copy of the context."""

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
    """As in plain MLflow; when that has ended it sees the task's again."""

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
    """As in plain MLflow, which refuses it only to who has a run open itself."""
    other = helper(mlflow.start_run)

    def work():
        with mlflow.start_run(nested=True, parent_run_id=other.info.run_id) as run:
            return parent(run)

    async def main():
        with mlflow.start_run():
            return await asyncio.to_thread(work)

    assert asyncio.run(main()) == other.info.run_id


def test_a_run_that_cannot_be_opened_changes_nothing(isolated):
    """The thread still sees the run of its task."""

    def work():
        with pytest.raises(Exception, match="no-such-run"):
            mlflow.start_run("no-such-run")
        return active_id()

    async def main():
        with mlflow.start_run() as run:
            return run.info.run_id, await asyncio.to_thread(work)

    run_id, seen = asyncio.run(main())

    assert seen == run_id


def test_a_second_run_in_the_same_task_is_refused(isolated):
    """As in plain MLflow, also when the first is inherited."""

    async def work():
        with pytest.raises(Exception, match="already active"):
            mlflow.start_run()

    async def main():
        with mlflow.start_run():
            await asyncio.create_task(work())

    asyncio.run(main())


def test_traces_belong_to_the_run_of_their_task(isolated):
    """MLflow takes the run that was started last, in whatever thread."""

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


def test_the_job_s_run_is_known_everywhere(isolated):
    """The caller's own first."""
    assert isolation.job_run() is None
    with mlflow.start_run() as run:
        assert isolation.job_run() is run
        assert in_thread(isolation.job_run) is run
        with mlflow.start_run(nested=True) as inner:
            assert isolation.job_run() is inner
    assert in_thread(isolation.job_run) is None


def test_without_isolation_the_job_s_run_is_the_thread_s():
    """It can be asked for at any time."""
    with mlflow.start_run() as run:
        assert isolation.job_run() is run
        assert in_thread(isolation.job_run) is None


def test_a_run_is_forgotten_by_everybody(isolated):
    """With what its owner has open inside, but not what its child tasks have opened themselves."""

    async def child(ready, done):
        with mlflow.start_run(nested=True) as run:
            ready.set()
            await done.wait()
            return run.info.run_id, seam.open_run_ids()

    async def main():
        ready, done = asyncio.Event(), asyncio.Event()
        outer = mlflow.start_run()
        task = asyncio.create_task(child(ready, done))
        await ready.wait()
        inner = mlflow.start_run(nested=True)
        forgotten = isolation.forget(outer.info.run_id)
        assert seam.open_run_ids() == []
        done.set()
        own, seen = await task
        assert forgotten == [inner.info.run_id, outer.info.run_id]
        assert seen == [own]
        assert isolation.forget(outer.info.run_id) == []

    asyncio.run(main())


def test_what_the_leaving_task_has_open_inside_is_forgotten_too(isolated):
    """As when a block is entered by one task and left by another."""

    async def leave(outer):
        inner = mlflow.start_run(nested=True)
        return inner.info.run_id, isolation.forget(outer.info.run_id), active_id()

    async def main():
        outer = mlflow.start_run()
        inner_id, forgotten, seen = await asyncio.create_task(leave(outer))
        assert forgotten == [inner_id, outer.info.run_id]
        assert (seen, active_id()) == (None, None)

    asyncio.run(main())


@pytest.mark.parametrize("is_isolated", [True, False])
def test_a_run_that_another_thread_has_left_open_is_forgotten(is_isolated, helper):
    """As when a generator is begun in one thread and closed in another."""
    undo = isolation.isolate() if is_isolated else lambda: None
    runs = [helper(mlflow.start_run), helper(mlflow.start_run, nested=True), helper(mlflow.start_run, nested=True)]
    outer, middle, inner = [run.info.run_id for run in runs]

    assert isolation.forget(middle) == [inner, middle]
    assert helper(active_id) == outer
    assert isolation.forget(outer) == [outer]
    assert helper(active_id) is None
    assert isolation.forget(outer) == []
    undo()


def test_a_run_of_a_thread_that_is_gone_is_still_known(isolated):
    """Somebody may still want to close it."""
    run = in_thread(mlflow.start_run)

    assert list(fluent._active_run_stack.get_all_thread_values().values()) == [[run]]
    assert isolation.forget(run.info.run_id) == [run.info.run_id]
    assert fluent._active_run_stack.get_all_thread_values() == {}


def replaced():
    """Return the identities of all that is replaced, also where it was imported by value."""
    return [
        id(vars(module)[name])
        for module, names in (
            (mlflow, ["start_run"]),
            (fluent, ["_active_run_stack", "_get_or_start_run", "_get_latest_active_run", "start_run"]),
            (evaluation, ["_get_or_start_run"]),
            (base_mlflow, ["_get_latest_active_run"]),
            (registry, ["_get_latest_active_run"]),
        )
        for name in names
    ]


def test_all_that_was_replaced_is_given_back():
    """The very objects, also in the modules that had imported them by value."""
    before = replaced()
    undo = isolation.isolate()
    during = replaced()
    undo()

    assert not set(during) & set(before)
    assert replaced() == before


def test_what_was_imported_meanwhile_is_as_good_as_mlflow_s_own(helper):
    """A function that somebody keeps by value does what MLflow's does."""
    undo = isolation.isolate()
    log, start = fluent._get_or_start_run, mlflow.start_run
    undo()

    with start() as run:
        assert helper(log) is not run
        assert fluent._get_latest_active_run() is helper(mlflow.active_run)


def test_runs_that_were_open_before_stay_open(helper):
    """Each in its thread, and they are the job's."""
    main, other = mlflow.start_run(), helper(mlflow.start_run)

    undo = isolation.isolate()
    assert in_thread(contextvars.copy_context().run, active_id) == main.info.run_id
    assert isolation.job_run() is main
    assert list(fluent._active_run_stack.get_all_thread_values().values()) == [[main], [other]]
    assert (active_id(), helper(active_id)) == (main.info.run_id, other.info.run_id)
    mlflow.end_run()
    helper(mlflow.end_run)
    undo()

    assert (active_id(), helper(active_id)) == (None, None)
    assert [status(run) for run in (main, other)] == ["FINISHED"] * 2


def test_runs_that_are_open_after_go_back_to_their_threads(helper):
    """`mlflow.end_run` ends the right one, also in a thread that MLflow did not know before."""
    before = mlflow.start_run()
    undo = isolation.isolate()
    main, other = mlflow.start_run(nested=True), helper(mlflow.start_run)
    undo()

    assert seam.open_run_ids() == [before.info.run_id, main.info.run_id]
    assert helper(seam.open_run_ids) == [other.info.run_id]
    helper(mlflow.end_run)
    mlflow.end_run()
    assert [status(run) for run in (before, main, other)] == ["RUNNING", "FINISHED", "FINISHED"]


def test_a_task_gets_its_own_run_back():
    """When tasks share a thread again, the run of the one that undoes it is the innermost."""

    async def work(ready, done):
        with mlflow.start_run():
            ready.set()
            await done.wait()

    async def main():
        ready, done = asyncio.Event(), asyncio.Event()
        undo = isolation.isolate()
        mine = mlflow.start_run()
        task = asyncio.create_task(work(ready, done), context=contextvars.Context())
        await ready.wait()
        undo()
        assert active_id() == mine.info.run_id
        mlflow.end_run()
        done.set()
        await task
        return mine

    mine = asyncio.run(main())

    assert status(mine) == "FINISHED"
    assert active_id() is None


def test_a_run_that_is_being_opened_when_isolation_ends_is_not_lost(helper, monkeypatch):
    """Its thread has it open afterwards."""
    undo = isolation.isolate()
    create = mlflow.MlflowClient.create_run

    def slow(*args, **fields):
        undo()
        return create(*args, **fields)

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", slow)
    run = helper(mlflow.start_run)

    assert helper(active_id) == run.info.run_id


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_services_may_leave_in_any_order(order):
    """The last one gives back what the first one found."""
    before = replaced()
    undo = [isolation.isolate(), isolation.isolate()]

    undo[order[0]]()
    undo[order[0]]()
    with mlflow.start_run() as run:
        assert in_thread(isolation.job_run) is run
    undo[order[1]]()

    assert replaced() == before


def test_a_second_isolation_knows_nothing_of_the_first():
    """Also in a context that was there before."""
    first = isolation.isolate()
    mlflow.start_run()
    context = contextvars.copy_context()
    first()
    mlflow.end_run()

    second = isolation.isolate()
    assert active_id() is None
    assert context.run(active_id) is None
    assert in_thread(context.run, active_id) is None
    second()


def test_a_forked_child_has_no_run(store_uri, run_python):
    """What it logs gets a run of its own, as in plain MLflow; the parent's goes on, and may isolate again."""
    code = f"""if True:
        import os, sys, mlflow
        from mlflow.tracking import fluent
        from autogen_team.io._tracking import isolation
        mlflow.set_tracking_uri({store_uri!r})
        plain = fluent._active_run_stack
        if os.fork() == 0:  # nothing is isolated yet
            sys.exit(0 if fluent._active_run_stack is plain else 1)
        assert os.wait()[1] == 0
        undo = isolation.isolate()
        with mlflow.start_run() as run:
            if os.fork() == 0:
                assert mlflow.active_run() is None and isolation.job_run() is None
                assert fluent._active_run_stack is plain
                mlflow.log_metric("child", 1)
                assert mlflow.active_run().info.run_id != run.info.run_id
                undo()
                mlflow.end_run()
                again = isolation.isolate()
                assert mlflow.active_run() is None and isolation.job_run() is None
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


def stacks():
    """Return the stacks that are alive."""
    gc.collect()
    return [one for one in gc.get_objects() if type(one) is isolation._Stack]


def test_nothing_is_kept_of_tasks_and_threads_that_are_gone(isolated):
    """A job may have millions of them."""

    async def work():
        with mlflow.start_run(nested=True):
            await asyncio.to_thread(mlflow.active_run)

    async def main():
        await asyncio.gather(*[work() for _ in range(5)])
        in_thread(mlflow.active_run)

    with mlflow.start_run():
        before = len(stacks())
        asyncio.run(main())
        assert len(stacks()) == before


def test_nothing_is_kept_after_the_end():
    """Neither runs nor stacks, save the last one of each context."""
    undo = isolation.isolate()
    with mlflow.start_run() as run:
        gone = weakref.ref(run)
    undo()

    del run
    gc.collect()
    assert gone() is None


def test_the_variable_has_the_methods_of_mlflow_s(isolated):
    """Though nobody in MLflow calls these two."""
    runs = [mlflow.start_run(), mlflow.start_run(nested=True)]

    fluent._active_run_stack.set(runs[:1])
    assert mlflow.active_run() is runs[0]
    fluent._active_run_stack.set(runs)
    assert mlflow.active_run() is runs[1]
    fluent._active_run_stack.reset()
    assert mlflow.active_run() is None
    assert isolation.job_run() is None


def test_mlflow_changes_its_list_of_open_runs_by_append_and_pop_only():
    """And it does so in place: the contract that a list of ours relies on."""
    heard = []

    class Spy(list):
        def __getattribute__(self, name):
            heard.append(name)
            return super().__getattribute__(name)

    fluent._active_run_stack.set(spy := Spy())
    with mlflow.start_run(), mlflow.start_run(nested=True):
        assert len(spy) == 2
    assert spy == []

    assert set(heard) == {"append", "pop"}
    assert list(fluent._active_run_stack.get_all_thread_values().values()) == [spy]
    assert fluent._active_run_stack.get() is spy


def test_mlflow_s_names_are_what_they_are_taken_for():
    """Those that are replaced, their class, and their arguments."""
    assert type(fluent._active_run_stack).__name__ == "ThreadLocalVariable"
    public = {name for name in vars(type(fluent._active_run_stack)) if not name.startswith("_")}
    assert public == {"get", "set", "get_all_thread_values", "reset"}
    assert not inspect.signature(fluent._get_or_start_run).parameters
    assert not inspect.signature(fluent._get_latest_active_run).parameters
    parameters = list(inspect.signature(fluent.start_run).parameters)
    assert parameters[:5] == ["run_id", "experiment_id", "run_name", "nested", "parent_run_id"]


def test_a_run_knows_its_parent_and_is_equal_to_itself_only():
    """Runs are compared by identity, and found by the tag that MLflow gives a nested one."""
    with mlflow.start_run() as outer, mlflow.start_run(nested=True) as inner:
        assert parent(inner) == outer.info.run_id
    assert mlflow.ActiveRun.__eq__ is object.__eq__
    assert mlflow.ActiveRun.__hash__ is object.__hash__
