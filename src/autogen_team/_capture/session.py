"""Set MLflow up for a job, and restore it afterwards."""

from __future__ import annotations

import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from autogen_team._capture import db_init_lock
from autogen_team._process import Undo, run_events, saved
from autogen_team._process.deadline import within
from autogen_team._process.folders import state_folder
from autogen_team._redact import mask, mask_url
from autogen_team._ship import server_probe, uris
from autogen_team._ship.error_text import first_line
from autogen_team.errors import ConfigurationError, ConfigurationWarning, TrackingUnavailableError

if TYPE_CHECKING:
    import mlflow
    from mlflow.entities import Experiment

    from autogen_team._capture.shared_runs import Shared
    from autogen_team._services.tracking import MlflowService

_report = logging.getLogger("autogen_team")
_ALLOW_FILE_STORE = "MLFLOW_ALLOW_FILE_STORE"
_SAMPLER = "mlflow.system_metrics"  # logs four messages about itself in each run
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_TRACES = {
    "MLFLOW_ASYNC_TRACE_LOGGING_MAX_INTERVAL_MILLIS": "200",
    "MLFLOW_ASYNC_TRACE_LOGGING_MAX_SPAN_BATCH_SIZE": "64",
    "MLFLOW_ASYNC_TRACE_LOGGING_MAX_WORKERS": "1",
    "MLFLOW_ASYNC_TRACE_LOGGING_MAX_QUEUE_SIZE": "100000",
}
_QUIET_URLS = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"


@dataclass(frozen=True, slots=True)
class Session:
    """MLflow, set up for a job."""

    tracking_uri: str
    """The store in use: the configured one, or the store of offline runs."""
    registry_uri: str
    stop: Undo
    """Restores everything."""
    log_metrics: Callable[[Mapping[str, float], int | None], None]
    """Logs to the active run, for hot loops."""


def start(service: MlflowService, works_for: Shared | None = None) -> Session:
    """Point MLflow at the stores, set the experiment, and switch autologging on.

    `works_for` is the run of another process for which this process works: its store and experiment exist.

    Raises:
        TrackingUnavailableError: a store does not answer in time and the mode is `online`, or the store of offline runs
            cannot be used.
        ConfigurationError: the experiment cannot be used, or a URI is not valid.

    """
    settings = service.model_copy(
        update={
            "tracking_uri": uris.absolute(service.tracking_uri),
            "registry_uri": uris.absolute(service.registry_uri),
            "experiment_name": mask(service.experiment_name),
        }
    )
    is_chosen = service.source("experiment_name") != "default"
    if works_for is not None and settings.mode != "offline":
        # no probe: while the store is unreachable, the worker's data waits, as in the job itself
        return _start(settings, works_for, is_experiment_chosen=is_chosen)
    from autogen_team._sync import offline_store

    if settings.mode != "offline" and not offline_store.is_one(settings.tracking_uri):
        try:
            server_probe.check_all((settings.tracking_uri, settings.registry_uri), settings.connect_timeout)
            return _start(settings, None, is_experiment_chosen=is_chosen)
        except TrackingUnavailableError as error:
            if settings.mode == "online":
                raise
            _report.warning("%s The job works offline; `autogen-team sync` delivers its runs later", error)
    uri = offline_store.prepare(state_folder(settings.state_dir), settings.tracking_uri)
    offline = settings.model_copy(update={"tracking_uri": uri, "registry_uri": uri})
    return _start(offline, works_for, is_experiment_chosen=is_chosen, instead_of=settings.tracking_uri)


