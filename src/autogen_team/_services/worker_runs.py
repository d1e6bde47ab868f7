"""Internal operations on an MlflowService, for workers of a job and for code that opens runs itself."""

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

    A worker uses the stores in use here, and does not check them again. The path of a log file is made absolute; a
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
    """Return a copy of the service without the state folder, unless it was given as an argument.

    A folder from the environment or `.env` is only valid on this machine. An argument is meant for all machines.
    """
    is_argument = original.source("state_dir") == "argument"  # a copy has lost the source
    return service if is_argument else service.model_copy(update={"state_dir": None})


def on_this_machine(service: MlflowService) -> MlflowService:
    """Return the service for this machine; a missing state folder is taken from the environment of this machine."""
    if service.state_dir is not None:
        return service
    return service.model_copy(update={"state_dir": StateFolder().state_dir})


def begin_work(service: MlflowService, run: Shared) -> None:
    """Make the next `start` use the store and experiment of this run without contacting the server."""
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
        ConfigurationError: the name is not valid, or no scheduler has named the job.

    """
    from autogen_team._capture import attempts

    job = config.job or os.environ.get(attempts.VARIABLE)
    return attempts.named(job) if job and config.run_id is None and "MLFLOW_RUN_ID" not in os.environ else None


def find_shared_run(
    service: MlflowService, tags: Mapping[str, str], *, place_tag: str, launched: tuple[str, float] | None = None
) -> Shared | None:
    """Return the newest open run with these tags whose owner may be alive; None if there is none.

    Args:
        service: the running service.
        tags: the tags of the run.
        place_tag: the tag of the run that holds the `place` where it was opened.
        launched: the tag with the time when the run was opened, and the earliest accepted time, in seconds since 1970.

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
    """Open a run as `run_context` does, in a process that its launcher starts only after the previous one has ended.

    Raises:
        NotStartedError: the service is not running.

    """
    run: AbstractContextManager[mlflow.ActiveRun] = lifecycle_of(service).open_run(
        **config.model_dump(), is_launched=True
    )
    return run


def sample_node(shared: Shared, config: MlflowService.RunConfig) -> AbstractContextManager[None]:
    """Log system metrics of this machine to a shared run, if this is the first process of its node."""
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
    """Make this thread log to a run that another process has open, or to a child of that run, for the block.

    The run stays open; the child is closed as by `run_context`. With `failure_tag`, a failure is reported by an alert,
    and by a tag of this name on the run.

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
    """Add the lines that this process logs inside the block to the log of a run that another process has open."""
    from autogen_team._capture import shared_runs

    return shared_runs.contribute_log(run, state_folder(service.state_dir))


@contextmanager
def host_run(service: MlflowService, config: MlflowService.RunConfig) -> Generator[mlflow.ActiveRun, None, None]:
    """Open a run as `run_context` does, for code that may open runs itself.

    The first run of that code joins this run; later ones become its children.

    Raises:
        NotStartedError: the service is not running.

    """
    with lifecycle_of(service).host_run(**config.model_dump()) as run:
        yield run
