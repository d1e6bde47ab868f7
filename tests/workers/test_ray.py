"""The context in workers of a real Ray, on the loopback interface."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from autogen_team import GlobalContext
from autogen_team.errors import ConfigurationError, NotStartedError
from autogen_team.workers.ray import _Hook, remote, runtime_env

FUNCTIONS = '''
import json, tempfile
from contextlib import contextmanager
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray

from autogen_team.workers.ray import remote, runtime_env


@contextmanager
def local_ray(**fields):
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # Ray's sockets need a short path
        options = {"num_cpus": 2, "include_dashboard": False, "_temp_dir": folder, "_node_ip_address": "127.0.0.1"}
        ray.init(**options, **fields)
        try:
            yield Path(folder)
        finally:
            ray.shutdown()


class Actor:
    def __init__(self):
        mlflow.log_metric("acted", 0, step=0)

    def act(self, step):
        mlflow.log_metric("acted", step, step=step)
        return os.getpid()


class AsyncActor:
    async def act(self, step):
        mlflow.log_metric("awaited", step, step=step)
        return os.getpid()


def count(number):
    for step in range(number):
        mlflow.log_metric("counted", step, step=step)
        yield step


def fail(number):
    logger.debug("look at https://bob:hunter2@host")
    raise ValueError(f"bad fold {number}")


def die_once(number):
    """Be killed halfway the first time, and do the rest the second time."""
    marker = Path(f"died-{number}").absolute()
    first = number if not marker.exists() else number + 100
    for step in range(first, first + 100):
        mlflow.log_metric("accuracy", 0.5, step=step)
    if not marker.exists():
        marker.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def say_much():
    for step in range(1000):
        mlflow.log_metric("last", step, step=step)


def do(function, numbers):
    return ray.get([function.remote(number) for number in numbers])
'''


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    """Return the output of the job; it is filled when the job has run."""
    return {}


@pytest.fixture(scope="module")
def job(run_slow_job: Callable[[str, str], Any], wait_until: Callable[..., None], said: dict[str, Any]) -> Any:
    """Return a job that has used all functions with Ray, after the agents of its workers have finished."""
    found = run_slow_job(
        """
        said = {}
        with make_context() as context, context.run("train", log_system_metrics=False) as run:
            with local_ray(runtime_env=runtime_env(context, env_vars={"OWN": "mine"})) as folder:
                said["own"] = ray.get(ray.remote(lambda: os.environ["OWN"]).remote())
                said["pids"] = do(ray.remote(fold), range(8))
                do(remote(context, fold, nested=True), range(10, 14))
                for function, number in [(ray.remote(fail), 1), (remote(context, fail, nested="doomed"), 2)]:
                    try:
                        do(function, [number])
                    except ValueError as error:
                        said["error"] = str(error)
                said["counted"] = [ray.get(step) for step in remote(context, count, nested=True).remote(3)]
                for kind in (Actor, AsyncActor):
                    actor = ray.remote(kind).remote()
                    ray.get([actor.act.remote(step) for step in range(1, 4)])
                    ray.kill(actor)
                do(ray.remote(max_retries=1)(die_once), [100])
                do(remote(context, die_once, nested="dying", max_retries=1), [1000])
                outputs = folder.glob("session_2*/logs/worker-*.out")
                said["alerts"] = [line for path in outputs for line in path.read_text().splitlines() if "[job]" in line]
                ray.get(ray.remote(say_much).remote())
        print(json.dumps(said))
        """,
        FUNCTIONS,
    )
    said.update(json.loads(found.out[-1]))
    wait_until(lambda: not found.journals(), timeout=200)
    return found


def test_metrics_of_tasks_are_in_the_run(job, said):
    """Metrics of all workers are in the run; the functions are unchanged."""
    train = job.store.run("train")

    assert train.info.status == "FINISHED"
    assert [step for step in job.store.steps(train) if step < 100] == list(range(8))
    assert said["own"] == "mine"


def test_lines_are_in_a_file_for_each_worker(job, said):
    """Lines have the run id and the worker's name; the level is the job's, and secrets are masked."""
    run_id = job.store.run("train").info.run_id
    lines = [line for line in job.log_lines() if line.get("run_id") == run_id and line["function"] == "fold"]

    assert sorted(line["message"] for line in lines) == [f"fold {number}" for number in range(8)]
    assert [line for line in lines if line["file"] != f"job-{line['worker']}"] == []
    assert {line["worker"].rpartition("-")[2] for line in lines} == {str(pid) for pid in said["pids"]}
    urls = {line["message"] for line in job.log_lines() if line["message"].startswith("look at ")}
    assert urls == {"look at https://bob:***@host"}
    logs = {name.rpartition("-")[2].partition(".")[0] for name in job.store.logs(job.store.run("train"))}
    assert logs > {str(pid) for pid in said["pids"]}


def test_actors_have_the_context_too(job):
    """Actors have the context from their creation, in the main thread and in an event loop."""
    train = job.store.run("train")

    assert job.store.steps(train, "acted") == [0, 1, 2, 3]
    assert job.store.steps(train, "awaited") == [1, 2, 3]


def test_each_task_of_a_remote_function_has_a_child_run(job):
    """Child runs have the tag by which MLflow displays them under their parent."""
    children = [run for run in job.store.children() if run.info.run_name == "fold"]

    assert sorted(job.store.steps(run) for run in children) == [[10], [11], [12], [13]]
    assert {run.info.status for run in children} == {"FINISHED"}
    assert all(run.data.tags["autogen_team.worker"] for run in children)


def test_a_remote_generator_has_the_context_while_it_is_read(job, said):
    """Ray streams the yielded values, and the child run ends with the generator."""
    [child] = [run for run in job.store.children() if run.info.run_name == "count"]

    assert said["counted"] == [0, 1, 2]
    assert (child.info.status, job.store.steps(child, "counted")) == ("FINISHED", [0, 1, 2])


def test_a_failing_task_alerts_once(job, said):
    """Only a failing task with its own run alerts; otherwise the caller gets the exception."""
    [child] = [run for run in job.store.children() if run.info.run_name == "doomed"]

    assert (child.info.status, child.data.tags["autogen_team.exception"]) == ("FAILED", "ValueError: bad fold 2")
    assert "ValueError: bad fold 2" in said["error"]
    [alert] = said["alerts"]
    assert alert.startswith("[job] doomed failed: ")


def test_a_worker_that_is_killed_loses_nothing(job):
    """Its metrics arrive, in addition to those of the second attempt."""
    assert [step for step in job.store.steps(job.store.run("train")) if step >= 100] == list(range(100, 300))


def test_the_child_of_a_task_that_is_killed_is_closed(job):
    """The second attempt has another child run."""
    children = [run for run in job.store.children() if run.info.run_name == "dying"]

    found = [(run.info.status, job.store.steps(run)) for run in children]
    assert found == [("KILLED", list(range(1000, 1100))), ("FINISHED", list(range(1100, 1200)))]
    assert [run.info.run_name for run in job.store.runs() if run.info.status == "RUNNING"] == []


def test_metrics_logged_just_before_the_shutdown_arrive(job):
    """Ray kills its workers without notice; their agents deliver the journal."""
    assert job.store.steps(job.store.run("train"), "last") == list(range(1000))


def test_ray_is_imported_only_on_request():
    """Neither the package nor its other worker engines import Ray."""
    code = (
        "import sys, autogen_team.context, autogen_team.workers\n"
        "assert not {'ray', 'pyspark', 'distributed', 'joblib'} & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", code], check=True)


def test_conflicts_are_errors(store, tmp_path):
    """Each error says what to do instead."""
    with GlobalContext() as context:
        with pytest.raises(ConfigurationError, match=r"worker_process_setup_hook is 'my.hook', but Ray accepts only"):
            runtime_env(context, worker_process_setup_hook="my.hook")
        with pytest.raises(ConfigurationError, match=r"AUTOGEN_TEAM_STATE_DIR is 'here' in env_vars, but '.*state' in"):
            runtime_env(context, env_vars={"AUTOGEN_TEAM_STATE_DIR": "here"})
        own = {"env_vars": {"OWN": "mine"}, "pip": ["tqdm"]}
        found = runtime_env(context, **own)
    assert found["env_vars"] == {"OWN": "mine", "AUTOGEN_TEAM_STATE_DIR": str(tmp_path / "state")}
    assert (found["pip"], own["env_vars"]) == (["tqdm"], {"OWN": "mine"})


def test_a_stopped_context_is_an_error():
    """The error is raised in the job, where it can be fixed, not in the worker."""
    context = GlobalContext()

    with pytest.raises(NotStartedError, match="call start"):
        runtime_env(context)
    with pytest.raises(NotStartedError, match="call start"):
        remote(context, print)


def test_a_worker_that_cannot_join_the_context_continues(caplog):
    """Ray would restart a worker whose hook raises, forever."""

    def enter() -> None:
        raise OSError(28, "No space left on device")

    with caplog.at_level(logging.ERROR, "autogen_team"):
        _Hook(enter)()

    [message] = caplog.messages
    assert message.endswith("could not join the job's context: [Errno 28] No space left on device")
