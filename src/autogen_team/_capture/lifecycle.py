"""Opens runs, and closes them with a status that records how they ended."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run, RunInfo
from mlflow.tracking.context import registry
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from autogen_team._capture import active_runs, attempts, mlflow_internals, run_stacks, signals, write_behind
from autogen_team._process import Undo, run_events, schedulers, stopping
from autogen_team._process.deadline import within
from autogen_team._process.forking import ForkSafeLock
from autogen_team._process.saved import SavedValue
from autogen_team._redact import mask
from autogen_team._ship import ui_url
from autogen_team._ship.signs import OVERTAKEN, STOP_REQUESTED_TAG, STOP_TAG, STOPPED

PATIENCE = 15.0
"""Seconds that recording the end of a run may take."""

_report = logging.getLogger("autogen_team")
_lock = ForkSafeLock()
_experiments: dict[str, str] = {}
"""Experiment names by id, filled when an experiment is set, because a log record must not wait for a server."""
_facts: dict[str, dict[str, str]] = {}
"""The log fields of each run seen so far, by run id."""


@dataclass(frozen=True, slots=True)
class _Open:
    """A run that this process has open through `open_run`."""

    run: run_events.Run
    client: mlflow.MlflowClient
    """Bound to the stores in use when the run was opened, wherever the job points MLflow later."""
    started: int
    """Milliseconds since 1970, as in the store."""
    uri: str
    owner: int
    """Id of the process that opened the run; a forked child inherits the block, but not the run."""


_open: list[_Open] = []
"""Open runs, the latest last."""


@contextmanager
def open_run(
    *,
    name: str,
    description: str | None = None,
    tags: Mapping[str, Any] | None = None,
    log_system_metrics: bool | None = None,
    nested: bool = False,
    parent_run_id: str | None = None,
    run_id: str | None = None,
    job: str | None = None,
    stale: float = 300.0,
    begun: float | None = None,
    is_launched: bool = False,
) -> Iterator[mlflow.ActiveRun]:
    """Open a run, and close it with the status that the end of the block implies.

    `begun` is the start of the run's work, in seconds since 1970; None means now. It is ignored for an existing run.
    `is_launched` says that a launcher has started this process after it had ended the previous one.
    """
    with signals.signals_raise():
        signals.hold()
        try:
            is_child = nested or parent_run_id is not None
            resumed = run_id or os.environ.get("MLFLOW_RUN_ID")
            known = attempts.identity_of(job, name, run_id=run_id, is_child=is_child)
            claimed = None
            if known is not None:
                around = mlflow_internals.open_run_ids()[-1:] if nested else []
                parent = next(iter(around), parent_run_id)

                def make(own: Mapping[str, str]) -> Run:
                    child = {} if parent is None else {MLFLOW_PARENT_RUN_ID: parent}
                    return _make(name, {**(tags or {}), **own, **child}, begun)

                claimed = attempts.claim(known, make, stale=stale, parent=parent, is_sure=is_launched)
                run_id, parent_run_id = claimed.info.run_id, None
                resumed = run_id
            elif begun is not None and run_id is None and "MLFLOW_RUN_ID" not in os.environ:
                run_id, tags = _make(name, tags, begun).info.run_id, None
            if resumed:
                _forget_stop(resumed, claimed)
            with nullcontext() if claimed is None else attempts.opening(claimed):
                active = mlflow.start_run(
                    run_id=run_id,
                    run_name=mask(name),
                    nested=nested,
                    parent_run_id=parent_run_id,
                    description=None if description is None else mask(description),
                    tags=as_text(tags),
                    log_system_metrics=log_system_metrics,
                )
            if isinstance(active, active_runs.JoinedRun):
                opened = None  # its opener closes it, and has removed the tags below
            else:
                for tag in (run_events.EXCEPTION_TAG, run_events.PREEMPTED_TAG):
                    if tag in active.data.tags:  # the run is resumed, and has failed before
                        mlflow.MlflowClient().delete_tag(active.info.run_id, tag)
                opened = _note(active)
        except BaseException as error:
            signals.release(leaving=signals.is_leaving(error))
            raise
        failure: BaseException | None = None
        try:
            signals.release()  # a signal that arrived in the meantime is raised here, so that it closes the run
            yield active
        except BaseException as error:
            failure = error
            raise
        finally:
            if opened is None:
                active_runs.note_end(active, *signals.verdict(failure))
            else:
                signals.hold()
                try:
                    _close(opened, failure)
                finally:
                    signals.release(leaving=signals.is_leaving(failure))


def _make(name: str, tags: Mapping[str, Any] | None, begun: float | None) -> Run:
    """Create a run that began at `begun`, in seconds since 1970, or now."""
    return mlflow.MlflowClient().create_run(
        mlflow_internals.experiment_id(),
        start_time=None if begun is None else round(begun * 1000),
        tags=registry.resolve_tags(as_text(tags)),
        run_name=mask(name),
    )


def _forget_stop(run_id: str, claimed: Run | None) -> None:
    """Remove a stop request from a run that has ended, before the run is reopened and its tags are read."""
    client = mlflow.MlflowClient()
    with suppress(mlflow.MlflowException):  # opening the run reports its fault
        found = claimed or client.get_run(run_id)
        if claimed is not None or found.info.status != "RUNNING":
            for tag in {STOP_TAG, STOP_REQUESTED_TAG} & found.data.tags.keys():
                client.delete_tag(run_id, tag)


@contextmanager
def host_run(**config: Any) -> Iterator[mlflow.ActiveRun]:
    """Open a run like `open_run`; the first run that the code inside opens joins it instead of starting its own."""
    with open_run(**config) as active:
        restore = active_runs.allow_join(active)
        try:
            yield active
        finally:
            restore()


def close_open_runs(before: Collection[str] = ()) -> None:
    """Close the runs that this process has left open, if a signal, an exception or an exit status ends the job.

    Runs of `open_run`, and runs that other threads have open, are closed only after a signal: otherwise their own code
    ends them. Runs named in `before` belong to other code, and stay open.
    """
    signum = signals.fatal_signal()
    failure = run_events.failure() if signum is None else signals.Terminated(signum)
    if signum is not None:
        for opened in reversed(_open):
            _close(opened, failure)
    status, reason = signals.verdict(failure)
    if status == "FINISHED":
        return
    end = run_events.End(status, reason, failure, 0.0)
    kept = {*before, *(opened.run.run_id for opened in _open)}
    if signum is None:
        kept |= _of_this_process(everywhere=True).keys() - _of_this_process(everywhere=False).keys()
    for run_id, uri in reversed(left_open().items()):
        if run_id not in kept:
            end_run(run_id, uri, end)


def left_open() -> dict[str, str]:
    """Return the store URI of each run that this process has opened by `mlflow.start_run` or an MLflow client.

    Without a journal, runs of clients are not known.
    """
    return {**_of_this_process(everywhere=True), **write_behind.open_runs()}


def _of_this_process(*, everywhere: bool) -> dict[str, str]:
    return run_stacks.open_runs(everywhere=everywhere, apart_from=active_runs.JoinedRun)


def end_run(run_id: str, uri: str, end: run_events.End) -> None:
    """End a run that was opened without `open_run`, unless it has ended in the store, or a later attempt has it."""
    client = mlflow.MlflowClient(uri)
    attempt = write_behind.attempt_in(run_id)
    mlflow_internals.leave_runs(run_id)

    def record() -> None:
        found = client.get_run(run_id)
        is_overtaken = attempt is not None and run_events.attempt_of(found.data.tags) > attempt
        if found.info.status == "RUNNING" and not is_overtaken:
            _record(client, [run_id], run_id, end, _now())

    try:
        within(PATIENCE, record, name="autogen-team-end-of-run")
    except Exception as error:
        _report.error("the end of run %s as %s could not be recorded: %s", run_id, end.status, mask(str(error)))


def as_text(tags: Mapping[str, Any] | None) -> dict[str, str] | None:
    """Return the tags as masked text, because MLflow's servers require text (a number works only on SQLite)."""
    return None if tags is None else {str(key): mask(str(value)) for key, value in tags.items()}


