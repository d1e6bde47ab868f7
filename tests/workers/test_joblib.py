"""The context in real processes of loky, which joblib and scikit-learn use."""

from __future__ import annotations

import pytest

from autogen_team import GlobalContext
from autogen_team.errors import NotStartedError
from autogen_team.workers.joblib import workers

FUNCTIONS = """
from joblib import Parallel, delayed, parallel_config

from autogen_team.workers.joblib import workers


def run_all(fn, numbers, **fields):
    return Parallel(**fields)(delayed(fn)(number) for number in numbers)


def fail(number):
    raise ValueError(f"bad fold {number}")


def die_once(number):
    mlflow.log_metric("accuracy", 0.5, step=number)
    os.kill(os.getpid(), signal.SIGKILL)


def steps_of(context, run):
    history = context.mlflow_service.client().get_metric_history(run.info.run_id, "accuracy")
    return sorted(metric.step for metric in history)


def describe():
    from autogen_team._process import Undo, identity, run_events

    return os.getpid(), identity.worker()
"""


def test_metrics_of_tasks_are_in_the_run(run_slow_job):
    """Several `Parallel` objects share processes, which deliver everything and exit when the block ends."""
    job = run_slow_job(
        """
        with make_context() as context, context.run("train", log_system_metrics=False) as run:
            with workers(context, 2):
                pids = {*run_all(fold, range(6)), *run_all(fold, range(6, 12))}
            assert steps_of(context, run) == list(range(12))
            for pid in pids:
                try:
                    os.kill(pid, 0)
                except ProcessLookupError:
                    continue
                raise AssertionError(f"{pid} lives")
            [(pid, worker), *_] = Parallel(2)([delayed(describe)()] * 2)
            assert pid not in pids
            assert worker is None
            print(*pids)
        """,
        FUNCTIONS,
    )

    [run] = job.store.runs()
    assert (run.info.status, job.store.steps(run)) == ("FINISHED", list(range(12)))
    lines = [line for line in job.log_lines() if line["function"] == "fold"]
    assert sorted(line["message"] for line in lines) == sorted(f"fold {number}" for number in range(12))
    assert {line["run_id"] for line in lines} == {run.info.run_id}
    assert {line["worker"].rpartition("-")[2] for line in lines} == set(job.out[-1].split())
    assert job.journals() == []
    assert job.err == ""


def test_each_search_logs_to_the_open_run(run_slow_job):
    """The block can be inside a run or around several runs; loky's processes are replaced."""
    job = run_slow_job(
        """
        with make_context() as context:
            with context.run("a", log_system_metrics=False), workers(context, 2):
                run_all(fold, range(4))
            with workers(context, 2):
                for first, name in ((4, "b"), (8, "c")):
                    with context.run(name, log_system_metrics=False):
                        run_all(fold, range(first, first + 4))
        """,
        FUNCTIONS,
    )

    wanted = {name: list(range(first * 4, first * 4 + 4)) for first, name in enumerate("abc")}
    assert {run.info.run_name: job.store.steps(run) for run in job.store.runs()} == wanted
    lines = [line for line in job.log_lines() if line["function"] == "fold"]
    assert {(line["run_name"], int(line["message"].split()[1])) for line in lines} == {
        (name, step) for name, steps in wanted.items() for step in steps
    }


def test_a_grid_search_logs_to_the_run(run_slow_job):
    """Scikit-learn's `Parallel` logs metrics and lines of a scorer to the run; only the job autologs."""
    job = run_slow_job(
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV

        images = [[float(number)] for number in range(40)]
        with make_context(autolog_log_models=False) as context, context.run("train", log_system_metrics=False):
            with workers(context, 2):
                GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2, scoring=score).fit(images, [0, 1] * 20)
        """,
        FUNCTIONS
        + """

def score(model, images, labels):
    logger.info("scored C={}", model.C)
    mlflow.log_metric("accuracy", model.score(images, labels), step=int(model.C * 10))
    return model.score(images, labels)
