"""Changes to MLflow while a service runs; `_ship.mlflow_names` lists the private names used."""

from __future__ import annotations

import atexit
import copy
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, Run, RunInfo, RunStatus, RunTag, Span, TraceInfo
from mlflow.tracing import provider
from mlflow.tracing.client import TracingClient
from mlflow.tracing.config import configure, get_config
from mlflow.tracing.constant import SpansLocation, TraceTagKey
from mlflow.tracking import fluent
from mlflow.utils import autologging_utils, import_hooks
from mlflow.utils.async_logging.run_operations import RunOperations
from mlflow.utils.autologging_utils import safety

from autogen_team._capture import run_stacks
from autogen_team._process import Undo, saved
from autogen_team._process.patches import Hook, replace
from autogen_team._process.private_names import find
from autogen_team._process.refcount import RefCount
from autogen_team._process.saved import SavedValue
from autogen_team._process.threads import spawn
from autogen_team._ship import mlflow_backend, mlflow_names, uris

_EXPORTING = ("mlflowtracelogging", "otelbatchspan")
"""Prefixes of the names of MLflow's threads that export traces, in lower case."""
_ALL_FLAVORS = "mlflow"  # the name under which `mlflow.autolog` stores its own arguments


_fluent: Any = fluent
_provider: Any = provider
tracking: Any = find("mlflow.tracking._tracking_service.utils:")
registry: Any = find("mlflow.tracking._model_registry.utils:")


def _accept(*_arguments: object, **_fields: object) -> None:
    """Leave a check to the store."""


def _rule(name: str, fallback: Callable[..., Any] = _accept) -> Callable[..., Any]:
    found: Callable[..., Any] = find(f"mlflow.utils.validation:{name}", fallback)
    return found


check_metric: Callable[..., None] = _rule("_validate_metric")
check_param: Callable[..., Param] = _rule("_validate_param", lambda key, value, path="": Param(key, str(value)))  # noqa: ARG005 - MLflow's signature
check_tag: Callable[..., RunTag] = _rule("_validate_tag", lambda key, value, path="": RunTag(key, str(value)))  # noqa: ARG005 - the same
check_limits: Callable[..., None] = _rule("_validate_batch_log_limits")
check_unique: Callable[..., None] = _rule("_validate_param_keys_unique")
check_run_id: Callable[..., None] = _rule("_validate_run_id")
check_datasets: Callable[..., None] = _rule("_validate_dataset_inputs")
as_float: Callable[[Any], Any] = find(
    "mlflow.tracking.metric_value_conversion_utils:convert_metric_value_to_float_if_possible", float
)


def keep_uris() -> Undo:
    """Save the tracking URI, the registry URI and the experiment; return a function that restores them."""
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")
    environment = {name: os.environ.get(name) for name in names}
    if mlflow_names.URIS.works():
        tracking_uri, registry_uri = tracking._tracking_uri, registry._registry_uri
    else:
        tracking_uri, registry_uri = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None, None
    experiment_id = _fluent._active_experiment_id if mlflow_names.EXPERIMENT.works() else None
    return _uris.hold((tracking_uri, registry_uri, experiment_id, environment))


def _restore_uris(found: tuple[str | None, str | None, str | None, dict[str, str | None]]) -> None:
    tracking_uri, registry_uri, experiment_id, environment = found
    if mlflow_names.URIS.works():
        tracking._tracking_uri = mlflow.get_tracking_uri()  # otherwise MLflow would not notice the change
        registry._registry_uri = registry_uri
    else:
        mlflow.set_registry_uri("")  # the closest to None that it accepts
    with keeping_span_processors():
        mlflow.set_tracking_uri(tracking_uri)  # type: ignore[arg-type]  # None unsets it, as MLflow's own tests do
    if mlflow_names.EXPERIMENT.works():
        _fluent._active_experiment_id = experiment_id
    saved.restore_environment(environment)


