"""Runs that somebody else has opened: joined, or worked for, and what opens inside of them."""

from __future__ import annotations

import pickle
import shutil

import mlflow
import pytest
from mlflow.tracking import fluent
from mlflow.utils import autologging_utils

from autogen_team.io._tracking import guests, isolation
from testkit.runs import in_thread, parent

pytestmark = pytest.mark.usefixtures("mlflow_as_it_was")


@pytest.fixture
def host(mlflow_as_it_was, store_uri):
    """Return a run that others may join."""
    mlflow.set_tracking_uri(store_uri)
    with mlflow.start_run(run_name="host") as run:
        restore = guests.let_join(run)
        yield run
        restore()


def test_the_first_run_joins_its_host(host):
    """It is the same run, it stays open after the block, and it takes the tags and the description."""
    with mlflow.start_run(run_name="mine", tags={"a": "1"}, description="why") as joined:
        mlflow.log_param("inside", 1)

    assert joined.info.run_id == host.info.run_id
    assert mlflow.active_run().info.run_id == host.info.run_id
    stored = mlflow.get_run(host.info.run_id).data
    assert (stored.params, stored.tags["a"], stored.tags["mlflow.note.content"]) == ({"inside": "1"}, "1", "why")
    assert stored.tags["mlflow.runName"] == "host"


def test_later_runs_become_children_of_the_host(host):
    """A script that opens several runs does not mix them up."""
    with mlflow.start_run():
        pass

    with mlflow.start_run(run_name="second") as second:
        pass

    assert second.info.run_id != host.info.run_id
    assert second.data.tags["mlflow.parentRunId"] == host.info.run_id


def test_the_end_of_a_joined_run_leaves_the_host_open(host):
    """Also without `with`; what follows is a child."""
    mlflow.start_run()
    mlflow.end_run()
    assert mlflow.active_run().info.run_id == host.info.run_id

    second = mlflow.start_run()
    mlflow.end_run()
    assert second.data.tags["mlflow.parentRunId"] == host.info.run_id
    assert mlflow.get_run(second.info.run_id).info.status == "FINISHED"


def test_a_run_of_another_experiment_becomes_a_child(host):
    """Its metrics are found where the job wants them."""
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
def test_a_run_in_another_store_is_one_of_its_own(host, fields):
    """The host is not there, so it is neither joined nor the parent; runs inside of it are children."""
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
def test_in_another_store_the_host_is_out_of_sight(host, monkeypatch):
    """What is logged there without a run opens one, as in plain MLflow; the end of a run is not that of the host."""
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
    assert guests.given_end(host.info.run_id) is None


def test_back_in_its_store_the_host_is_joined(host):
    """In whichever words the store is named."""
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
def test_a_failure_that_the_job_tells_of_its_run_is_noted(host, status, reason):
    """For whoever closes the host; it is told once."""
    mlflow.start_run()
    mlflow.end_run(status)

    assert guests.given_end(host.info.run_id) == (status, reason)
    assert guests.given_end(host.info.run_id) is None


def test_an_exception_that_the_job_handles_is_the_reason(host):
    """Whether it leaves the block of the run, or the run is ended while it is handled."""
    with pytest.raises(ValueError, match="no data"), mlflow.start_run():
        raise ValueError("no data")
    assert guests.given_end(host.info.run_id) == ("FAILED", "ValueError: no data")


def test_the_reason_of_an_explicit_end_is_what_is_handled(host):
    """The usual `except: mlflow.end_run("FAILED")`."""
    try:
        raise ValueError("no data")
    except ValueError:
        mlflow.end_run("FAILED")

    assert guests.given_end(host.info.run_id) == ("FAILED", "ValueError: no data")


def test_a_good_end_says_nothing(host):
    """The end of the job decides; a status that MLflow does not know is refused as MLflow refuses it."""
    with pytest.raises(SystemExit), mlflow.start_run():
        raise SystemExit(0)
    mlflow.end_run()
    with pytest.raises(Exception, match="GOOD"):
        mlflow.end_run("GOOD")

    assert guests.given_end(host.info.run_id) is None


def test_who_asks_for_a_nested_run_gets_one(host):
    """Only a run that would be the outermost joins."""
    with mlflow.start_run(nested=True) as child:
        pass

    assert child.info.run_id != host.info.run_id


def test_without_a_host_runs_are_runs_again(host):
    """The replacement of `mlflow.start_run` is undone."""
    restore = guests.let_join(host)
    replaced = mlflow.start_run
    restore()

    assert mlflow.start_run is not replaced
    assert fluent.start_run is mlflow.start_run


