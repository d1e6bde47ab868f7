"""Contract tests of MLflow's undocumented parts in use: if an update changes one, the failing test names it."""

from __future__ import annotations

import os
import sys

import mlflow
import pytest
from mlflow.entities import Param, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils
from mlflow.tracing.client import TracingClient
from mlflow.tracking import fluent
from mlflow.tracking._model_registry import utils as registry
from mlflow.utils import autologging_utils, import_hooks

from autogen_team._capture import mlflow_internals
from autogen_team._capture.quick_uris import quick_uris
from autogen_team._process import saved
from autogen_team._ship import mlflow_backend


@pytest.fixture(autouse=True)
def mlflow_as_it_was():
    """Restore MLflow's state after the test with the functions under test."""
    undo = [mlflow_internals.keep_autolog(), mlflow_internals.keep_uris()]
    yield
    while mlflow.active_run() is not None:
        mlflow.end_run()
    for restore in undo:
        restore()


def test_uris_and_experiment_are_restored(store_uri):
    """Restoring removes URIs and experiment from MLflow and from the environment."""
    before = dict(os.environ), mlflow.is_tracking_uri_set(), registry._registry_uri, fluent._active_experiment_id

    restore = mlflow_internals.keep_uris()
    mlflow.set_tracking_uri(store_uri)
    mlflow.set_registry_uri(store_uri)
    mlflow.set_experiment("other")
    assert fluent._active_experiment_id is not None
    restore()

    after = dict(os.environ), mlflow.is_tracking_uri_set(), registry._registry_uri, fluent._active_experiment_id
    assert after == before


def test_uris_that_the_job_had_set_are_restored(store_uri):
    """Restoring sets the tracking URI that the job had set, not MLflow's default."""
    mlflow.set_tracking_uri("sqlite:///mine.db")

    restore = mlflow_internals.keep_uris()
    mlflow.set_tracking_uri(store_uri)
    restore()

    assert mlflow.get_tracking_uri() == "sqlite:///mine.db"
    assert os.environ["MLFLOW_TRACKING_URI"] == "sqlite:///mine.db"


def test_autologging_that_was_off_is_off_again():
    """Restoring turns autologging off again, for imported libraries and for those imported later."""
    import sklearn  # noqa: F401 - autologging starts at once for what is imported

    restore = mlflow_internals.keep_autolog()
    mlflow.autolog(silent=True)
    assert not autologging_utils.autologging_is_disabled("sklearn")
    assert import_hooks._post_import_hooks["xgboost"]
    restore()

    assert autologging_utils.autologging_is_disabled("sklearn")
    assert not import_hooks._post_import_hooks.get("xgboost")


def test_autologging_that_the_job_had_switched_on_is_on_again():
    """Restoring turns autologging on again, with the arguments that the job had given."""
    import sklearn  # noqa: F401 - as above

    mlflow.autolog(silent=True, log_models=False)

    restore = mlflow_internals.keep_autolog()
    mlflow.autolog(silent=True, log_models=True, disable=True)
    restore()

    assert not autologging_utils.autologging_is_disabled("sklearn")
    assert autologging_utils.get_autologging_config("sklearn", "log_models") is False
    assert import_hooks._post_import_hooks["xgboost"]


def test_open_runs_of_the_thread_are_listed(store_uri):
    """`open_run_ids` returns all open runs of the thread, innermost last."""
    mlflow.set_tracking_uri(store_uri)

    with mlflow.start_run() as outer, mlflow.start_run(nested=True) as inner:
        assert mlflow_internals.open_run_ids() == [outer.info.run_id, inner.info.run_id]

    assert mlflow_internals.open_run_ids() == []


def test_the_sampling_of_a_run_can_be_stopped(store_uri):
    """`stop_system_metrics` stops the sampling thread of a run, and may be called twice."""
    mlflow.set_tracking_uri(store_uri)
    run = mlflow.start_run(log_system_metrics=True)
    monitor = fluent.run_id_to_system_metrics_monitor[run.info.run_id]

    mlflow_internals.stop_system_metrics(run.info.run_id)
    mlflow_internals.stop_system_metrics(run.info.run_id)

    assert monitor._shutdown_event.is_set()