_uris = SavedValue(_restore_uris)


def point_at(tracking_uri: str, registry_uri: str, *, for_good: bool = False) -> None:
    """Point MLflow at these stores until the job sets others by a call or, unless `for_good`, by the variables.

    A registry with the URI of the tracking store follows that store when the job changes it.
    """
    with keeping_span_processors():
        mlflow.set_tracking_uri(tracking_uri)
    for_good = for_good or not mlflow_names.URIS.works()
    if not for_good:
        tracking._tracking_uri = None  # the call has set the variable too, which now decides
    if registry_uri != tracking_uri or for_good:
        mlflow.set_registry_uri(registry_uri)
    else:
        registry._registry_uri = None  # its initial value
        os.environ.pop("MLFLOW_REGISTRY_URI", None)


@contextmanager
def keeping_span_processors() -> Iterator[None]:
    """Restore, after the block, the span processors that the job has given to `mlflow.tracing.configure`."""
    found = get_config().span_processors
    yield
    if found:
        configure(span_processors=found)


def keep_autolog() -> Undo:
    """Save the state of autologging, now and for later imports; return a function that restores it."""
    if not mlflow_names.AUTOLOG.works():
        return lambda: None
    integrations = copy.deepcopy(autologging_utils.AUTOLOGGING_INTEGRATIONS)
    hooks = {name: list(pending) for name, pending in import_hooks._post_import_hooks.items()}
    return _autolog.hold((integrations, hooks))


def _restore_autolog(found: tuple[dict[str, Any], dict[str, list[Any]]]) -> None:
    integrations, hooks = found
    for name in [name for name in autologging_utils.AUTOLOGGING_INTEGRATIONS if not integrations.get(name)]:
        safety.revert_patches(name)
    autologging_utils.AUTOLOGGING_INTEGRATIONS.clear()
    autologging_utils.AUTOLOGGING_INTEGRATIONS.update(integrations)
    with import_hooks._post_import_hooks_lock:
        import_hooks._post_import_hooks.clear()
        import_hooks._post_import_hooks.update(hooks)
    if integrations.get(_ALL_FLAVORS):
        # Libraries imported since then get the configuration that they would have got, without a log message.
        with saved.quiet("mlflow.tracking.fluent"):
            mlflow.autolog(**integrations[_ALL_FLAVORS])


_autolog = SavedValue(_restore_autolog)


def ask_databases_once() -> Undo:
    """Turn off MLflow's retries for databases; return a function that restores them."""
    if not mlflow_names.DATABASE_RETRIES.works():
        return lambda: None
    return _no_database_retries.take()


def _disable_database_retries() -> Undo:
    from mlflow.store.db import utils

    return replace(utils, "MAX_RETRY_COUNT", lambda _before, _is_active: 0)


_no_database_retries = RefCount(_disable_database_retries)


def open_run_ids() -> list[str]:
    """Return the ids of the caller's open runs, the innermost last."""
    if not mlflow_names.ACTIVE_RUNS.works():
        active = mlflow.active_run()
        return [] if active is None else [active.info.run_id]
    return [run.info.run_id for run in _fluent._active_run_stack.get()]


def leave_runs(run_id: str) -> list[str]:
    """Remove the run, and the runs open inside it, from the stack of the task or thread that has it open.

    Return their ids, the innermost first; an empty list if the run is no longer open.
    """
    ids = run_stacks.forget(run_id)
    if ids:
        os.environ.pop("MLFLOW_RUN_ID", None)
        if mlflow_names.LAST_RUN.works():
            _fluent._last_active_run_id.set(run_id)
    return ids


def stop_system_metrics(run_id: str) -> None:
    """Stop the thread that samples system metrics for this run, if there is one."""
    if not mlflow_names.SAMPLING.works():
        return
    monitor = fluent.run_id_to_system_metrics_monitor.pop(run_id, None)
    if monitor is not None:
        monitor.finish()