def facts() -> run_events.Facts:
    """Return the log fields of the caller's run and span; a thread without a run of its own gets the job's run."""
    active = run_stacks.job_run()
    found = {} if active is None else _facts.get(active.info.run_id) or _learn(active.info)
    span = mlflow.get_current_active_span()
    return found if span is None else {**found, "trace_id": span.trace_id, "span_id": span.span_id}


def _learn(info: RunInfo) -> dict[str, str]:
    experiment = _experiments.get(info.experiment_id, info.experiment_id)
    found = {"run_id": info.run_id, "run_name": info.run_name or "", "experiment": experiment}
    return _facts.setdefault(info.run_id, found)


def remember_experiment(experiment_id: str, name: str) -> None:
    """Remember the name of an experiment, because a run knows only the id."""
    _experiments[experiment_id] = name


def keep_logs_below(state: Path) -> Undo:
    """Keep the logs of runs in this state folder until the returned function is called."""
    undo = _state_before.hold(_state)
    _set_state(state)
    return undo


def _set_state(state: Path | None) -> None:
    global _state
    _state = state


_state: Path | None = None
_state_before = SavedValue(_set_state)


def _note(active: mlflow.ActiveRun) -> _Open:
    info = active.info
    known = _learn(info)
    uri = mlflow.get_tracking_uri()
    client = mlflow.MlflowClient(uri, mlflow.get_registry_uri())
    run = run_events.Run(
        run_id=info.run_id,
        name=known["run_name"],
        experiment=known["experiment"],
        link=ui_url.of_run(uri, info.experiment_id, info.run_id),
        attach=lambda path, folder: client.log_artifact(info.run_id, str(path), folder),
        parent_id=active.data.tags.get(MLFLOW_PARENT_RUN_ID),
        attempt=run_events.attempt_of(active.data.tags),
        job=active.data.tags.get(run_events.JOB_TAG),
        is_outermost=not active_runs.has_own_run_around(active),
        log_folder=None if _state is None else run_events.log_folder(_state, info.run_id),
    )
    opened = _Open(run, client, info.start_time, uri, os.getpid())
    with _lock:
        _open.append(opened)
    run_events.run_started(run)
    return opened


