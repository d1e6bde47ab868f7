"""The context in Python workers of a real, local Spark, which `make test-spark` installs."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autogen_team import GlobalContext
from autogen_team.errors import NotStartedError
from autogen_team.workers.spark import partitions

FUNCTIONS = '''
import json
from contextlib import contextmanager

from pyspark.errors import PythonException
from pyspark.sql import SparkSession

from autogen_team.workers.spark import partitions

os.environ["PYSPARK_PYTHON"] = sys.executable


@contextmanager
def local_spark():
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    for name in ("spark.driver.bindAddress", "spark.driver.host"):
        builder = builder.config(name, "127.0.0.1")
    spark = builder.getOrCreate()
    try:
        yield spark
    finally:
        spark.stop()


def rows(numbers):
    """Log during the whole partition."""
    logger.debug("look at https://bob:hunter2@host")
    for number in numbers:
        fold(number)
        yield number, os.getpid()


def squares(numbers):
    """Compute lazily, as a generator does, without being one."""

    def square(number):
        mlflow.log_metric("square", number**2, step=number)
        return number**2

    return map(square, numbers)


def frames(parts):
    for part in parts:
        for number in part["id"]:
            mlflow.log_metric("framed", number, step=number)
        part["pid"] = os.getpid()
        yield part


def fail(numbers):
    for number in numbers:
        if number == 1:
            raise ValueError(f"bad row {number}")
        yield number


def die(numbers):
    for step in range(100):
        mlflow.log_metric("accuracy", 0.5, step=step)
    os.kill(os.getpid(), signal.SIGKILL)
    yield from numbers
'''


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    """Return the output of the job; it is filled when the job has run."""
    return {}


@pytest.fixture(scope="module")
def job(run_slow_job: Callable[[str, str], Any], wait_until: Callable[..., None], said: dict[str, Any]) -> Any:
    """Return a job that has used all functions with Spark, after the agents of its workers have finished."""
    pytest.importorskip("pyspark", reason="Spark is not installed: make test-spark")
    if not (shutil.which("java") or Path(os.environ.get("JAVA_HOME", ""), "bin", "java").is_file()):
        pytest.skip("no Java: Spark 4 needs Java 17 or newer, on the PATH or at JAVA_HOME")
    found = run_slow_job(
        """
        said = {}
        with local_spark() as spark, make_context() as context, context.run("train", log_system_metrics=False):
            numbers = spark.sparkContext.parallelize(range(8), 4)
            said["rows"] = numbers.mapPartitions(partitions(context, rows)).collect()
            said["nested"] = numbers.mapPartitions(partitions(context, rows, nested=True)).collect()
            said["squares"] = numbers.mapPartitions(partitions(context, squares)).collect()
            said["taken"] = numbers.mapPartitions(partitions(context, rows, nested="taken")).take(1)
            said["frames"] = spark.range(8).mapInPandas(partitions(context, frames), "id long, pid long").collect()
            try:
                numbers.mapPartitions(partitions(context, fail, nested="doomed")).collect()
            except PythonException as error:
                said["error"] = str(error)
            try:
                spark.sparkContext.parallelize([1], 1).mapPartitions(partitions(context, die, nested="dying")).collect()
            except Exception as error:
                said["death"] = str(error)
            said["rows after it"] = numbers.mapPartitions(partitions(context, rows, nested="again")).collect()
        print(json.dumps(said))
        """,
        FUNCTIONS,
    )
    said.update(json.loads(found.out[-1]))
    wait_until(lambda: not found.journals(), timeout=200)
    return found


def test_metrics_of_partitions_are_in_the_run(job, said):
    """Spark gets the yielded values, and reuses the processes."""
    train = job.store.run("train")

    assert (train.info.status, job.store.steps(train)) == ("FINISHED", list(range(8)))
    assert [number for number, _ in said["rows"]] == list(range(8))
    assert {pid for _, pid in said["nested"]} <= {pid for _, pid in said["rows"]}


def test_lines_are_in_a_file_for_each_worker(job, said):
    """Lines have the run id and the worker's name; the level is the job's, and secrets are masked."""
    run_id = job.store.run("train").info.run_id
    lines = [line for line in job.log_lines() if line.get("run_id") == run_id and line["function"] == "fold"]

    assert sorted(line["message"] for line in lines) == [f"fold {number}" for number in range(8)]
    assert [line for line in lines if line["file"] != f"job-{line['worker']}"] == []
    assert {line["worker"].rpartition("-")[2] for line in lines} == {str(pid) for _, pid in said["rows"]}
    urls = {line["message"] for line in job.log_lines() if line["message"].startswith("look at ")}
    assert urls == {"look at https://bob:***@host"}


def test_a_nested_partition_has_one_child(job):
    """Child runs have the tag by which MLflow displays them under their parent."""
    children = [run for run in job.store.children() if run.info.run_name == "rows"]

    assert sorted(job.store.steps(run) for run in children) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert {run.info.status for run in children} == {"FINISHED"}
    assert all(run.data.tags["autogen_team.worker"] for run in children)


def test_an_iterator_has_the_context_while_it_is_read(job, said):
    """The context is active as for a generator, although the function has returned before."""
    assert said["squares"] == [number**2 for number in range(8)]
    assert job.store.steps(job.store.run("train"), "square") == list(range(8))


def test_functions_of_map_in_pandas_can_be_bound(job, said):
    """MapInPandas requires a function with a signature."""
    assert sorted(number for number, _ in said["frames"]) == list(range(8))
    assert job.store.steps(job.store.run("train"), "framed") == list(range(8))


def test_a_partition_that_is_not_read_to_its_end_is_finished(job, said):
    """Spark may stop reading a partition early."""
    [child] = [run for run in job.store.children() if run.info.run_name == "taken"]

    assert len(said["taken"]) == 1
    assert child.info.status == "FINISHED"


def test_a_failing_partition_alerts_once(job, said):
    """The child run is FAILED, and the driver gets the exception."""
    failed = [run for run in job.store.children() if run.info.status == "FAILED"]

    assert [run.info.run_name for run in failed] == ["doomed"]
    assert failed[0].data.tags["autogen_team.exception"] == "ValueError: bad row 1"
    assert "ValueError: bad row 1" in said["error"]
    assert job.err.count("[job] doomed failed: ") == 1  # Spark shows the stdout of its workers there


def test_a_worker_that_is_killed_loses_nothing(job, said):
    """Its metrics arrive, and its child run is closed; other workers do the rest."""
    [child] = [run for run in job.store.children() if run.info.run_name == "dying"]

    assert "Python worker exited unexpectedly" in said["death"]
    assert (child.info.status, job.store.steps(child)) == ("KILLED", list(range(100)))
    assert [number for number, _ in said["rows after it"]] == list(range(8))
    assert [run.info.run_name for run in job.store.runs() if run.info.status == "RUNNING"] == []


def test_a_function_keeps_its_signature_and_name(store):
    """Spark inspects the signature and displays the name; the function also works without Spark."""

    def count(rows):
        """Count."""
        yield len(list(rows))

    with GlobalContext() as context, context.run("train"):
        counted = partitions(context, count)
        assert (inspect.isgeneratorfunction(counted), counted.__name__, counted.__doc__) == (True, "count", "Count.")
        assert list(counted(iter("abc"))) == [3]


def test_a_stopped_context_is_an_error():
    """The error is raised in the driver, where it can be fixed, not on an executor."""
    with pytest.raises(NotStartedError, match="call start"):
        partitions(GlobalContext(), iter)
