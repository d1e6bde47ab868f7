"""What the inside does with an MlflowService for workers of a job, and for code that opens runs itself."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from autogen_team._process import identity
from autogen_team._process.folders import state_folder
from autogen_team._services.base import Service
from autogen_team._services.logger import LoggerService
from autogen_team._services.state import StateFolder
from autogen_team._services.tracking import MlflowService, lifecycle_of

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    import mlflow
    from mlflow.entities import Run

    from autogen_team._capture.shared_runs import Shared

_AnyService = TypeVar("_AnyService", bound=Service)


def for_worker(service: _AnyService) -> _AnyService:
    """Return the service in the form that a worker of this job starts.

    A worker need not check the stores again, which are those in use here. The sink of a log is an absolute path, and a
    worker writes to its own file beside it.
    """
    update: dict[str, object] = {}
    if isinstance(service, MlflowService):
        tracking_uri, registry_uri = service.stores()
        update = {"tracking_uri": tracking_uri, "registry_uri": registry_uri, "mode": "online"}
    elif isinstance(service, LoggerService) and service.sink.strip().lower() not in ("stderr", "stdout"):
        update = {"sink": str(Path(service.sink).expanduser().absolute())}
    return service.model_copy(update=update)


def for_any_machine(service: MlflowService, *, original: MlflowService) -> MlflowService:
    """Return a copy of the service without a state folder that the environment or `.env` of this machine names.

    Another machine has its own. A folder given as an argument stays: it is meant for all of them.
    """
    is_argument = original.source("state_dir") == "argument"  # which a copy does not know any more
    return service if is_argument else service.model_copy(update={"state_dir": None})


def on_this_machine(service: MlflowService) -> MlflowService:
    """Return the service as this machine starts it: without a state folder, with that of its own environment."""
    if service.state_dir is not None:
        return service
    return service.model_copy(update={"state_dir": StateFolder().state_dir})


def begin_work(service: MlflowService, run: Shared) -> None:
    """Make the next `start` use the store and experiment of this run without asking the server for them."""
    object.__setattr__(service, "_works_for", run)


def shared_run(service: MlflowService) -> Shared | None:
    """Return the open run of the caller, in the form that workers need to join it; None if there is none.

    Raises:
        NotStartedError: the service is not running.

    """
    lifecycle_of(service)
    from autogen_team._capture import shared_runs

    return shared_runs.shared_run(service.stores()[0], state_folder(service.state_dir))


def job_of(config: MlflowService.RunConfig) -> str | None:
    """Return the identity that a run with this configuration has in all processes of the job; None without one.

    Raises:
        ConfigurationError: the name is not one, or no scheduler has named the job.

    """
    from autogen_team._capture import attempts

    job = config.job or os.environ.get(attempts.VARIABLE)
    return attempts.named(job) if job and config.run_id is None and "MLFLOW_RUN_ID" not in os.environ else None


def find_shared_run(
    service: MlflowService, tags: Mapping[str, str], *, place_tag: str, launched: tuple[str, float] | None = None
) -> Shared | None:
    """Return the newest open run with these tags; None if there is none whose owner may live.

    Args:
        service: the service that runs here.
        tags: the tags of the run.
        place_tag: the tag of the run that holds the `place` where it was opened.
        launched: the tag with the time when it was opened, and the earliest time that counts, in seconds since 1970.

    Raises:
        NotStartedError: the service is not running.
        Exception: any error of the store.

    """
    lifecycle_of(service)
    from autogen_team._capture import claims, shared_runs

    def is_meant(run: Run) -> bool:
        if launched is None:
            return claims.may_live(run)
        tag, since = launched
        return float(run.data.tags.get(tag, 0)) >= since

    return shared_runs.find(tags, place_tag, is_meant)


def launch_run(service: MlflowService, config: MlflowService.RunConfig) -> AbstractContextManager[mlflow.ActiveRun]:
    """Open a run as `run_context` does, in a process whose launcher starts no second one before the first has ended.

    Raises:
        NotStartedError: the service is not running.

    """
    run: AbstractContextManager[mlflow.ActiveRun] = lifecycle_of(service).open_run(
        **config.model_dump(), is_launched=True
    )
    return run


def sample_node(shared: Shared, config: MlflowService.RunConfig) -> AbstractContextManager[None]:
    """Log system metrics of this machine to the run of another one, if this is the first process of its node."""
    from autogen_team._capture import system_metrics

    is_wanted = config.log_system_metrics if identity.leads_node() else False
    return system_metrics.sampling(shared.run_id, is_wanted=is_wanted)


def place(service: MlflowService) -> str:
    """Return `host:state_dir`; processes with equal values share the logs of runs."""
    from autogen_team._capture import shared_runs

    return shared_runs.place(state_folder(service.state_dir))


@contextmanager
def work_for(
    service: MlflowService, run: Shared, child: MlflowService.RunConfig | None = None, *, failure_tag: str | None = None
) -> Generator[mlflow.ActiveRun, None, None]:
    """Make this thread log to a run that another process has open, or to a child of it for the block.

    The run stays open; the child is closed as `run_context` closes one. With `failure_tag`, a failure is reported by an
    alert, and by a tag of this name on the run that stays open.

    Raises:
        NotStartedError: the service is not running.

    """
    lifecycle = lifecycle_of(service)
    from autogen_team._capture import shared_runs

    with shared_runs.work_for(run, failure_tag) as active:
        if child is None:
            yield active
        else:
            with lifecycle.open_run(**child.model_dump(), is_launched=child.job is not None) as opened:
                yield opened


def contribute_log(service: MlflowService, run: Shared) -> AbstractContextManager[None]:
    """Add what this process logs inside the block to the log of a run that another process has open."""
    from autogen_team._capture import shared_runs

    return shared_runs.contribute_log(run, state_folder(service.state_dir))


@contextmanager
def host_run(service: MlflowService, config: MlflowService.RunConfig) -> Generator[mlflow.ActiveRun, None, None]:
    """Open a run as `run_context` does, for code that may open runs itself: its first run joins this one.

    Runs that the code opens later become children of this one.

    Raises:
        NotStartedError: the service is not running.

    """
    with lifecycle_of(service).host_run(**config.model_dump()) as run:
        yield run
