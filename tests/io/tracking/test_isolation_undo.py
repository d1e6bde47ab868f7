"""Ending isolation restores the replaced objects, with all open runs, and frees everything else."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import weakref

import mlflow
import pytest
from mlflow.evaluation import fluent as evaluation
from mlflow.tracing.processor import base_mlflow
from mlflow.tracking import fluent
from mlflow.tracking._model_registry import fluent as registry

from autogen_team._capture import mlflow_internals, run_stacks
from testkit.runs import active_id, in_thread, parent, status

PATIENCE = 60

pytestmark = pytest.mark.usefixtures("mlflow_as_it_was")


def replaced():
    """Return the ids of all objects that isolation replaces, also where they were imported by value."""
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


def test_all_replaced_objects_are_restored():
    """`undo` restores the same objects, also in modules that imported them by value."""
    before = replaced()
    undo = run_stacks.isolate()
    during = replaced()
    undo()

    assert not set(during) & set(before)
    assert replaced() == before


def test_a_function_imported_meanwhile_works_like_mlflow_s_own(helper):
    """A replaced function that was imported by value works like MLflow's own after the end of isolation."""
    undo = run_stacks.isolate()
    log, start = fluent._get_or_start_run, mlflow.start_run
    undo()

    with start() as run:
        assert helper(log) is not run
        assert fluent._get_latest_active_run() is helper(mlflow.active_run)


def test_runs_that_were_open_before_stay_open(helper):
    """Runs that were open before isolation stay open in their threads, and are found as the job's."""
    main, other = mlflow.start_run(), helper(mlflow.start_run)

    undo = run_stacks.isolate()
    assert in_thread(contextvars.copy_context().run, active_id) == main.info.run_id
    assert run_stacks.job_run() is main
    assert list(fluent._active_run_stack.get_all_thread_values().values()) == [[main], [other]]
    assert (active_id(), helper(active_id)) == (main.info.run_id, other.info.run_id)
    mlflow.end_run()
    helper(mlflow.end_run)
    undo()

    assert (active_id(), helper(active_id)) == (None, None)
    assert [status(run) for run in (main, other)] == ["FINISHED"] * 2


def test_runs_that_are_open_after_go_back_to_their_threads(helper):
    """Runs that are open when isolation ends stay open in their threads, where `end_run` ends them."""
    before = mlflow.start_run()
    undo = run_stacks.isolate()
    main, other = mlflow.start_run(nested=True), helper(mlflow.start_run)
    undo()

    assert mlflow_internals.open_run_ids() == [before.info.run_id, main.info.run_id]
    assert helper(mlflow_internals.open_run_ids) == [other.info.run_id]
    helper(mlflow.end_run)
    mlflow.end_run()
    assert [status(run) for run in (before, main, other)] == ["RUNNING", "FINISHED", "FINISHED"]


def test_a_task_gets_its_own_run_back():
    """When a task ends isolation, its own run is the innermost one of the thread."""

    async def work(ready, done):
        with mlflow.start_run():
            ready.set()
            await done.wait()

    async def main():
        ready, done = asyncio.Event(), asyncio.Event()
        undo = run_stacks.isolate()
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
    """A run that is being opened while isolation ends is open in its thread afterwards."""
    undo = run_stacks.isolate()
    create = mlflow.MlflowClient.create_run

    def slow(*args, **fields):
        undo()
        return create(*args, **fields)

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", slow)
    run = helper(mlflow.start_run)

    assert helper(active_id) == run.info.run_id


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_services_can_stop_in_any_order(order):
    """Two services may end isolation in any order; the last one restores what the first one found."""
    before = replaced()
    undo = [run_stacks.isolate(), run_stacks.isolate()]

    undo[order[0]]()
    undo[order[0]]()
    with mlflow.start_run() as run:
        assert in_thread(run_stacks.job_run) is run
    undo[order[1]]()

    assert replaced() == before


def test_a_second_isolation_knows_nothing_of_the_first():
    """A second isolation does not know runs of the first, not even in a context from that time."""
    first = run_stacks.isolate()
    mlflow.start_run()
    context = contextvars.copy_context()
    first()
    mlflow.end_run()

    second = run_stacks.isolate()
    assert active_id() is None
    assert context.run(active_id) is None
    assert in_thread(context.run, active_id) is None
    second()


def stacks():
    """Return all live stacks of isolation."""
    gc.collect()
    return [one for one in gc.get_objects() if type(one) is run_stacks._Stack]


def test_ended_tasks_and_threads_leave_nothing_behind(isolated):
    """Ended tasks and threads leave no stacks behind, because a job may have millions of them."""

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


def test_runs_are_freed_after_the_end():
    """After the end of isolation, a run is freed when its last user drops it."""
    undo = run_stacks.isolate()
    with mlflow.start_run() as run:
        gone = weakref.ref(run)
    undo()

    del run
    gc.collect()
    assert gone() is None


def test_the_variable_has_the_methods_of_mlflow_s(isolated):
    """The stand-in for MLflow's stack has working `set` and `reset`, although MLflow calls neither."""
    runs = [mlflow.start_run(), mlflow.start_run(nested=True)]

    fluent._active_run_stack.set(runs[:1])
    assert mlflow.active_run() is runs[0]
    fluent._active_run_stack.set(runs)
    assert mlflow.active_run() is runs[1]
    fluent._active_run_stack.reset()
    assert mlflow.active_run() is None
    assert run_stacks.job_run() is None


def test_mlflow_changes_its_list_of_open_runs_by_append_and_pop_only():
    """MLflow changes its list of open runs only in place, by `append` and `pop`, which our list relies on."""
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


def test_mlflow_s_names_are_as_expected():
    """The functions and the class of MLflow that isolation replaces have the expected methods and arguments."""
    assert type(fluent._active_run_stack).__name__ == "ThreadLocalVariable"
    public = {name for name in vars(type(fluent._active_run_stack)) if not name.startswith("_")}
    assert public == {"get", "set", "get_all_thread_values", "reset"}
    assert not inspect.signature(fluent._get_or_start_run).parameters
    assert not inspect.signature(fluent._get_latest_active_run).parameters
    parameters = list(inspect.signature(fluent.start_run).parameters)
    assert parameters[:5] == ["run_id", "experiment_id", "run_name", "nested", "parent_run_id"]


def test_a_run_knows_its_parent_and_is_equal_to_itself_only():
    """MLflow compares active runs by identity, and tags a nested run with its parent."""
    with mlflow.start_run() as outer, mlflow.start_run(nested=True) as inner:
        assert parent(inner) == outer.info.run_id
    assert mlflow.ActiveRun.__eq__ is object.__eq__
    assert mlflow.ActiveRun.__hash__ is object.__hash__