def _close(opened: _Open, failure: BaseException | None) -> None:
    run_id = opened.run.run_id
    with _lock:
        if opened not in _open or opened.owner != os.getpid():
            return
        _open.remove(opened)
    status, reason = signals.verdict(failure)
    if status == "FINISHED":
        status, reason = reported_end(run_id, opened.uri) or (status, reason)
    at = _work_ended.pop(run_id, None) or _now()
    is_preempted = status == "KILLED" and schedulers.has_preempted(reason)
    is_overtaken = status != "FINISHED" and opened.run.job is not None and _was_overtaken()
    end = run_events.End(status, reason, failure, max(0, at - opened.started) / 1000, is_preempted, is_overtaken)
    run_events.run_ending(opened.run, end)
    # Runs left open inside of this run end with it; a run that the job ended itself keeps its status.
    ids = mlflow_internals.leave_runs(run_id)
    try:
        within(
            PATIENCE, partial(_record, opened.client, ids, run_id, end, at, opened.run), name="autogen-team-end-of-run"
        )
    except Exception as error:
        # An unreachable store must not mask the job's own end, perhaps its own exception.
        _report.error("the end of run %s as %s could not be recorded: %s", run_id, status, mask(str(error)))
    run_events.run_ended(opened.run, end)


def _was_overtaken() -> bool:
    return (stopping.reason() or "").startswith(OVERTAKEN)


def reported_end(run_id: str, uri: str) -> tuple[run_events.Status, str] | None:
    """Return the failure that the job has reported for the run, possibly through an MLflow client; None without one."""
    given = active_runs.reported_status(run_id)
    if given is not None:
        return given
    working = write_behind.of(uri)
    info = None if working is None else working.store.info_of(run_id)
    return None if info is None else active_runs.as_failure(info.status)


def work_has_ended(run_id: str, at: float) -> None:
    """Record when the work of a run ended, in seconds since 1970, if the run is closed later."""
    _work_ended[run_id] = round(at * 1000)


_work_ended: dict[str, int] = {}


def _now() -> int:
    return round(time.time() * 1000)


def _record(
    client: mlflow.MlflowClient,
    ids: list[str],
    run_id: str,
    end: run_events.End,
    at: int,
    run: run_events.Run | None = None,
) -> None:
    if (
        run is not None
        and run.job is not None
        and (end.is_overtaken or attempts.is_superseded(client, run_id, run.attempt))
    ):
        text = "the run %s is left open: a later start of the job %r has taken it over, and keeps it"
        _report.warning(text, run_id, run.job)
        write_behind.leave_open(run_id)
        ids, end = [one for one in ids if one != run_id], replace(end, reason=None, is_preempted=False)
        mlflow_internals.stop_system_metrics(run_id)
    actions: list[Callable[[], object]] = [partial(client.set_terminated, one, end.status, at) for one in ids]
    if end.reason is not None:
        actions.append(partial(client.set_tag, run_id, run_events.EXCEPTION_TAG, end.reason))
    if end.is_preempted:
        actions.append(partial(client.set_tag, run_id, run_events.PREEMPTED_TAG, "true"))
    if (end.reason or "").startswith(STOPPED) and stopping.reason() is None:
        # A worker has read the tag, and its exception has ended the job before our next heartbeat, which removes it.
        actions.append(partial(_remove_stop_tag, client, run_id))
    actions += [partial(mlflow_internals.stop_system_metrics, one) for one in ids]
    errors = []
    for action in actions:
        try:
            action()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _remove_stop_tag(client: mlflow.MlflowClient, run_id: str) -> None:
    with suppress(mlflow.MlflowException):  # it has been removed meanwhile
        client.delete_tag(run_id, STOP_TAG)
