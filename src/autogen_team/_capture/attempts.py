"""One run for all starts of a job: find the job's unfinished run, and claim it.

A job has an identity: a name, or the id that its scheduler gives it. An unfinished run that has the identity as a tag
is opened again. Its owner is the process that has claimed its latest attempt. A claim is a parameter of the run,
because in MLflow only the first of several writers can set a parameter: of two processes that claim the same attempt,
the store refuses one. A tag would be overwritten.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress

import mlflow
from mlflow.entities import LifecycleStage, Param, Run, RunData, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from autogen_team._capture import claims, mlflow_internals, run_stacks, write_behind
from autogen_team._process import identity, run_events, schedulers
from autogen_team._process.run_events import ATTEMPT_TAG, EXCEPTION_TAG, JOB_TAG, PREEMPTED_TAG
from autogen_team._redact import mask
from autogen_team._ship import mlflow_backend, recovery, signs
from autogen_team._ship.owners import CLAIM, Claim, latest_claim, moment_text
from autogen_team._spool import index
from autogen_team.errors import ConfigurationError, JobRunningError

VARIABLE = "AUTOGEN_TEAM_RUN_JOB"
AUTO = "auto"
_LONGEST = 200
_PAUSES = (0.1, 0.3, 1.0)
"""Seconds between attempts to write a claim while a database is locked."""
_HEARTBEATS = 3
"""Heartbeats that may be missing before a process counts as dead."""
_MOST = 100
"""Limit on the runs of one job that are read; there is more than one only if several starts raced."""

_report = logging.getLogger("autogen_team")


def named(job: str) -> str:
    """Return the identity for a job setting; for `auto`, the job id of the scheduler.

    Raises:
        ConfigurationError: `auto` finds no scheduler, or the name is not valid.

    """
    if job == AUTO:
        found = schedulers.find()
        if found is None:
            raise ConfigurationError(
                f"no scheduler has given this job an id in any of the variables {schedulers.looked_for()}: name the"
                f" job with --job, RunConfig.job or {VARIABLE}"
            )
        job = found.job
    if not job.strip() or len(job) > _LONGEST or re.search(r"[^ -~]|['\"`]", job):
        raise ConfigurationError(
            f"{job!r} is not a valid job name: use 1 to {_LONGEST} printable ASCII characters without quotes"
        )
    return mask(job)


_is_named = False
"""Whether a run of this process has taken the identity from the environment."""


def identity_of(job: str | None, name: str, *, run_id: str | None, is_child: bool) -> str | None:
    """Return the identity for a run that is about to be opened; None for a run without one.

    The variable applies to the first run that the process opens. A run that joins another process's run has the
    identity of that run.
    """
    global _is_named
    joins = run_id or "MLFLOW_RUN_ID" in os.environ or (mlflow_internals.open_run_ids() and not is_child)
    if job is not None:
        if not joins:
            return named(job)
        _report.warning(
            "the run %s ignores the job name %r, because it joins an existing run: give the name to the process that "
            "opens that run, as in `autogen-team run --job %s`",
            *(name, job, job),
        )
        return None
    given = os.environ.get(VARIABLE, "")
    if _is_named or not given or joins or is_child or identity.worker() is not None:
        return None
    _is_named = True
    return named(given)


def claim(
    job: str, make: Callable[[dict[str, str]], Run], *, stale: float, parent: str | None = None, is_sure: bool = False
) -> Run:
    """Return the run of the job, claimed for this process: its unfinished run, or a new one from `make`.

    Args:
        job: the identity.
        make: creates a run with these additional tags.
        stale: seconds without a heartbeat after which a process on another machine counts as dead.
        parent: id of the parent run.
        is_sure: whether the process of the latest attempt is known to have ended.

    Raises:
        JobRunningError: another process owns the run.
        Exception: any error of the store.

    """
    client = mlflow.MlflowClient()
    working = write_behind.of(mlflow.get_tracking_uri())
    if working is not None:
        stale = max(stale, _HEARTBEATS * working.shipper.signs.every)
    found = _unfinished(client, job, parent)
    made = None
    if not any(latest_claim(run.data.params) for run in found):
        made = make({JOB_TAG: job})
        others = [run for run in _unfinished(client, job, parent) if run.info.run_id != made.info.run_id]
        found = sorted([made, *others], key=_order)  # including runs that racing starts have created
    try:
        # All processes claim in the same order, so of those that race, exactly one gets all the runs that it sees.
        answers = [_claim(job, run, stale=stale, is_sure=is_sure) for run in found]
    except JobRunningError:
        if made is not None:
            _discard(client, made.info.run_id)
        raise
    own = None if made is None else made.info.run_id
    # An answer of None means that a racing process has created the run and deleted it.
    claimed = [run for run in answers if run is not None]
    if not claimed:
        raise MlflowException(f"the run of the job {job!r} was deleted while it was being opened")
    ours = max(claimed, key=lambda run: (run_events.attempt_of(run.data.tags), run.info.run_id == own))
    for run in found:
        if run is made and run.info.run_id != ours.info.run_id:
            _discard(client, run.info.run_id)
        elif run.info.run_id != ours.info.run_id:  # its process may have died before it could delete it
            with suppress(MlflowException):
                client.delete_tag(run.info.run_id, JOB_TAG)
    return ours


def _unfinished(client: mlflow.MlflowClient, job: str, parent: str | None) -> list[Run]:
    conditions = [f"tags.`{JOB_TAG}` = '{job}'", "attributes.status != 'FINISHED'"]
    if parent is not None:
        conditions.append(f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}'")
    found = client.search_runs([mlflow_internals.experiment_id()], " AND ".join(conditions), max_results=_MOST)
    return sorted(found, key=_order)


def _order(run: Run) -> tuple[int, str]:
    return run.info.start_time, run.info.run_id


def _discard(client: mlflow.MlflowClient, run_id: str) -> None:
    """Delete an unneeded run of this process, unless another start has claimed it."""
    try:
        claim = latest_claim(client.get_run(run_id).data.params)
        if claim is not None and claim.attempt > 1:
            return
        client.set_terminated(run_id, "KILLED")
        client.delete_run(run_id)
    except Exception as error:
        _report.warning("the unneeded run %s cannot be deleted: %s", run_id, mask(str(error)))


def _claim(job: str, run: Run, *, stale: float, is_sure: bool) -> Run | None:
    """Claim the next attempt of a run, and return the updated run; None if the run was deleted in the meantime.

    Raises:
        JobRunningError: the owner of the run is alive, or another process was faster.

    """
    last = latest_claim(run.data.params)
    tags: dict[str, str] = {}
    if last is not None:
        if not is_sure:
            _require_dead(job, run, last, stale)
        run = _delivered(run, last)
        last = latest_claim(run.data.params) or last
        tags[f"{ATTEMPT_TAG}.{last.attempt}"] = _how_it_ended(run, last)
    ours = Claim.here(1 if last is None else last.attempt + 1, run.info.end_time or 0)
    tags |= {ATTEMPT_TAG: str(ours.attempt), **signs.tags(ours.pid)}
    if not _write(job, run.info.run_id, ours, tags):
        return None
    params = {**run.data.params, f"{CLAIM}{ours.attempt}": str(ours)}
    return Run(mlflow_internals.running(run.info), _data(run, params, {**run.data.tags, **tags}))


def _data(run: Run, params: Mapping[str, str], tags: Mapping[str, str]) -> RunData:
    return RunData(
        mlflow_internals.metrics_of(run),
        [Param(*pair) for pair in params.items()],
        [RunTag(*pair) for pair in tags.items()],
    )


def _write(job: str, run_id: str, ours: Claim, tags: Mapping[str, str]) -> bool:
    """Write the claim and the tags in one request; the store sets the parameter before the tags.

    Return False if the run was deleted.

    Raises:
        JobRunningError: another process has claimed the attempt.

    """
    store = mlflow_backend.plain_store(mlflow.get_tracking_uri())
    key, text = f"{CLAIM}{ours.attempt}", str(ours)
    pauses: Iterator[float | None] = iter((*_PAUSES, None))
    while True:
        try:
            store.log_batch(run_id, [], [Param(key, text)], [RunTag(*pair) for pair in tags.items()])
        except MlflowException:
            now = store.get_run(run_id)
            if now.info.lifecycle_stage == LifecycleStage.DELETED:
                return False
            held = now.data.params.get(key)
            if held is not None and held != text:
                other = latest_claim({key: held}) or ours
                raise _refusal(job, run_id, other.host, other.pid, time.time() - other.at) from None
            pause = next(pauses)
            if pause is None:
                raise
            time.sleep(pause)
        else:
            return True


def _require_dead(job: str, run: Run, last: Claim, stale: float) -> None:
    """Check that the process of the latest attempt has ended.

    Raises:
        JobRunningError: the process is alive, or may be.

    """
    has_ended = run.info.status != "RUNNING" and (run.info.end_time or 0) != last.after
    if has_ended:
        return
    tags = run.data.tags
    host, pid = tags.get(signs.HOST_TAG) or last.host, tags.get(signs.PID_TAG) or last.pid
    sign = max(signs.moment(tags.get(signs.ALIVE_TAG, "")) or 0.0, last.at)
    if last.is_of_this_machine:
        if last.lives:
            raise _refusal(job, run.info.run_id, host, pid, time.time() - sign)
        return
    found = schedulers.find()
    if found is not None and found.starts > last.starts:
        return  # a scheduler restarts a job only after it has ended
    age = time.time() + _ahead() - sign
    if age < stale:
        raise _refusal(job, run.info.run_id, host, pid, age, stale)


def _ahead() -> float:
    """Return how many seconds the store's clock is ahead of ours; 0 if unknown."""
    working = write_behind.of(mlflow.get_tracking_uri())
    return 0.0 if working is None else working.shipper.signs.ahead