""",
    )

    train = job.store.run("train")
    best = int(float(train.data.params["best_C"]) * 10)  # autologging scores once more here
    assert (train.info.status, job.store.steps(train)) == ("FINISHED", sorted([1, 1, 10, 10, best]))
    lines = [line for line in job.log_lines() if line["function"] == "score"]
    assert sorted(line["message"] for line in lines) == sorted(["scored C=0.1", "scored C=1.0"] * 2)
    assert {line["run_id"] for line in lines} == {train.info.run_id}


def test_a_run_for_each_task_or_for_each_process(run_slow_job):
    """Each task, or each process, has a child run."""
    job = run_slow_job(
        """
        with make_context() as context:
            with context.run("train", log_system_metrics=False), workers(context, 2):
                run_all(context.bind(fold, nested=True), range(4))
            with context.run("second", log_system_metrics=False), workers(context, 2, nested="process"):
                run_all(fold, range(10, 14))
        """,
        FUNCTIONS,
    )

    assert sorted((run.info.run_name, job.store.steps(run)) for run in job.store.children()) == [
        ("fold", [number]) for number in range(4)
    ]
    assert {run.info.run_name for run in job.store.children("second")} == {"process"}
    assert sorted(step for run in job.store.children("second") for step in job.store.steps(run)) == list(range(10, 14))
    assert {run.info.status for run in job.store.runs()} == {"FINISHED"}
    assert job.store.steps(job.store.run("train")) == job.store.steps(job.store.run("second")) == []


def test_after_a_failing_task_later_tasks_run(run_slow_job, wait_until):
    """Joblib then kills its other processes; their entries arrive, and no run stays RUNNING."""
    job = run_slow_job(
        """
        with make_context() as context, context.run("train", log_system_metrics=False), workers(context, 2):
            run_all(fold, range(4))
            try:
                run_all(context.bind(fail, nested="doomed"), [7])
            except ValueError:
                run_all(fold, range(4, 6))
        """,
        FUNCTIONS,
    )

    wait_until(lambda: job.journals() == [])
    assert job.store.steps(job.store.run("train")) == list(range(6))
    [doomed] = job.store.children()
    assert (doomed.info.status, doomed.data.tags["autogen_team.exception"]) == ("FAILED", "ValueError: bad fold 7")
    alert, *_ = job.out
    assert alert.startswith("[job] doomed failed: ")


def test_the_death_of_a_worker_is_recovered(run_slow_job, wait_until):
    """Joblib aborts the whole `Parallel`; entries of the dead worker arrive, and its child is KILLED."""
    job = run_slow_job(
        """
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        with make_context() as context, context.run("train", log_system_metrics=False), workers(context, 2):
            for fn in (die_once, context.bind(die_once, nested="child")):
                try:
                    run_all(fn, [1])
                except TerminatedWorkerError:
                    continue
                raise AssertionError("it lives")
            run_all(fold, range(2, 4))
        """,
        FUNCTIONS,
    )

    wait_until(lambda: job.journals() == [])
    train = job.store.run("train")
    assert (train.info.status, job.store.steps(train)) == ("FINISHED", [1, 2, 3])
    [child] = job.store.children()
    assert (child.info.status, job.store.steps(child)) == ("KILLED", [1])


def test_tasks_in_this_process_log_to_the_run(run_slow_job):
    """Threads and `n_jobs=1` log to the run, without a process."""
    job = run_slow_job(
        """
        with make_context() as context, context.run("train", log_system_metrics=False):
            with workers(context, 2):
                here = {*run_all(fold, range(3), n_jobs=1), *run_all(fold, range(3, 6), require="sharedmem")}
                with parallel_config("threading", n_jobs=2):
                    here |= {*run_all(fold, range(6, 9))}
            assert here == {os.getpid()}, here
        """,
        FUNCTIONS,
    )

    [run] = job.store.runs()
    assert job.store.steps(run) == list(range(9))
    assert job.log_lines() == []


def test_options_are_those_of_joblib(run_slow_job):
    """Options are passed to loky, which limits the threads of libraries; unknown options are rejected."""
    job = run_slow_job(
        """
        with make_context() as context:
            with workers(context, 2, inner_max_num_threads=1, idle_worker_timeout=60):
                print(*set(run_all(os.getenv, ["OMP_NUM_THREADS"] * 2)))
            with workers(context, 2, timeout=60):
                try:
                    run_all(abs, [1, 2])
                except ValueError as error:
                    print(error)
        """,
        FUNCTIONS,
    )

    first, second = job.out
    assert first == "1"
    assert "idle_worker_timeout" in second


def test_a_stopped_context_is_an_error():
    """The error is raised when the block is entered, not when the first task is sent."""
    with pytest.raises(NotStartedError, match=r"is not running: call start\(\)"), workers(GlobalContext()):
        raise AssertionError("the block must not run")
