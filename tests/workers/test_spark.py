"""The context in the Python workers of a real, local Spark: `make test-spark` installs it."""

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
    """Log from the beginning of the partition to its end."""
    logger.debug("look at https://bob:hunter2@host")
    for number in numbers:
        fold(number)
        yield number, os.getpid()


def squares(numbers):
    """Compute when it is read, as a generator does, without being one."""

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
    """Return what the job has said; filled when it has run."""
    return {}


@pytest.fixture(scope="module")
def job(run_slow_job: Callable[[str, str], Any], wait_until: Callable[..., None], said: dict[str, Any]) -> Any:
    """Return a job that has used Spark in all ways, when the agents of its workers have done their work too."""
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


def test_what_partitions_log_is_the_runs(job, said):
    """Spark gets what the function yields, from processes that it uses again."""
    train = job.store.run("train")

    assert (train.info.status, job.store.steps(train)) == ("FINISHED", list(range(8)))
    assert [number for number, _ in said["rows"]] == list(range(8))
    assert {pid for _, pid in said["nested"]} <= {pid for _, pid in said["rows"]}


def test_lines_are_in_a_file_for_each_worker(job, said):
    """They carry the id of the run and the name of the worker; the level is the job's, and secrets are masked."""
    run_id = job.store.run("train").info.run_id
    lines = [line for line in job.log_lines() if line.get("run_id") == run_id and line["function"] == "fold"]

    assert sorted(line["message"] for line in lines) == [f"fold {number}" for number in range(8)]
    assert [line for line in lines if line["file"] != f"job-{line['worker']}"] == []
    assert {line["worker"].rpartition("-")[2] for line in lines} == {str(pid) for _, pid in said["rows"]}
    urls = {line["message"] for line in job.log_lines() if line["message"].startswith("look at ")}
    assert urls == {"look at https://bob:***@host"}


def test_a_nested_partition_has_one_child(job):
    """With the tag by which MLflow shows it under its parent."""
    children = [run for run in job.store.children() if run.info.run_name == "rows"]

    assert sorted(job.store.steps(run) for run in children) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert {run.info.status for run in children} == {"FINISHED"}
    assert all(run.data.tags["autogen_team.worker"] for run in children)


def test_an_iterator_is_inside_while_it_is_read(job, said):
    """As a generator is, although the function has returned before."""
    assert said["squares"] == [number**2 for number in range(8)]
    assert job.store.steps(job.store.run("train"), "square") == list(range(8))


def test_data_frames_come_in_pandas(job, said):
    """What mapInPandas takes is a function with a signature."""
    assert sorted(number for number, _ in said["frames"]) == list(range(8))
    assert job.store.steps(job.store.run("train"), "framed") == list(range(8))


def test_a_partition_that_is_not_read_to_its_end_is_finished(job, said):
    """Spark wanted no more of it."""
    [child] = [run for run in job.store.children() if run.info.run_name == "taken"]

    assert len(said["taken"]) == 1
    assert child.info.status == "FINISHED"


def test_a_failing_partition_alerts_once(job, said):
    """Its child is FAILED, and the driver gets the exception."""
    failed = [run for run in job.store.children() if run.info.status == "FAILED"]

    assert [run.info.run_name for run in failed] == ["doomed"]
    assert failed[0].data.tags["autogen_team.exception"] == "ValueError: bad row 1"
    assert "ValueError: bad row 1" in said["error"]
    assert job.err.count("[job] doomed failed: ") == 1  # Spark shows there what its workers print on stdout


def test_a_worker_that_is_killed_loses_nothing(job, said):
    """What it had logged arrives, and its child is closed; others do the rest of the work."""
    [child] = [run for run in job.store.children() if run.info.run_name == "dying"]

    assert "Python worker exited unexpectedly" in said["death"]
    assert (child.info.status, job.store.steps(child)) == ("KILLED", list(range(100)))
    assert [number for number, _ in said["rows after it"]] == list(range(8))
    assert [run.info.run_name for run in job.store.runs() if run.info.status == "RUNNING"] == []


def test_a_function_stays_what_it_is(store):
    """Spark looks at its signature and shows its name; where there is no Spark, it can be called as well."""

    def count(rows):
        """Count."""
        yield len(list(rows))

    with GlobalContext() as context, context.run("train"):
        counted = partitions(context, count)
        assert (inspect.isgeneratorfunction(counted), counted.__name__, counted.__doc__) == (True, "count", "Count.")
        assert list(counted(iter("abc"))) == [3]


def test_a_context_that_does_not_run_is_an_error():
    """Told where it can be mended, not on an executor."""
    with pytest.raises(NotStartedError, match="call start"):
        partitions(GlobalContext(), iter)