def _refusal(job: str, run_id: str, host: str, pid: object, age: float, stale: float | None = None) -> JobRunningError:
    text = f"the job {job!r} is already running: process {pid} on {host}, last heartbeat {max(0.0, age):.0f} s ago"
    hint = "" if stale is None else f"; it counts as dead after {stale:g} s without one (--stale)"
    return JobRunningError(f"{text} (run {run_id}){hint}")


def _delivered(run: Run, last: Claim) -> Run:
    """Deliver the journals that earlier attempts have left on this machine, and return the updated run."""
    working = write_behind.of(mlflow.get_tracking_uri())
    if working is None:
        return run
    run_id, state = run.info.run_id, working.state
    uri, registry_uri = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    has_any = False
    for found in index.find(state, [last.host]):
        known = {*found.run_ids, *(one.run_id for one in found.open_runs)}
        if found.state in ("dead", "recovering") and run_id in known:
            has_any = True
            result = recovery.recover_or_wait(found, uri, registry_uri, state, [last.host])
            if result.problem:
                text = "the journal of attempt %d of the job, in %s, is not delivered yet: %s"
                _report.warning(text, last.attempt, found.folder, result.problem)
    return mlflow.MlflowClient().get_run(run_id) if has_any else run


def _how_it_ended(run: Run, last: Claim) -> str:
    tags, info = run.data.tags, run.info
    host, pid = tags.get(signs.HOST_TAG) or last.host, tags.get(signs.PID_TAG) or last.pid
    sign = tags.get(signs.ALIVE_TAG) or moment_text(last.at)
    if info.status == "RUNNING":
        status, reason, at = "KILLED", "no reason recorded", sign
    else:
        status, reason = info.status, tags.get(EXCEPTION_TAG, "")
        at = moment_text((info.end_time or 0) / 1000) if info.end_time else sign
    preempted = "preempted" if PREEMPTED_TAG in tags else ""
    return ", ".join(filter(None, (status, reason, preempted, f"on {host}-{pid}", at)))


@contextmanager
def opening(run: Run) -> Iterator[None]:
    """Answer MLflow's requests for a newly claimed run inside the block, without asking the store again."""
    working = write_behind.of(mlflow.get_tracking_uri())
    with nullcontext() if working is None else working.store.opening(run):
        yield


def attempt() -> int:
    """Return the attempt number of the caller's run; 1 without a run."""
    active = run_stacks.job_run()
    return 1 if active is None else run_events.attempt_of(active.data.tags)


def last_step(key: str | None) -> int | None:
    """Return the last step of a metric of the caller's run; None if there is none.

    Without `key`, return the last step of all metrics but system metrics.

    Raises:
        Exception: any error of the store.

    """
    active = run_stacks.job_run()
    if active is None:
        return None
    run = mlflow.MlflowClient(run_stacks.uri_of(active)).get_run(active.info.run_id)
    return max((step for name, step in claims.steps_of(run).items() if key in (None, name)), default=None)


def is_superseded(client: mlflow.MlflowClient, run_id: str, attempt: int) -> bool:
    """Return whether another process has claimed a later attempt of the run, so that this process must not close it."""
    return run_events.attempt_of(client.get_run(run_id).data.tags) > attempt
