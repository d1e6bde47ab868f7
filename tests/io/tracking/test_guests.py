"""Runs opened by another process or program: joined here, or worked for, with child runs inside them."""

from __future__ import annotations

import pickle
import shutil

import mlflow
import pytest
from mlflow.tracking import fluent
from mlflow.utils import autologging_utils

from autogen_team._capture import active_runs, run_stacks
from testkit.runs import in_thread, parent

pytestmark = pytest.mark.usefixtures("mlflow_as_it_was")


@pytest.fixture
def host(mlflow_as_it_was, store_uri):
    """Return a run that can be joined."""
    mlflow.set_tracking_uri(store_uri)
    with mlflow.start_run(run_name="host") as run:
        restore = active_runs.allow_join(run)
        yield run
        restore()


def test_the_first_run_joins_its_host(host):
    """The first `start_run` joins the host run, leaves it open, and adds its tags and description to it."""
    with mlflow.start_run(run_name="mine", tags={"a": "1"}, description="why") as joined:
        mlflow.log_param("inside", 1)

    assert joined.info.run_id == host.info.run_id
    assert mlflow.active_run().info.run_id == host.info.run_id
    stored = mlflow.get_run(host.info.run_id).data
    assert (stored.params, stored.tags["a"], stored.tags["mlflow.note.content"]) == ({"inside": "1"}, "1", "why")
    assert stored.tags["mlflow.runName"] == "host"


def test_later_runs_become_children_of_the_host(host):
    """The second run of a script becomes a child of the host run."""
    with mlflow.start_run():
        pass

    with mlflow.start_run(run_name="second") as second:
        pass

    assert second.info.run_id != host.info.run_id
    assert second.data.tags["mlflow.parentRunId"] == host.info.run_id


def test_the_end_of_a_joined_run_leaves_the_host_open(host):
    """`end_run` of a joined run leaves the host open, and the next run becomes a child of the host."""
    mlflow.start_run()
    mlflow.end_run()
    assert mlflow.active_run().info.run_id == host.info.run_id

    second = mlflow.start_run()
    mlflow.end_run()
    assert second.data.tags["mlflow.parentRunId"] == host.info.run_id
    assert mlflow.get_run(second.info.run_id).info.status == "FINISHED"


def test_a_run_of_another_experiment_becomes_a_child(host):
    """A run of another experiment does not join the host run, but becomes its child."""
    other = mlflow.create_experiment("other")

    with mlflow.start_run(experiment_id=other) as run:
        pass

    assert run.info.experiment_id == other
    assert run.data.tags["mlflow.parentRunId"] == host.info.run_id


@pytest.fixture
def elsewhere(host, tmp_path, migrated_database):
    """Point MLflow to another store than that of the host."""
    home = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{shutil.copy(migrated_database, tmp_path / 'other.db')}")
    yield
    mlflow.set_tracking_uri(home)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("fields", [{}, {"nested": True}], ids=["plain", "nested"])
def test_a_run_in_another_store_does_not_join_the_host(host, fields):
    """A run in another store neither joins the host nor is its child; runs inside it are its own children."""
    with mlflow.start_run(experiment_id="0", **fields) as run:
        mlflow.log_param("inside", 1)
        with mlflow.start_run(experiment_id="0", nested=True) as child:
            pass
        assert mlflow.active_run() is run

    assert run.info.run_id != host.info.run_id
    assert "mlflow.parentRunId" not in run.data.tags
    assert child.data.tags["mlflow.parentRunId"] == run.info.run_id
    stored = mlflow.get_run(run.info.run_id)
    assert (stored.info.status, stored.data.params) == ("FINISHED", {"inside": "1"})


