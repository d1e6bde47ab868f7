"""One run for all processes that a launcher such as torchrun starts with `RANK` and `WORLD_SIZE`.

Rank 0 opens the run, with a tag that names the launch. The other ranks find the run in the store by that tag, or by the
identity of the job if it has one. So the ranks need no communication, and no library for it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psutil

from autogen_team._process import identity, run_events
from autogen_team._services import worker_runs
from autogen_team._ship.signs import LAUNCH
from autogen_team.io.services import MlflowService

if TYPE_CHECKING:
    import mlflow

    from autogen_team._capture.shared_runs import Shared
    from autogen_team.context import GlobalContext

__all__ = ["run"]

_LAUNCH_TAG = "autogen_team.launch"
_PLACE_TAG = "autogen_team.launched_from"
_LAUNCHED_TAG = "autogen_team.launched"
"""Tag with the time when rank 0 opened or reopened the run, in seconds since 1970."""
_LAUNCH = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "MASTER_ADDR", "MASTER_PORT")
"""Variables that differ between launches, and are the same for all ranks of one. TORCHELASTIC_RESTART_COUNT is not
among them, because each agent of an elastic launch counts the restarts of its own workers."""
_LONGEST_PAUSE = 2.0

_report = logging.getLogger("autogen_team")


@contextmanager
def run(
    context: GlobalContext,
    run: str | MlflowService.RunConfig,
    *,
    nested: bool = False,
    timeout: float = 60.0,
    **fields: Any,
) -> Generator[mlflow.ActiveRun, None, None]:
    """Open a run for the block in rank 0, as `GlobalContext.run` does; in the other ranks, join that run.

    With `nested`, the other ranks have child runs of it, `rank 1` and so on. A failure of any rank causes an alert. A
    rank that has joined the run itself also records its failure there, in the tag
    `autogen_team.exception.rank_<rank>`. A rank that does not find the run within `timeout` seconds opens its own run,
    and reports this. With a `job`, restarted ranks continue the same run, or with `nested` their own child runs.
    Without `RANK`, or with a `WORLD_SIZE` of 1, this is `GlobalContext.run`.

    >>> from autogen_team import GlobalContext
    >>> from autogen_team.workers import ranks
    >>> with GlobalContext() as context, ranks.run(context, "train"):  # doctest: +SKIP
    ...     mlflow.log_metric("loss", 0.1)

    Raises:
        NotStartedError: the context is not running.

    """
    config = MlflowService.RunConfig(**{**({"name": run} if isinstance(run, str) else run.model_dump()), **fields})
    service, rank = context.mlflow_service, identity.rank()
    if rank is None:
        with service.run_context(config) as active:
            yield active
        return
    launch, job = _launch(), worker_runs.job_of(config)
    if rank == 0:
        own = {_LAUNCH_TAG: launch, _PLACE_TAG: worker_runs.place(service), _LAUNCHED_TAG: f"{time.time():.3f}"}
        update = {"tags": {**(config.tags or {}), **own}, "job": job or config.job}
        with worker_runs.launch_run(service, config.model_copy(update=update)) as active:
            yield active
        return
    shared = _wait_for(service, launch, job, timeout)
    if shared is None:
        text = "rank %d did not find the run of rank 0 within %g s, and opens its own run"
        _report.warning(text, rank, timeout)
        with service.run_context(config.model_copy(update={"job": None})) as active:
            yield active
        return
    child = None
    if nested:
        tags = {**(config.tags or {}), run_events.WORKER_TAG: identity.process_name()}
        update = {"name": f"rank {rank}", "tags": tags, "job": None}
        if job is not None:
            update |= {"job": f"{job}/rank {rank}", "parent_run_id": shared.run_id}
        child = config.model_copy(update=update)
    failure_tag = None if nested else f"{run_events.EXCEPTION_TAG}.rank_{rank}"
    with (
        worker_runs.contribute_log(service, shared),
        worker_runs.work_for(service, shared, child, failure_tag=failure_tag) as active,
        worker_runs.sample_node(shared, config),
    ):
        yield active


def _launch() -> str:
    """Return an identifier of this launch that the store can search for."""
    text = "\n".join(os.environ.get(name, "") for name in _LAUNCH)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _wait_for(service: MlflowService, launch: str, job: str | None, timeout: float) -> Shared | None:
    since = psutil.Process().create_time() - LAUNCH
    deadline, pause = time.monotonic() + timeout, 0.1
    while True:
        try:
            if job is not None:
                shared = worker_runs.find_shared_run(service, {run_events.JOB_TAG: job}, place_tag=_PLACE_TAG)
            else:
                launched = _LAUNCHED_TAG, since
                shared = worker_runs.find_shared_run(
                    service, {_LAUNCH_TAG: launch}, place_tag=_PLACE_TAG, launched=launched
                )
        except Exception as error:
            _report.warning("cannot search for the run of rank 0: %s", error)
            shared = None
        if shared is not None or time.monotonic() >= deadline:
            return shared
        wait = pause * random.uniform(0.75, 1.25)  # noqa: S311 - it is not a secret  # nosec B311
        time.sleep(min(wait, max(deadline - time.monotonic(), 0.0)))
        pause = min(2 * pause, _LONGEST_PAUSE)