def test_services_can_stop_in_the_order_of_their_start(store_uri):
    """Services that stop in the order of their start restore the state from before all of them."""
    first = mlflow_internals.keep_uris()
    mlflow.set_tracking_uri("sqlite:///first.db")
    second = mlflow_internals.keep_uris()
    mlflow.set_tracking_uri(store_uri)

    first()
    assert mlflow.get_tracking_uri() == store_uri
    second()

    assert not mlflow.is_tracking_uri_set()


def test_a_uri_that_only_the_environment_had_is_not_set_afterwards(store_uri, monkeypatch):
    """After restoring, a later change of `MLFLOW_TRACKING_URI` takes effect."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///first.db")
    restore = mlflow_internals.keep_uris()
    mlflow.set_tracking_uri(store_uri)

    restore()
    assert mlflow.get_tracking_uri() == "sqlite:///first.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///second.db")
    assert mlflow.get_tracking_uri() == "sqlite:///second.db"


def test_a_run_can_be_deleted_for_good(store_uri):
    """`gc_of` deletes a run permanently, as `mlflow gc` does."""
    client = mlflow.MlflowClient(store_uri)
    run_id = client.create_run("0").info.run_id
    client.delete_run(run_id)

    mlflow_backend.hard_delete_of(store_uri)(run_id)

    with pytest.raises(Exception, match="not found"):
        client.get_run(run_id)


def test_mlflow_uses_a_replaced_store(store_uri):
    """Existing and new clients use the stand-in for a store, and MLflow's own store after undo."""
    client = mlflow.MlflowClient(store_uri)
    plain = mlflow_backend.plain_store(store_uri)
    assert client._tracking_client.store is plain
    ours = object()
    undo = mlflow_internals.stand_in(store_uri, ours, lambda find, *_: find())
    try:
        assert client._tracking_client.store is ours
        assert mlflow.MlflowClient(f"{store_uri}.other")._tracking_client.store is not ours
        assert mlflow_backend.plain_store(store_uri) is plain
    finally:
        undo()

    assert client._tracking_client.store is plain


def test_mlflow_uses_a_replaced_registry(store_uri):
    """Clients use the latest stand-in for a registry, then the earlier one, then MLflow's own."""
    client = mlflow.MlflowClient(store_uri, f"{store_uri}?registry")._get_registry_client()
    plain, method = client.store, registry.ModelRegistryStoreRegistry._get_store_with_resolved_uri
    first = mlflow_internals.stand_in_registries(lambda store: ("first", store))
    second = mlflow_internals.stand_in_registries(lambda store: ("second", store))
    try:
        assert client.store == ("second", plain)
        second()
        second = None
        assert client.store == ("first", plain)
    finally:
        for undo in filter(None, (first, second)):
            undo()

    assert client.store is plain
    assert registry.ModelRegistryStoreRegistry._get_store_with_resolved_uri is method


def test_the_info_of_a_run_can_be_copied_with_changes(store_uri):
    """`changed` returns a copy of a run's info in which only the values that are not None differ."""
    info = mlflow.MlflowClient(store_uri).create_run("0", run_name="before").info
    changed = mlflow_internals.changed(info, RunStatus.FAILED, 7, None)

    assert (changed.status, changed.end_time, changed.run_name) == ("FAILED", 7, "before")
    assert (changed.run_id, changed.start_time) == (info.run_id, info.start_time)
    assert info.status == "RUNNING"


def test_the_end_of_the_process_comes_after_the_end_of_its_run(run_python):
    """`close_at_exit` calls its function after MLflow has ended the open run at exit."""
    code = (
        "import mlflow; from autogen_team._capture import mlflow_internals\n"
        "from mlflow.tracking import fluent\n"
        "assert callable(fluent._safe_end_run)\n"
        "mlflow_internals.close_at_exit(lambda: print('closed', mlflow.active_run()))\n"
        "mlflow.set_tracking_uri('sqlite:///exit.db')\n"
        "mlflow.start_run()\n"
    )
    status, out, err = run_python("-c", code)

    assert (status, out) == (0, "closed None\n"), err


def test_the_checks_of_mlflow_are_as_expected():
    """Each check of MLflow's raises MLflow's own exception for an invalid value."""
    for check, bad in (
        (mlflow_internals.check_metric, ("a(b", 1.0, 0, 0)),
        (mlflow_internals.check_param, ("a(b", "x")),
        (mlflow_internals.check_tag, ("a(b", "x")),
        (mlflow_internals.check_run_id, ("../x",)),
        (mlflow_internals.check_limits, ([0] * 1001, [], [])),
        (mlflow_internals.check_unique, ([Param("a", "1"), Param("a", "2")],)),
    ):
        with pytest.raises(MlflowException):
            check(*bad)
    assert mlflow_internals.as_float(1) == 1.0
    assert mlflow_internals.operations().wait() is None