@pytest.mark.usefixtures("elsewhere")
def test_the_host_is_not_active_in_another_store(host, monkeypatch):
    """While MLflow points to another store, the host is neither logged to nor ended."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    assert mlflow.active_run() is None
    assert fluent._get_latest_active_run() is None
    mlflow.end_run("FAILED")

    mlflow.log_param("inside", 1)

    active = mlflow.active_run()
    assert active.info.run_id != host.info.run_id
    mlflow.end_run()
    assert mlflow.active_run() is None
    assert mlflow.get_run(active.info.run_id).data.params == {"inside": "1"}
    assert active_runs.reported_status(host.info.run_id) is None


def test_the_host_is_joined_by_any_spelling_of_its_store(host):
    """The host is joined also if its store is named by another spelling of its URI."""
    home = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(home.replace("/mlflow.db", "/./mlflow.db"))

    with mlflow.start_run() as joined:
        assert mlflow.active_run() is host

    mlflow.set_tracking_uri(home)
    assert joined.info.run_id == host.info.run_id


@pytest.mark.parametrize(
    ("status", "reason"),
    [("FAILED", "the job has ended its run as FAILED"), ("KILLED", "the job has ended its run as KILLED")],
)
def test_a_failed_end_of_the_joined_run_is_recorded(host, status, reason):
    """A failed end of the joined run is returned once, with a reason, for closing the host."""
    mlflow.start_run()
    mlflow.end_run(status)

    assert active_runs.reported_status(host.info.run_id) == (status, reason)
    assert active_runs.reported_status(host.info.run_id) is None


def test_an_exception_that_the_job_handles_is_the_reason(host):
    """An exception that leaves the block of a joined run is the reason of its end."""
    with pytest.raises(ValueError, match="no data"), mlflow.start_run():
        raise ValueError("no data")
    assert active_runs.reported_status(host.info.run_id) == ("FAILED", "ValueError: no data")


def test_the_reason_of_an_explicit_end_is_the_handled_exception(host):
    """The reason of `end_run("FAILED")` in an `except` block is the exception that is being handled."""
    try:
        raise ValueError("no data")
    except ValueError:
        mlflow.end_run("FAILED")

    assert active_runs.reported_status(host.info.run_id) == ("FAILED", "ValueError: no data")


def test_a_normal_end_is_not_recorded(host):
    """A normal end of the joined run leaves the end of the host to the job, and an invalid status is refused."""
    with pytest.raises(SystemExit), mlflow.start_run():
        raise SystemExit(0)
    mlflow.end_run()
    with pytest.raises(Exception, match="GOOD"):
        mlflow.end_run("GOOD")

    assert active_runs.reported_status(host.info.run_id) is None


def test_a_nested_run_is_a_child_of_the_host(host):
    """`start_run(nested=True)` opens a child of the host instead of joining it."""
    with mlflow.start_run(nested=True) as child:
        pass

    assert child.info.run_id != host.info.run_id


def test_without_a_host_runs_are_opened_normally(host):
    """Undoing `allow_join` restores `mlflow.start_run`."""
    restore = active_runs.allow_join(host)
    replaced = mlflow.start_run
    restore()

    assert mlflow.start_run is not replaced
    assert fluent.start_run is mlflow.start_run


@pytest.fixture
def joined(store_uri):
    """Return a run that is open elsewhere, and that this process works for."""
    mlflow.set_tracking_uri(store_uri)
    run = mlflow.MlflowClient().create_run("0", run_name="elsewhere")
    active, leave = active_runs.hold_open(run)
    yield active
    leave()


def test_a_run_that_is_open_elsewhere_can_be_worked_for(joined):
    """A run that is open elsewhere is the active run here, and `end_run` does not end it."""
    mlflow.log_param("fold", 1)
    mlflow.end_run()

    assert mlflow.active_run() is joined
    stored = mlflow.get_run(joined.info.run_id)
    assert (stored.info.status, stored.data.params) == ("RUNNING", {"fold": "1"})


def test_runs_inside_of_a_run_worked_for_are_its_children(joined):
    """Runs inside a run that is open elsewhere are its children; leaving returns those that are still open."""
    with mlflow.start_run(run_name="child") as child:
        assert not active_runs.has_own_run_around(child)
        with mlflow.start_run(nested=True) as inner:
            assert active_runs.has_own_run_around(inner)
    assert child.data.tags["mlflow.parentRunId"] == joined.info.run_id

    _, leave = active_runs.hold_open(joined)
    left = mlflow.start_run()
    assert leave() == [left.info.run_id]
    assert mlflow.active_run() is joined
    mlflow.MlflowClient().set_terminated(left.info.run_id)


def test_autologging_is_disabled_while_working_for_a_run(joined):
    """Autologging is disabled while a process works for a run, except inside runs that it opens itself."""
    is_disabled = autologging_utils.autologging_is_disabled
    mlflow.sklearn.autolog(silent=True)
    assert is_disabled("sklearn")

    with mlflow.start_run():
        assert not is_disabled("sklearn")
    assert autologging_utils.get_autologging_config("sklearn", "disable", True) is False


def test_mlflow_is_restored_after_the_last_run_worked_for(store_uri):
    """MLflow's functions are restored when the last run that was worked for is left."""
    mlflow.set_tracking_uri(store_uri)
    before = mlflow.start_run, mlflow.end_run, autologging_utils.get_autologging_config
    run = mlflow.MlflowClient().create_run("0")
    first, second = active_runs.hold_open(run)[1], active_runs.hold_open(run)[1]
    second()
    assert mlflow.start_run is not before[0]
    first()

    assert (mlflow.start_run, mlflow.end_run, autologging_utils.get_autologging_config) == before
    assert mlflow.active_run() is None