def _start(
    settings: MlflowService, works_for: Shared | None, *, is_experiment_chosen: bool, instead_of: str | None = None
) -> Session:
    """Set MLflow up for the stores of the settings; an offline store replaces the store `instead_of`.

    Unless the user has chosen an experiment, an experiment id in the environment takes precedence over the name.
    """
    import mlflow

    from autogen_team._capture import (
        fast_path,
        lifecycle,
        mlflow_internals,
        otel_traces,
        redacting_store,
        run_stacks,
        signals,
        snapshots,
        system_metrics,
        traces,
        write_behind,
    )
    from autogen_team._capture.quick_uris import quick_uris
    from autogen_team._ship import mlflow_names, recovery

    with ExitStack() as undo:
        undo.enter_context(signals.signals_raise())
        if not logging.getLogger(_SAMPLER).level:  # otherwise the job has chosen a level
            undo.enter_context(saved.quiet(_SAMPLER))
        undo.callback(saved.keep_environment(_ALLOW_FILE_STORE, _QUIET_URLS, _RETRIES, _TIMEOUT))
        _allow_file_store(settings.tracking_uri, settings.registry_uri)
        os.environ.setdefault(_QUIET_URLS, "true")  # stdout belongs to the job
        mlflow_names.RULES.works()  # warns if the rules are missing
        if settings.durable:
            undo.callback(_export_traces_soon())
        outbox, stop_sending = otel_traces.take_over()
        undo.callback(stop_sending)
        undo.callback(mlflow_internals.keep_uris())
        undo.callback(quick_uris.take())
        given_id = None if is_experiment_chosen else mlflow_internals.given_experiment_id(settings.tracking_uri)
        is_offline = instead_of is not None
        if instead_of is not None:
            undo.callback(mlflow_internals.substitute(instead_of, settings.tracking_uri))
        mlflow_internals.point_at(settings.tracking_uri, settings.registry_uri, for_good=is_offline)
        if works_for is not None:
            experiment = works_for.experiment_id, works_for.experiment
        else:
            experiment = _find_or_make_experiment(settings, given_id, is_offline=is_offline)
        experiments = _Experiments(settings.tracking_uri, *experiment)
        is_given = experiment[0] == given_id
        undo.callback(mlflow_internals.provide_experiment(experiment[0], experiments.current, is_given=is_given))
        os.environ.setdefault(_RETRIES, "2")  # within 6 seconds; MLflow's default of 7 takes 4 minutes
        os.environ.setdefault(_TIMEOUT, "30")  # per attempt; MLflow's default is 120
        if settings.durable and works_for is None and mlflow_names.STORES.works():
            recovery.recover_behind(settings.tracking_uri, settings.registry_uri, state_folder(settings.state_dir))
        undo.callback(_stand_in(settings.tracking_uri, settings.registry_uri, settings))
        others = undo.enter_context(ExitStack())
        undo.callback(
            mlflow_internals.stand_in_for_others(lambda uri: others.callback(_stand_in_for_other(uri, settings)))
        )
        undo.callback(redacting_store.start_registry(write_behind.await_files))
        undo.callback(traces.start(settings.mask_traces, flush_timeout=settings.flush_timeout, outbox=outbox))
        undo.callback(system_metrics.sample_outside())
        undo.callback(run_stacks.isolate())
        undo.callback(mlflow_internals.keep_autolog())
        mlflow.autolog(**_autolog(settings))
        undo.callback(run_events.set_source(lifecycle.facts))
        undo.callback(lifecycle.keep_logs_below(state_folder(settings.state_dir)))
        if settings.snapshot and works_for is None:
            stores = settings.tracking_uri, settings.registry_uri
            undo.callback(snapshots.start(state_folder(settings.state_dir), stores))
        # The last callback is the first step of a stop, while everything is still in place.
        undo.callback(partial(lifecycle.close_open_runs, frozenset(lifecycle.left_open())))
        log_metrics = fast_path.logging_metrics()
        return Session(settings.tracking_uri, settings.registry_uri, undo.pop_all().close, log_metrics)


def _export_traces_soon() -> Undo:
    """Make MLflow export traces to the journal within a fraction of a second, in one thread.

    Variables that the user has set stay. By default, MLflow waits five seconds to send several spans together, which
    the journal does anyway. It uses ten threads, because each waits for the server.
    """
    undo = saved.keep_environment(*_TRACES)
    for name, value in _TRACES.items():
        os.environ.setdefault(name, value)
    return undo


def _autolog(settings: MlflowService) -> dict[str, Any]:
    """Return the arguments of `mlflow.autolog`."""
    prefix = "autolog_"
    fields = [name for name in type(settings).model_fields if name.startswith(prefix)]
    return {name.removeprefix(prefix): getattr(settings, name) for name in fields}


def _stand_in(uri: str, registry_uri: str, settings: MlflowService) -> Undo:
    """Mask the data logged to a store, and send it through a journal unless the settings say otherwise."""
    from autogen_team._capture import redacting_store, write_behind
    from autogen_team._ship import mlflow_names

    if not mlflow_names.STORES.works():
        return lambda: None
    if not settings.durable:
        return redacting_store.start(uri)
    return write_behind.start(
        uri,
        registry_uri,
        state_folder(settings.state_dir),
        connect_timeout=settings.connect_timeout,
        flush_timeout=settings.flush_timeout,
        heartbeat=settings.heartbeat,
        spool_limit=settings.spool_limit,
        skips_replayed=settings.replay == "skip",
    )


def _stand_in_for_other(uri: str, settings: MlflowService) -> Undo:
    """Do the same as `_stand_in` for another store that the job uses."""
    _allow_file_store(uri)
    # several processes of a job may use a new database at the same time
    with db_init_lock.in_turn(uri, state_folder(settings.state_dir)), saved.quiet("alembic"):
        return _stand_in(uri, uri, settings)


def active_run() -> mlflow.ActiveRun | None:
    """Return the innermost open run of the caller, without loading MLflow: if it is not loaded, there is no run."""
    loaded = sys.modules.get("mlflow")
    return loaded.active_run() if loaded else None