def test_taps_are_called_for_traces(store_uri):
    """Taps are called for the spans, the trace and its tags, and MLflow's client is restored by undo."""
    mlflow.set_tracking_uri(store_uri)
    names = ("start_trace", "log_spans", "set_trace_tag", "_upload_trace_data", "link_prompt_versions_to_trace")
    before = [getattr(TracingClient, name) for name in names]
    passed = []

    def tap(client, method, *arguments, **fields):
        passed.append((method.__name__, client.tracking_uri))
        return method(client, *arguments, **fields)

    undo = mlflow_internals.tap_traces({**dict.fromkeys(names, tap), "not_there": tap})
    with mlflow.start_span("ask") as span:
        pass
    mlflow_internals.wait_for_traces()
    mlflow.set_trace_tag(span.trace_id, "stage", "final")
    undo()

    # MLflow also uploads traces that are stored before their spans: both are sent at the same time.
    assert set(passed) >= {("start_trace", store_uri), ("log_spans", store_uri), ("set_trace_tag", store_uri)}
    assert [getattr(TracingClient, name) for name in names] == before
    assert mlflow.MlflowClient().get_trace(span.trace_id).info.tags["stage"] == "final"


def test_wait_for_traces_waits_for_asynchronous_traces(store_uri, monkeypatch):
    """After `wait_for_traces`, all asynchronous traces are in the store."""
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "true")
    mlflow.set_tracking_uri(store_uri)
    for _ in range(5):
        with mlflow.start_span("ask"):
            pass
    mlflow_internals.wait_for_traces()

    assert len(mlflow.MlflowClient().search_traces(locations=["0"])) == 5


def test_a_span_can_be_rebuilt_from_its_dictionary(store_uri):
    """`span_of` rebuilds a span from its dictionary, and takes its resource from the original span."""
    mlflow.set_tracking_uri(store_uri)
    with pytest.raises(ValueError), mlflow.start_span("ask") as span:
        span.set_inputs({"a": 1})
        raise ValueError("bad")

    found = mlflow_internals.span_of({**span.to_dict(), "name": "other"}, like=span)

    assert {**found.to_dict(), "name": "ask"} == span.to_dict()
    assert found.name == "other"
    assert found._span.resource is span._span.resource
    assert getattr(found, "_attachments", None) is getattr(span, "_attachments", None)


def test_a_trace_marked_as_stored_is_not_uploaded(store_uri):
    """MLflow does not upload a trace that `as_stored` has tagged."""
    mlflow.set_tracking_uri(store_uri)
    uploads = []

    def tap_upload(*_):
        uploads.append(1)

    undo = mlflow_internals.tap_traces(
        {
            "start_trace": lambda client, method, trace_info: mlflow_internals.as_stored(trace_info),
            "log_spans": lambda client, method, location, spans: spans,
            "_upload_trace_data": tap_upload,
        }
    )
    with mlflow.start_span("ask"):
        pass
    mlflow_internals.wait_for_traces()
    undo()

    assert uploads == []


def test_processors_of_spans_outlive_a_change_of_the_tracking_uri(store_uri):
    """Span processors stay configured when the tracking URI changes inside `keeping_span_processors`."""

    def processor(span):
        """Do nothing."""

    mlflow.tracing.configure(span_processors=[processor])
    with mlflow_internals.keeping_span_processors():
        mlflow.set_tracking_uri(store_uri)

    assert mlflow.tracing.config.get_config().span_processors == [processor]
    mlflow.tracing.reset()


def test_runs_are_created_in_the_provided_experiment(store_uri):
    """Runs are created in the provided experiment until the job chooses another one or it is undone."""
    mlflow.set_tracking_uri(store_uri)
    experiment_id = mlflow.create_experiment("other")
    undo = mlflow_internals.provide_experiment(experiment_id, lambda: experiment_id)

    with mlflow.start_run() as run:
        pass
    assert run.info.experiment_id == os.environ["MLFLOW_EXPERIMENT_ID"] == experiment_id
    assert mlflow.projects._get_experiment_id() == mlflow_internals.experiment_id() == experiment_id
    mlflow.set_experiment("mine")
    with mlflow.start_run() as run:
        pass
    assert run.info.experiment_id == fluent._active_experiment_id != experiment_id

    undo()
    assert fluent._get_experiment_id.__module__ == mlflow.projects._get_experiment_id.__module__ == fluent.__name__


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_retries_of_databases_are_restored_in_any_order(order):
    """Two services that run at once can stop in any order, and the retries are restored."""
    before = utils.MAX_RETRY_COUNT
    undo = [mlflow_internals.ask_databases_once() for _ in order]
    undo[order[0]]()
    assert utils.MAX_RETRY_COUNT == 0
    undo[order[1]]()

    assert utils.MAX_RETRY_COUNT == before > 0