def provide_experiment(experiment_id: str, find_experiment: Callable[[], str], *, is_given: bool = False) -> Undo:
    """Create new runs in the experiment that `find_experiment` returns, unless the job calls `mlflow.set_experiment`.

    `experiment_id` is put into the environment for other processes; `is_given` says that it was there before. The
    environment and MLflow's experiment are restored by `keep_uris`, not by the returned function.
    """
    os.environ["MLFLOW_EXPERIMENT_ID"] = experiment_id
    if not is_given:
        _published.append(experiment_id)
    restore: Undo = lambda: None  # noqa: E731 - the fallback for the code below
    if mlflow_names.EXPERIMENT.works():
        _fluent._active_experiment_id = None

        def _get_experiment_id() -> Any:
            return _fluent._active_experiment_id or find_experiment()

        plain = _fluent._get_experiment_id
        restore = run_stacks.replace({"_get_experiment_id": (plain, _get_experiment_id)})

    def undo() -> None:
        if not is_given:
            _published.remove(experiment_id)
        restore()

    return undo


def experiment_id() -> str:
    """Return the id of the experiment in which new runs are created."""
    if not mlflow_names.EXPERIMENT.works():
        return os.environ.get("MLFLOW_EXPERIMENT_ID", "0")
    return str(_fluent._get_experiment_id())


def given_experiment_id(tracking_uri: str) -> str | None:
    """Return the experiment id that the environment gives for this store; None if it gives none.

    An id is valid only in the store whose URI is in the environment beside it. An id that a service of this process has
    put there is ignored.
    """
    experiment_id, uri = os.environ.get("MLFLOW_EXPERIMENT_ID"), os.environ.get("MLFLOW_TRACKING_URI")
    if not experiment_id or experiment_id in _published:
        return None
    return experiment_id if not uri or identity(uri) == identity(tracking_uri) else None


_published: list[str] = []
"""Experiment ids that services of this process have put into the environment."""


_stand_ins: dict[str, list[tuple[Any, Any]]] = {}
"""Stand-ins for each store with their `Artifacts`, by the identity of the store. The first one is in use; the others
are used when it ends."""
_identities: dict[str, str] = {}
"""Identities by URI. As in MLflow, a relative path is relative to the working folder of its first use."""
_substitutes: dict[str, str] = {}
"""Identities of substitute stores, by the identity of the store that they replace."""
_starters: list[Callable[[str], object]] = []
_starting = threading.local()


def stand_in(uri: str, store: Any, artifacts: Any = None, *, yields: bool = False) -> Undo:
    """Use `store` in place of MLflow's store of `uri`, and `artifacts` for uploads to it.

    A stand-in that `yields` is used only while the store has no other stand-in.
    """
    if not mlflow_names.STORES.works():
        return lambda: None
    key = identity(uri)
    here, found = (store, artifacts), _stand_ins.setdefault(key, [])
    found.insert(len(found) if yields else 0, here)
    leave = _lookups.take()

    def undo() -> None:
        del found[next(at for at, one in enumerate(found) if one is here)]
        if not found:
            del _stand_ins[key]
        leave()

    return undo


def _take_over_lookups() -> Undo:
    with ExitStack() as undo:
        undo.callback(_identities.clear)
        stores = tracking._tracking_store_registry
        undo.callback(replace(stores, "_get_store_with_resolved_uri", partial(_always, _find_store)))
        return undo.pop_all().close


def _always(ours: Hook, _plain: Hook, _is_active: Callable[[], bool]) -> Hook:
    """Return the replacement, which itself passes on calls for stores without a stand-in."""
    return ours


_lookups = RefCount(_take_over_lookups)


def identity(uri: str) -> str:
    """Return a text that identifies a store, or its substitute, however the URI is written; see `uris.identity`."""
    found = _identities.get(uri)
    if found is None:
        found = uris.identity(uri)
        found = _identities[uri] = _substitutes.get(found, found)
    return found