@pytest.fixture
def joined(store_uri):
    """Return a run that is open elsewhere, and is worked for here."""
    mlflow.set_tracking_uri(store_uri)
    run = mlflow.MlflowClient().create_run("0", run_name="elsewhere")
    active, leave = guests.work_for(run)
    yield active
    leave()


def test_a_run_that_is_open_elsewhere_can_be_worked_for(joined):
    """It is the active one, and its end is nobody's business here."""
    mlflow.log_param("fold", 1)
    mlflow.end_run()

    assert mlflow.active_run() is joined
    stored = mlflow.get_run(joined.info.run_id)
    assert (stored.info.status, stored.data.params) == ("RUNNING", {"fold": "1"})


def test_runs_inside_of_it_are_children(joined):
    """Also of a program that does not say `nested`; what is left open is told."""
    with mlflow.start_run(run_name="child") as child:
        assert not guests.has_own_run_around(child)
        with mlflow.start_run(nested=True) as inner:
            assert guests.has_own_run_around(inner)
    assert child.data.tags["mlflow.parentRunId"] == joined.info.run_id

    _, leave = guests.work_for(joined)
    left = mlflow.start_run()
    assert leave() == [left.info.run_id]
    assert mlflow.active_run() is joined
    mlflow.MlflowClient().set_terminated(left.info.run_id)


def test_autologging_waits_for_a_run_of_its_own(joined):
    """Whether it is asked by the name that others have imported, or set up at this moment."""
    is_disabled = autologging_utils.autologging_is_disabled
    mlflow.sklearn.autolog(silent=True)
    assert is_disabled("sklearn")

    with mlflow.start_run():
        assert not is_disabled("sklearn")
    assert autologging_utils.get_autologging_config("sklearn", "disable", True) is False


def test_without_such_a_run_mlflow_is_as_it_was(store_uri):
    """The last one that is left gives everything back."""
    mlflow.set_tracking_uri(store_uri)
    before = mlflow.start_run, mlflow.end_run, autologging_utils.get_autologging_config
    run = mlflow.MlflowClient().create_run("0")
    first, second = guests.work_for(run)[1], guests.work_for(run)[1]
    second()
    assert mlflow.start_run is not before[0]
    first()

    assert (mlflow.start_run, mlflow.end_run, autologging_utils.get_autologging_config) == before
    assert mlflow.active_run() is None


def _names_it(host, old):
    """Ask for runs by their ids, and for a child of another, as a program that knows nothing of the run around."""
    with mlflow.start_run(run_id=host.info.run_id) as same:
        mlflow.log_param("same", 1)
    with mlflow.start_run(parent_run_id=host.info.run_id) as child:
        pass
    with mlflow.start_run(parent_run_id=old) as grandchild:
        assert mlflow.active_run() is grandchild
    with mlflow.start_run(old) as resumed:  # by its place, as MLflow allows
        mlflow.log_param("resumed", 1)

    assert mlflow.active_run().info.run_id == host.info.run_id
    assert [same.info.run_id, resumed.info.run_id] == [host.info.run_id, old]
    parents = [run.data.tags.get("mlflow.parentRunId") for run in (child, grandchild, mlflow.get_run(old))]
    assert parents == [host.info.run_id, old, None]
    stored = mlflow.get_run(host.info.run_id)
    assert (stored.info.status, stored.data.params) == ("RUNNING", {"same": "1"})
    assert (mlflow.get_run(old).info.status, mlflow.get_run(old).data.params) == ("FINISHED", {"resumed": "1"})


def test_runs_that_are_named_inside_of_a_host_are_those(host):
    """The host itself, another one, and a child of either."""
    _names_it(host, mlflow.MlflowClient().create_run("0").info.run_id)


def test_runs_that_are_named_inside_of_a_joined_run_are_those(joined):
    """MLflow's documented way for many processes is to name the parent."""
    undo = isolation.isolate()
    try:
        _names_it(joined, mlflow.MlflowClient().create_run("0").info.run_id)
    finally:
        undo()


def test_what_stands_in_for_a_function_of_mlflow_s_is_pickled_by_its_name(mlflow_as_it_was):
    """Autologging has such functions in closures, which joblib and Dask send to workers."""
    plain = mlflow.active_run
    with mlflow.start_run() as host:
        restore = guests.let_join(host)
        try:
            assert mlflow.active_run is not plain
            sent = pickle.dumps(mlflow.active_run)
        finally:
            restore()

    assert pickle.loads(sent) is plain


def test_a_run_that_a_thread_opens_is_a_child(host):
    """The thread has no run of its own to nest it in."""

    def work():
        with mlflow.start_run(run_name="trial") as run:
            return run

    trial = in_thread(work)

    assert parent(mlflow.get_run(trial.info.run_id)) == host.info.run_id