def test_spark_determines_the_registry_only_if_it_is_imported(store_uri, monkeypatch):
    """MLflow's own function tries to import pyspark each time; a Spark session still determines the registry."""
    monkeypatch.setattr(registry, "_get_registry_uri_from_spark_session", lambda: "databricks-uc")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    plain = registry._resolve_registry_uri
    leave = quick_uris.take()

    assert mlflow.get_registry_uri() == mlflow.MlflowClient()._registry_uri == store_uri
    assert mlflow.MlflowClient().tracking_uri == store_uri
    assert mlflow.MlflowClient("sqlite:///other.db")._registry_uri == "sqlite:///other.db"
    assert mlflow.MlflowClient(store_uri, "sqlite:///models.db")._registry_uri == "sqlite:///models.db"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sqlite:///models.db")
    assert mlflow.get_registry_uri() == "sqlite:///models.db"
    monkeypatch.delenv("MLFLOW_REGISTRY_URI")
    monkeypatch.setitem(sys.modules, "pyspark", registry)
    assert mlflow.get_registry_uri() == "databricks-uc"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert mlflow.MlflowClient().tracking_uri == mlflow.get_tracking_uri()
    leave()
    assert registry._resolve_registry_uri is plain


def test_mlflow_is_pointed_to_stores_until_the_variable_changes(store_uri, monkeypatch):
    """`point_at` sets both stores; a changed variable wins, unless `for_good`."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///before.db")
    restore = mlflow_internals.keep_uris()
    mlflow_internals.point_at(store_uri, store_uri)
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == (store_uri, store_uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///later.db")
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == ("sqlite:///later.db", "sqlite:///later.db")

    mlflow_internals.point_at(store_uri, "sqlite:///models.db", for_good=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///later.db")
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == (store_uri, "sqlite:///models.db")
    restore()

    assert mlflow.get_tracking_uri() == "sqlite:///before.db"


def test_a_store_without_a_stand_in_gets_one_when_it_is_used(store_uri):
    """A store gets a stand-in once, at its first use; MLflow's own store answers during that."""
    mlflow.set_tracking_uri(store_uri)
    started = []

    def start(uri):
        assert mlflow.MlflowClient().get_experiment("0").name == "Default"
        started.append((uri, mlflow_internals.stand_in(uri, mlflow_backend.plain_store(uri))))

    leave_home = mlflow_internals.stand_in("sqlite:///home.db", object())
    undo = mlflow_internals.stand_in_for_others(start)
    mlflow.search_experiments()
    mlflow.search_experiments()
    undo()

    ((uri, leave),) = started
    leave()
    assert uri == store_uri
    mlflow.search_experiments()
    assert len(started) == 1
    leave_home()


def test_the_environment_is_restored_in_any_order(monkeypatch):
    """Variables are restored to their first values when services leave in the order of their start."""
    before = {name: value for name, value in os.environ.items() if name.startswith("AUTOGEN_TEAM_")}
    monkeypatch.setenv("AUTOGEN_TEAM_FIRST", "before")
    first = saved.keep_environment("AUTOGEN_TEAM_FIRST", "AUTOGEN_TEAM_BOTH")
    os.environ |= {"AUTOGEN_TEAM_FIRST": "1", "AUTOGEN_TEAM_BOTH": "1"}
    second = saved.keep_environment("AUTOGEN_TEAM_SECOND", "AUTOGEN_TEAM_BOTH")
    os.environ |= {"AUTOGEN_TEAM_SECOND": "2", "AUTOGEN_TEAM_BOTH": "2"}
    first()
    second()

    found = {name: value for name, value in os.environ.items() if name.startswith("AUTOGEN_TEAM_")}
    assert found == {**before, "AUTOGEN_TEAM_FIRST": "before"}
