"""Runs that several processes share: the description of a run for workers, and how a worker logs to it.

The process that has opened the run closes it. `active_runs` describes what MLflow's functions do until then.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LifecycleStage, Param, Run, RunData, RunInfo, RunTag

from autogen_team._capture import active_runs, lifecycle, mlflow_internals, run_stacks, signals, write_behind
from autogen_team._process import run_events
from autogen_team._process.deadline import within
from autogen_team._process.forking import ForkSafeLock, call_in_child
from autogen_team._redact import mask
from autogen_team._ship import ui_url

_report = logging.getLogger("autogen_team")


@dataclass(frozen=True, slots=True)
class Shared:
    """Facts that a worker needs about the run that it works for; sent as text or as a pickle."""

    run_id: str
    name: str
    experiment_id: str
    experiment: str
    """The name of the experiment."""
    user: str
    start: int
    """Milliseconds since 1970."""
    host: str
    """Host that opened the run."""
    state: str
    """State folder of the process that opened the run. It uploads the logs of workers on its host in this folder."""
    attempt: int = 1
    """Number of the job's start that the run is in."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)


def shared_run(uri: str, state: Path) -> Shared | None:
    """Return the caller's open run for workers to join; None if there is none that they can find.

    Workers cannot find a run that began while its store was unreachable, until the store has created it.
    """
    active = run_stacks.job_run()
    if active is None:
        return None
    working = write_behind.of(uri)
    run_id = active.info.run_id
    if working is not None:
        if working.store.is_to_be_made(run_id):
            text = "the run %s does not exist in its store yet, which is unreachable: workers cannot log to it"
            _report.warning(text, active.info.run_name)
            return None
        run_id = working.store.real_id(run_id)
    experiment = lifecycle.facts().get("experiment", "")
    info = active.info
    return Shared(
        run_id,
        info.run_name or "",
        info.experiment_id,
        experiment,
        info.user_id or "",
        info.start_time,
        socket.gethostname(),
        str(state),
        run_events.attempt_of(active.data.tags),
    )


def place(state: Path) -> str:
    """Return `host:state_dir`; processes with equal values keep the logs of runs in the same folder."""
    return f"{socket.gethostname()}:{state}"


def find(tags: Mapping[str, str], place_tag: str, is_meant: Callable[[Run], bool]) -> Shared | None:
    """Return the newest open run with these tags that `is_meant` accepts; None if there is none.

    Raises:
        Exception: any error of the store.

    """
    client = mlflow.MlflowClient()
    found = client.get_experiment(mlflow_internals.experiment_id())
    conditions = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
    conditions.append("attributes.status = 'RUNNING'")
    newest = client.search_runs(
        [found.experiment_id], " AND ".join(conditions), max_results=10, order_by=["attributes.start_time DESC"]
    )
    run = next(filter(is_meant, newest), None)
    if run is None:
        return None
    info, [host, _, state] = run.info, run.data.tags.get(place_tag, "").partition(":")
    return Shared(
        info.run_id,
        info.run_name or "",
        info.experiment_id,
        found.name,
        info.user_id or "",
        info.start_time,
        host,
        state,
        run_events.attempt_of(run.data.tags),
    )


@contextmanager
def work_for(shared: Shared, failure_tag: str | None = None) -> Iterator[mlflow.ActiveRun]:
    """Open the run in this thread inside the block; runs that the block leaves open inside the run end with it.

    With `failure_tag`, a failure of the block is reported like the failure of a run: in this tag, and to the listeners.
    """
    active, leave = active_runs.hold_open(_as_run(shared))
    failure: BaseException | None = None
    began = time.monotonic()
    working = write_behind.of(mlflow.get_tracking_uri())
    if working is not None:
        working.shipper.join(shared.run_id, shared.attempt)
    try:
        yield active
    except BaseException as error:
        failure = error
        raise
    finally:
        lifecycle.close_open_runs()  # if a signal has ended the process
        if working is not None:
            working.shipper.leave(shared.run_id, shared.attempt)
        if failure is not None and failure_tag is not None:
            _tell(shared, failure, failure_tag, time.monotonic() - began)
        left = leave()
        if left:
            status, _ = signals.verdict(failure)
            try:
                within(lifecycle.PATIENCE, partial(_end, left, status), name="autogen-team-end-of-run")
            except Exception as error:
                _report.error("the end of runs %s could not be recorded: %s", ", ".join(left), mask(str(error)))