def _names_it(host, old):
    """Start runs by their ids and a child of another run, as a program that does not know the host run."""
    with mlflow.start_run(run_id=host.info.run_id) as same:
        mlflow.log_param("same", 1)
    with mlflow.start_run(parent_run_id=host.info.run_id) as child:
        pass
    with mlflow.start_run(parent_run_id=old) as grandchild:
        assert mlflow.active_run() is grandchild
    with mlflow.start_run(old) as resumed:  # by position, as MLflow allows
        mlflow.log_param("resumed", 1)

    assert mlflow.active_run().info.run_id == host.info.run_id
    assert [same.info.run_id, resumed.info.run_id] == [host.info.run_id, old]
    parents = [run.data.tags.get("mlflow.parentRunId") for run in (child, grandchild, mlflow.get_run(old))]
    assert parents == [host.info.run_id, old, None]
    stored = mlflow.get_run(host.info.run_id)
    assert (stored.info.status, stored.data.params) == ("RUNNING", {"same": "1"})
    assert (mlflow.get_run(old).info.status, mlflow.get_run(old).data.params) == ("FINISHED", {"resumed": "1"})


def test_a_run_id_is_respected_inside_of_a_host(host):
    """Inside a host, `start_run` with a run id or parent id opens exactly that run, or a child of that parent."""
    _names_it(host, mlflow.MlflowClient().create_run("0").info.run_id)


def test_a_run_id_is_respected_inside_of_a_run_worked_for(joined):
    """In a process that works for a run, `start_run` respects a given run id or parent id."""
    undo = run_stacks.isolate()
    try:
        _names_it(joined, mlflow.MlflowClient().create_run("0").info.run_id)
    finally:
        undo()


def test_a_replacement_of_a_function_of_mlflow_is_pickled_by_name(mlflow_as_it_was):
    """A replacement of an MLflow function is pickled by name; joblib and Dask send closures with it."""
    plain = mlflow.active_run
    with mlflow.start_run() as host:
        restore = active_runs.allow_join(host)
        try:
            assert mlflow.active_run is not plain
            sent = pickle.dumps(mlflow.active_run)
        finally:
            restore()

    assert pickle.loads(sent) is plain


def test_a_run_that_a_thread_opens_is_a_child(host):
    """A run that a thread opens without a run of its own is a child of the host."""

    def work():
        with mlflow.start_run(run_name="trial") as run:
            return run

    trial = in_thread(work)

    assert parent(mlflow.get_run(trial.info.run_id)) == host.info.run_id