class _Experiments:
    """The job's experiment in each store that the job uses; created if it is missing."""

    def __init__(self, uri: str, experiment_id: str, name: str) -> None:
        from autogen_team._capture import mlflow_internals

        self._name = name
        self._ids = {mlflow_internals.identity(uri): experiment_id}
        self._remember(experiment_id)

    def current(self) -> str:
        """Return the id of the experiment in the store that MLflow points at."""
        import mlflow

        from autogen_team._capture import mlflow_internals

        place = mlflow_internals.identity(mlflow.get_tracking_uri())
        found = self._ids.get(place)
        if found is None:
            found = self._ids[place] = _find_experiment(self._name).experiment_id
            self._remember(found)
        return found

    def _remember(self, experiment_id: str) -> None:
        from autogen_team._capture import lifecycle

        lifecycle.remember_experiment(experiment_id, self._name)


def _find_or_make_experiment(settings: MlflowService, given_id: str | None, *, is_offline: bool) -> tuple[str, str]:
    """Return the id and the name of the job's experiment.

    Online, use the experiment with the given id. Otherwise find the experiment by its name, or create it.
    """
    import mlflow

    from autogen_team._sync import offline_store

    is_server = urlsplit(settings.tracking_uri).scheme in ("http", "https")
    try:
        with (
            db_init_lock.in_turn(settings.tracking_uri, state_folder(settings.state_dir)),
            _short_waits(settings.connect_timeout, has_database=not is_server),
            saved.quiet("alembic"),  # some 70 messages about the schema of a new database
        ):
            if is_offline:
                offline_store.make_experiment(settings.tracking_uri, settings.experiment_name)
            if given_id is not None and not is_offline:
                find = partial(_known_experiment, given_id)
            else:
                find = partial(_find_experiment, settings.experiment_name)
            if is_server:
                experiment = within(settings.connect_timeout, find, name="autogen-team-experiment")
            elif given_id is None or is_offline:
                experiment = mlflow.set_experiment(settings.experiment_name)
            else:
                experiment = find()
        return experiment.experiment_id, experiment.name
    except ConfigurationError:
        raise
    except Exception as error:
        reason = first_line(error)
        if "deleted experiment" in reason:
            raise ConfigurationError(
                f"the experiment {settings.experiment_name!r} is deleted: restore it (mlflow experiments restore), or "
                "set MLFLOW_EXPERIMENT_NAME to another experiment"
            ) from None
        # Not chained: the causes show the address with its password.
        raise TrackingUnavailableError(server_probe.unavailable(settings.tracking_uri, reason)) from None


def _known_experiment(experiment_id: str) -> Experiment:
    """Return the experiment with the id from the environment.

    Raises:
        ConfigurationError: the experiment does not exist, or is deleted.

    """
    import mlflow
    from mlflow.entities import LifecycleStage
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

    try:
        found = mlflow.MlflowClient().get_experiment(experiment_id)
    except mlflow.MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        found = None
    if found is None or found.lifecycle_stage != LifecycleStage.ACTIVE:
        problem = "does not exist in the store" if found is None else "is deleted"
        raise ConfigurationError(
            f"the experiment {experiment_id!r} of MLFLOW_EXPERIMENT_ID {problem}: unset the variable, or set "
            "MLFLOW_EXPERIMENT_NAME to another experiment, which takes precedence"
        )
    return found


def _find_experiment(name: str) -> Experiment:
    """Return the experiment with this name; create it if it is missing.

    MLflow's active experiment is not set, because the caller may have stopped waiting.
    """
    import mlflow
    from mlflow.entities import LifecycleStage

    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.get_experiment(client.create_experiment(name))
        except mlflow.MlflowException as error:
            found = client.get_experiment_by_name(name)  # another process may have created it at the same time
            if found is None:
                raise error from None
    if found.lifecycle_stage != LifecycleStage.ACTIVE:
        raise mlflow.MlflowException(f"a deleted experiment: {name}")
    return found


@contextmanager
def _short_waits(timeout: float, *, has_database: bool) -> Iterator[None]:
    """Bound MLflow's own waits inside the block; values that the user has set stay.

    Without a database, MLflow's database modules are not loaded, which would take half as long as loading MLflow.
    """
    from autogen_team._capture import mlflow_internals

    bounds = {
        _RETRIES: "0",
        _TIMEOUT: str(max(1, math.ceil(timeout))),
    }
    with ExitStack() as undo:
        undo.callback(saved.keep_environment(*bounds))
        if has_database:
            undo.callback(mlflow_internals.ask_databases_once())
        for name, value in bounds.items():
            os.environ.setdefault(name, value)
        yield


def _allow_file_store(*locations: str) -> None:
    for uri in dict.fromkeys(locations):
        if uris.is_folder(uri):
            warnings.warn(
                f"{mask_url(uri)} is a folder: MLflow only maintains its file store and will drop it; move to "
                "sqlite:///mlflow.db (mlflow migrate-filestore)",
                ConfigurationWarning,
                stacklevel=6,
            )
            os.environ[_ALLOW_FILE_STORE] = "true"