def substitute(uri: str, store: str) -> Undo:
    """Use `store` wherever the job names the store of `uri`, which is unreachable."""
    key = uris.identity(uri)
    _substitutes[key] = uris.identity(store)
    _identities.clear()

    def undo() -> None:
        _substitutes.pop(key, None)
        _identities.clear()

    return undo


def stand_in_for_others(start: Callable[[str], object]) -> Undo:
    """Call `start` with the URI of each store that is used without a stand-in, so that `start` can add one.

    This works only while at least one store has a stand-in.
    """
    _starters.append(start)
    return lambda: _starters.remove(start)


@contextmanager
def starting_stand_in() -> Iterator[None]:
    """Give this thread MLflow's own stores inside the block, unless a store already has a stand-in."""
    before, _starting.now = getattr(_starting, "now", False), True
    try:
        yield
    finally:
        _starting.now = before


def _stand_in_for(uri: str) -> tuple[Any, Any] | None:
    found = _stand_ins.get(_identities.get(uri) or identity(uri))
    if not found and _starters and not getattr(_starting, "now", False):
        with starting_stand_in():
            _starters[-1](uri)
        found = _stand_ins.get(identity(uri))
    return found[0] if found else None


def _find_store(uri: str, artifact_uri: str | None = None) -> Any:
    found = _stand_in_for(uri) if artifact_uri is None else None
    return mlflow_backend.plain_store(uri, artifact_uri) if found is None else found[0]


_registry_class: Any = find("mlflow.tracking._model_registry.registry:ModelRegistryStoreRegistry")
_plain_registry_store: Any = getattr(_registry_class, "_get_store_with_resolved_uri", None)
_registry_wraps: list[list[Callable[[Any], Any]]] = []
"""Wrappers for the stores of model registries. The first one is in use; the others are used when it ends."""


def stand_in_registries(wrap: Callable[[Any], Any]) -> Undo:
    """Give MLflow the result of `wrap` in place of the store of any model registry."""
    if not mlflow_names.REGISTRIES.works():
        return lambda: None
    here = [wrap]
    _registry_wraps.insert(0, here)
    leave = _registry_lookups.take()

    def undo() -> None:
        del _registry_wraps[next(at for at, one in enumerate(_registry_wraps) if one is here)]
        leave()

    return undo


def _take_over_registry_lookups() -> Undo:
    return replace(_registry_class, "_get_store_with_resolved_uri", partial(_always, _find_registry_store))


_registry_lookups = RefCount(_take_over_registry_lookups)


def _find_registry_store(stores: Any, uri: str, tracking_uri: str | None) -> Any:
    plain = _plain_registry_store(stores, uri, tracking_uri)
    return _registry_wraps[0][0](plain) if _registry_wraps else plain


def artifacts_of(uri: str | None) -> Any:
    """Return the `Artifacts` of a store, by default the current one; None if uploads go directly to the store."""
    found = _stand_in_for(uri or mlflow.get_tracking_uri())
    return None if found is None else found[1]


def log_sums_of_traces(uri: str, run_id: str) -> None:
    """Log the sums of the traces that this process has recorded in a run, which another process closes."""
    found = _stand_in_for(uri)
    if found is not None:
        found[0].log_sums_of_traces(run_id)


def tap_traces(taps: Mapping[str, Callable[..., Any]]) -> Undo:
    """Replace the methods of MLflow's tracing client that exist in this version by taps.

    A tap gets the client, MLflow's own method, and the arguments of the call.
    """
    mlflow_names.TRACES.works()  # some taps are better than none
    undo = ExitStack()
    for name, tap in taps.items():
        if hasattr(TracingClient, name):
            undo.callback(replace(TracingClient, name, partial(_tapped, tap)))
    return undo.close