def opened_elsewhere(shared: Shared, **data: Any) -> mlflow.ActiveRun:
    """Return the run as if this thread had opened it; the process that opened it will close it.

    `data` is the result of `as_opened` in that process. The store is not asked, so it may be unreachable.
    """
    run = _as_run(shared, **data)
    working = write_behind.of(mlflow.get_tracking_uri())
    if working is not None:
        working.store.remember(run)
        working.shipper.works_for(shared.run_id, shared.attempt)
    return active_runs.opened_elsewhere(run)


def as_opened(active: mlflow.ActiveRun) -> dict[str, Any]:
    """Return the arguments of `opened_elsewhere` besides the `Shared`, for JSON."""
    data = active.data
    return {"artifact_uri": active.info.artifact_uri, "params": dict(data.params), "tags": dict(data.tags)}


def _as_run(
    shared: Shared, artifact_uri: str | None = None, params: Mapping[str, str] = {}, tags: Mapping[str, str] = {}
) -> Run:
    info = RunInfo(
        shared.run_id,
        shared.experiment_id,
        shared.user,
        "RUNNING",
        shared.start,
        None,
        LifecycleStage.ACTIVE,
        artifact_uri,
        run_name=shared.name,
    )
    lifecycle.remember_experiment(shared.experiment_id, shared.experiment)
    if shared.attempt > 1:
        tags = {run_events.ATTEMPT_TAG: str(shared.attempt), **tags}
    data = RunData([], [Param(*pair) for pair in params.items()], [RunTag(*pair) for pair in tags.items()])
    return Run(info, data)


def _tell(shared: Shared, failure: BaseException, tag: str, duration: float) -> None:
    status, reason = signals.verdict(failure)
    if status == "FAILED":
        try:
            # Do not use the fluent function: the thread of this call has another open run, or none.
            note = partial(mlflow.MlflowClient().set_tag, shared.run_id, tag, reason)
            within(lifecycle.PATIENCE, note, name="autogen-team-end-of-run")
        except Exception as error:
            _report.error("a worker's failure could not be recorded in run %s: %s", shared.run_id, mask(str(error)))
        run_events.run_ended(_published_run(shared), run_events.End(status, reason, failure, duration))


def _end(run_ids: list[str], status: run_events.Status) -> None:
    client = mlflow.MlflowClient()
    for run_id in run_ids:
        client.set_terminated(run_id, status)
        mlflow_internals.stop_system_metrics(run_id)


_lock = ForkSafeLock()
_published: dict[tuple[int, str], _Published] = {}
"""Published runs by process id and run id; a forked child publishes them again."""


@dataclass(slots=True)
class _Published:
    run: run_events.Run
    users: int = 0


@contextmanager
def contribute_log(shared: Shared, state: Path) -> Iterator[None]:
    """Make the log of this process inside the block a part of the run's log; blocks may overlap."""
    key = os.getpid(), shared.run_id
    with _lock:
        found = _published.get(key)
        if found is None:
            found = _published[key] = _Published(_published_run(shared, state))
            is_seen = (shared.host, shared.state) == (socket.gethostname(), str(state))
            run_events.run_joined(found.run, brings_log=not is_seen)
        found.users += 1
    try:
        yield
    finally:
        with _lock:
            found.users -= 1
            if not found.users:
                _published.pop(key, None)  # a forked child that leaves the block has forgotten the entry
                run_events.run_left(found.run)


def _published_run(shared: Shared, state: Path | None = None) -> run_events.Run:
    uri = mlflow.get_tracking_uri()
    client = mlflow.MlflowClient(uri, mlflow.get_registry_uri())
    return run_events.Run(
        run_id=shared.run_id,
        name=shared.name,
        experiment=shared.experiment,
        link=ui_url.of_run(uri, shared.experiment_id, shared.run_id),
        attach=lambda path, folder: client.log_artifact(shared.run_id, str(path), folder),
        log_folder=None if state is None else run_events.log_folder(state, shared.run_id),
        attempt=shared.attempt,
    )


def after_fork() -> None:
    """Forget the runs that the parent has published."""
    _published.clear()


call_in_child(after_fork)