def _tapped(tap: Hook, method: Hook, is_active: Callable[[], bool]) -> Hook:
    @functools.wraps(method)
    def tapped(client: TracingClient, *arguments: Any, **fields: Any) -> Any:
        if not is_active():
            return method(client, *arguments, **fields)
        return tap(client, method, *arguments, **fields)

    return tapped


def wait_for_traces() -> None:
    """Wait until MLflow has delivered every span that has ended to its store, or has failed to."""
    base = sys.modules.get("mlflow.tracing.processor.base_mlflow")
    if base is None:  # nothing has been traced
        return
    if not mlflow_names.TRACE_QUEUE.works():
        mlflow.flush_trace_async_logging()
        return
    for processor in list(getattr(base, "_batch_processor_registry", ())):
        processor.force_flush()
    pending = getattr(_provider._get_trace_exporter(), "_async_queue", None)
    if pending is not None:
        pending._queue.join()


def wait_for_traces_within(timeout: float) -> None:
    """Wait until every span that has ended is in the journal or the store, at most `timeout` seconds.

    In a thread of MLflow that exports traces, return at once: the thread would wait for itself.
    """
    if "mlflow.tracing.processor.base_mlflow" not in sys.modules:
        return
    if not threading.current_thread().name.lower().startswith(_EXPORTING):
        waiting = spawn(wait_for_traces, name="autogen-team-traces")
        if waiting is not None:
            waiting.join(timeout)


def resource_of(span: Span) -> dict[str, Any] | None:
    """Return the attributes of a span's resource, without those of the telemetry SDK; None if there are none."""
    if not mlflow_names.SPANS.works():
        return None
    attributes = getattr(span._span.resource, "attributes", {})
    found = {name: value for name, value in attributes.items() if not name.startswith("telemetry.sdk.")}
    return found or None


def span_of(data: dict[str, Any], *, like: Span) -> Span:
    """Return the span for `data` in the form of `Span.to_dict`, with the resource and the attachments of `like`."""
    found: Span = Span.from_dict(data)
    if mlflow_names.SPANS.works():
        found._span._resource = like._span.resource
    if hasattr(like, "_attachments"):  # MLflow 3.10 has none
        found._attachments = like._attachments
    return found


def as_stored(info: TraceInfo) -> TraceInfo:
    """Return the info of a trace as from a store that holds the spans too, so that MLflow does not upload them."""
    found = copy.copy(info)
    found.tags = {**info.tags, TraceTagKey.SPANS_LOCATION: SpansLocation.TRACKING_STORE.value}
    return found


def changed(info: RunInfo, status: int | None, end_time: int | None, name: str | None) -> RunInfo:
    """Return the run's info with new values; None keeps a value."""
    made: Any = info.to_proto()
    if status:
        made.status = status
    if end_time:
        made.end_time = end_time
    if name:
        made.run_name = name
    found: RunInfo = RunInfo.from_proto(made)
    return found


def running(info: RunInfo) -> RunInfo:
    """Return the run's info with the status RUNNING and no end time, as after it is opened again."""
    made: Any = info.to_proto()
    made.status = RunStatus.from_string("RUNNING")
    made.ClearField("end_time")
    found: RunInfo = RunInfo.from_proto(made)
    return found


def metrics_of(run: Run) -> list[Metric]:
    """Return the latest value of each metric with its step and time, which `run.data.metrics` lacks."""
    return [Metric.from_proto(metric) for metric in run.to_proto().data.metrics]


def operations(*futures: Future[Any]) -> RunOperations:
    """Return MLflow's handle for background work; without a future, the work is already done."""
    return RunOperations(futures)


def close_at_exit(close: Callable[[], None]) -> Undo:
    """Call `close` at the exit of the process, after MLflow has ended a run that is still open."""
    atexit.register(close)
    if mlflow_names.EXIT.works():
        atexit.unregister(_fluent._safe_end_run)
        atexit.register(_fluent._safe_end_run)  # the handler registered last is called first
    return lambda: atexit.unregister(close)
