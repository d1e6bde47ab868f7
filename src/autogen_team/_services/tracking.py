"""MLflow tracking as a service."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autogen_team._process.folders import state_folder
from autogen_team._services.base import Service
from autogen_team._services.env import Env, default_of
from autogen_team._services.fields import Place, Seconds, Size, TraceMasking
from autogen_team._services.settings import Variable
from autogen_team._services.state import StateFolder
from autogen_team.errors import ConfigurationError, NotStartedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterator, Mapping
    from types import ModuleType

    import mlflow
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from autogen_team._capture.shared_runs import Shared
    from autogen_team._ship.recovery import Recovered
    from autogen_team._spool.index import Found
    from autogen_team._sync.copying import Outcome as Copied
    from autogen_team._sync.copying import Progress, Registered

__all__ = ["MlflowService"]


def lifecycle_of(service: MlflowService) -> ModuleType:
    """Return the module that opens and closes runs.

    Raises:
        NotStartedError: the service is not running.

    """
    if not service.is_started:
        raise NotStartedError("the MlflowService is not running: call start() first, or write `with service:`")
    from autogen_team._capture import lifecycle

    return lifecycle


class _CurrentEnv:
    """`MlflowService.env`: reads the variables at each access, not at import."""

    def __get__(self, instance: object, owner: type) -> Env:
        return Env()


class MlflowService(Service, StateFolder):
    """MLflow tracking and model registry: plain `mlflow.log_...` and autologging, in runs that record how they ended.

    >>> service = MlflowService(tracking_uri="sqlite:///docs.db", experiment_name="digits")
    >>> with service, service.run_context(MlflowService.RunConfig(name="train", tags={"fold": 1})) as run:
    ...     mlflow.log_metric("accuracy", 0.9)
    >>> service.client().get_run(run.info.run_id).info.status
    'FINISHED'
    """

    class RunConfig(BaseModel):
        """The name, description and other properties of a run."""

        model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

        name: str
        """Name of the run; need not be unique."""
        description: str | None = None
        """Description of the run, as Markdown."""
        tags: dict[str, Any] | None = None
        """Values that are not text are converted by `str`."""
        log_system_metrics: bool | None = True
        """Sample CPU, memory, disk and GPUs; None defers to MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING."""
        nested: bool = False
        """Open the run as a child of the run that is already open; if false, an open run is an error."""
        parent_run_id: str | None = None
        """Make the run a child of this one, which may belong to another process."""
        run_id: str | None = None
        """Continue this run instead of creating one; it gets the name."""
        job: str | None = None
        """The identity of the job; all its starts share one run. `auto` takes the name that the scheduler gives."""
        stale: Annotated[float, Field(gt=0)] = 300.0
        """Seconds without a heartbeat after which the process of a job on another machine counts as dead."""

        def __init__(self, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
                raise ConfigurationError(f"invalid RunConfig: {'; '.join(faults)}") from None

    __slots__ = ("_fast_log", "_stores", "_works_for")

    variable_prefix: ClassVar[str] = "AUTOGEN_TEAM_MLFLOW_"
    env: ClassVar[_CurrentEnv] = _CurrentEnv()
    """The MLFLOW_* variables as they are now."""

    tracking_uri: Annotated[Place, Variable("MLFLOW_TRACKING_URI")] = Field(
        default_factory=lambda: default_of("mlflow_tracking_uri")
    )
    """Tracking store: a server (`http://...`), a database (`sqlite:///...`) or a folder."""
    registry_uri: Annotated[Place, Variable("MLFLOW_REGISTRY_URI")] = Field(
        default_factory=lambda fields: fields.get("tracking_uri", "")
    )
    """Store of registered models; by default the tracking store."""
    experiment_name: Annotated[str, Variable("MLFLOW_EXPERIMENT_NAME")] = Field(
        default_factory=lambda: default_of("mlflow_experiment_name")
    )
    """Experiment of the runs; created if it does not exist. If it is not set, MLFLOW_EXPERIMENT_ID is used."""
    registry_name: Annotated[str, Variable("MLFLOW_REGISTERED_MODEL_NAME")] = Field(
        default_factory=lambda: default_of("mlflow_registered_model_name")
    )
    """Name under which `register` registers the job's model. No model is registered automatically."""
    autolog_disable: bool = False
    """Turn MLflow's autologging off."""
    autolog_disable_for_unsupported_versions: bool = False
    """Autolog only library versions that this MLflow was tested with."""
    autolog_exclusive: bool = False
    """Do not autolog to runs that the job opened itself."""
    autolog_log_input_examples: bool = False
    """Store some rows of the training data with each model."""
    autolog_log_model_signatures: bool = True
    """Store the types of inputs and outputs with each model."""
    autolog_log_models: bool = True
    """Store trained models as artifacts of the run."""
    autolog_log_datasets: bool = True
    """Record the datasets that a run was trained on."""
    autolog_silent: bool = False
    """Suppress the log lines and warnings of autologging."""
    connect_timeout: Seconds = 5.0
    """Seconds within which the server must answer at the start; MLflow itself would retry for four minutes."""
    mode: Literal["online", "auto", "offline"] = "online"
    """If the server is down at the start, `online` fails and `auto` works offline. `offline` never contacts it."""
    durable: bool = True
    """Log to a journal on disk, which is delivered in the background; if false, each call waits for the store."""
    flush_timeout: Seconds = 30.0
    """Seconds that `stop` and process exit wait for the delivery of the journal; the rest stays on disk."""
    heartbeat: Annotated[float, Field(ge=0, le=3600)] = 30.0
    """Seconds between heartbeats of a run, which show other machines that its job is alive; 0 turns them off."""
    replay: Literal["keep", "skip"] = "keep"
    """In a resumed run: `keep` metrics of steps that were logged before, or `skip` them; needs `durable`."""
    spool_limit: Size = 10_000_000_000
    """Bytes of files that may wait for upload in the state folder, such as `500 MB`; above this, a call waits."""
    mask_traces: TraceMasking = "secrets"
    """Mask `secrets` in traces, or omit all `content`: inputs, outputs and events; `off` masks nothing."""
    snapshot: bool = True
    """Store a snapshot as the artifacts `code/`: uncommitted changes, packages, command, machine."""

    def start(self) -> None:
        """Set the tracking and registry URIs, the experiment and autologging.

        Raises:
            TrackingUnavailableError: `mode` is `online`, and the server refuses the connection or does not answer
                within `connect_timeout` seconds.
            ConfigurationError: the experiment cannot be used, for example because it is deleted.

        """
        from autogen_team._capture import session

        with self._lock:
            if not self.is_started:
                works_for: Shared | None = getattr(self, "_works_for", None)
                object.__setattr__(self, "_works_for", None)
                started = session.start(self, works_for)
                self._on_stop(started.stop)
                object.__setattr__(self, "_stores", (started.tracking_uri, started.registry_uri))
                object.__setattr__(self, "_fast_log", started.log_metrics)

    def stop(self) -> None:
        """Deliver the journal within `flush_timeout` seconds, and restore MLflow."""
        object.__setattr__(self, "_fast_log", None)
        super().stop()

    @contextmanager
    def run_context(self, run_config: RunConfig) -> Generator[mlflow.ActiveRun, None, None]:
        """Open a run for the block, and close it with the status of the block.

        The status is FINISHED after a normal end or `sys.exit(0)`. It is KILLED after Ctrl-C, SIGTERM, SIGHUP or the
        cancellation of a task, and otherwise FAILED. Unless it is FINISHED, the tag `autogen_team.exception` has the
        reason. The exception itself passes through unchanged.

        While the service runs, SIGTERM and SIGHUP raise `SystemExit` with 128 plus their number in the main thread. If
        the job has installed a handler, this handler is called instead, and the exception that it raises ends the run.

        With a `job`, the run of an earlier start of the job is opened again, unless it has finished.

        Raises:
            NotStartedError: the service is not running, so the store of the run would be unknown.
            JobRunningError: another process holds the run of the job.
            ConfigurationError: `job` is not a valid name, or it is `auto` and no scheduler has named the job.

        """
        with lifecycle_of(self).open_run(**run_config.model_dump()) as run:
            yield run

    @property
    def attempt(self) -> int:
        """The attempt number of the open run's job, counted from 1; always 1 for a run without a `job`."""
        if not self.is_started:
            return 1
        from autogen_team._capture import attempts

        return attempts.attempt()

    def last_step(self, key: str | None = None) -> int | None:
        """Return the last step of a metric of the open run, or of any metric; None if there is none.

        A restarted job uses it to continue where it stopped. System metrics do not count. The call queries the store.

        >>> service = MlflowService(tracking_uri="sqlite:///steps.db")
        >>> with service, service.run_context(MlflowService.RunConfig(name="train", job="nightly")) as run:
        ...     for step in range((service.last_step("loss") or -1) + 1, 3):
        ...         mlflow.log_metric("loss", 1 / (step + 1), step)
        ...     service.last_step()
        2

        Raises:
            NotStartedError: the service is not running.
            MlflowException: the store cannot be queried.

        """
        lifecycle_of(self)
        from autogen_team._capture import attempts

        return attempts.last_step(key)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log to the active run as `mlflow.log_metrics` does, at a tenth of its cost, for hot loops.

        Values are checked by the same rules and written to the same journal. A thread without its own run logs to the
        run of the job. The default of `step` is 0.

        >>> service = MlflowService(tracking_uri="sqlite:///loop.db")
        >>> with service, service.run_context(MlflowService.RunConfig(name="loop")) as run:
        ...     for step in range(3):
        ...         service.log_metrics({"loss": 1 / (step + 1)}, step)
        >>> len(service.client().get_metric_history(run.info.run_id, "loss"))
        3

        Raises:
            NotStartedError: the service is not running, or no run is open.
            MlflowException: MLflow does not accept a value or a key; the others are still logged.

        """
        fast_log: Callable[[Mapping[str, float], int | None], None] | None = getattr(self, "_fast_log", None)
        if fast_log is None:
            raise NotStartedError("the MlflowService is not running: call start() first, or write `with service:`")
        fast_log(metrics, step)

    def log_config(self, config: object) -> None:
        """Log a configuration to the active run: flattened as parameters, and whole as the artifact `config.yaml`.

        It may be a mapping, a dataclass, a pydantic or attrs model, an `argparse.Namespace` or an OmegaConf config, and
        contain others of these. Names of nested fields are joined by dots. Names and values are cut to MLflow's limits
        of 250 and 6000 characters. Secrets are masked in both.

        >>> service = MlflowService(tracking_uri="sqlite:///config.db")
        >>> with service, service.run_context(MlflowService.RunConfig(name="config")) as run:
        ...     service.log_config({"model": {"layers": [64, 10]}, "lr": 0.1})
        >>> service.client().get_run(run.info.run_id).data.params["model.layers"]
        '[64, 10]'

        Raises:
            NotStartedError: the service is not running, or no run is open.
            ConfigurationError: `config` is not of one of these types.
            MlflowException: the run has a parameter of the same name with another value.

        """
        lifecycle_of(self)
        from autogen_team._capture import configs

        configs.log(config)

    def register(
        self, model_uri: str, *, alias: str | None = None, tags: Mapping[str, Any] | None = None
    ) -> ModelVersion:
        """Register a model as the next version of `registry_name`, once its files are uploaded; return the version.

        `model_uri` is the attribute of that name of the result of `log_model`. Tags that are not text are converted by
        `str`.

        >>> service = MlflowService(tracking_uri="sqlite:///models.db", registry_name="digits")
        >>> with service, service.run_context(MlflowService.RunConfig(name="train")):
        ...     model = mlflow.create_external_model(name="model")
        ...     version = service.register(f"models:/{model.model_id}", alias="champion", tags={"fold": 1})
        >>> service.client().get_model_version_by_alias("digits", "champion").tags
        {'fold': '1'}

        Raises:
            NotStartedError: the service is not running.
            ConfigurationError: `model_uri` does not name a model, or MLflow does not accept `alias`.
            TrackingUnavailableError: the files were not uploaded within `flush_timeout` seconds.
            MlflowException: the model does not exist, or the registry does not accept it.

        """
        lifecycle_of(self)
        from autogen_team._capture import registering

        return registering.register(model_uri, self.registry_name, alias=alias, tags=tags, flush=self.flush)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds until the store has everything logged so far, including files.

        The default is `flush_timeout`. The call does not wait for an unreachable store; the data stays in the journal.

        Returns:
            Whether the store has everything.

        """
        if not (self.is_started and self.durable):
            return True
        from autogen_team._capture import write_behind

        return write_behind.flush(self.flush_timeout if timeout is None else timeout)

    @property
    def active_run(self) -> mlflow.ActiveRun | None:
        """The innermost open run of this thread, whichever code opened it."""
        from autogen_team._capture import session

        return session.active_run()

    def link(self, experiment_id: str, run_id: str) -> str | None:
        """Return the URL of a run on the tracking server; None for a store without a server, or for an offline run."""
        from autogen_team._ship import ui_url

        return ui_url.of_run(self.stores()[0], experiment_id, run_id)

    def recover(self, hosts: Collection[str] = ()) -> Iterator[tuple[Found, Recovered]]:
        """Deliver the journals of this machine's dead processes, and close their runs as KILLED.

        Yields each journal with its result. The journal of a live process is never modified. `hosts` names other
        machines that share the state folder and no longer exist, such as pods.
        """
        from autogen_team._ship import recovery, uris

        stores = uris.absolute(self.tracking_uri), uris.absolute(self.registry_uri)
        yield from recovery.recover_all(*stores, state_folder(self.state_dir), others=True, hosts=hosts)

    def copy_from(
        self,
        source: str,
        *,
        dry_run: bool = False,
        delete: bool = False,
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> Iterator[Copied | Registered]:
        """Copy another store to this service's stores, everything once; yield the result of each run, then of the rest.

        `source` is an MLflow store: a SQLite database or a folder. Metrics are copied with their history. Parameters,
        tags, datasets, artifacts, models, traces, nesting and times are kept. Registered models and prompts go to the
        registry, and get new version numbers there. With `dry_run`, nothing is written. With `delete`, a run that was
        copied completely is deleted in the source. Copying begins when the first result is requested.

        Raises:
            ConfigurationError: the source does not exist, or is the store itself.
            TrackingUnavailableError: the store does not answer.

        """
        from autogen_team._ship import uris
        from autogen_team._sync import copying

        yield from copying.copy(
            source,
            uris.absolute(self.tracking_uri),
            registry=uris.absolute(self.registry_uri),
            dry_run=dry_run,
            delete=delete,
            timeout=self.connect_timeout,
            progress=progress,
        )

    def client(self) -> MlflowClient:
        """Return a client for this service's stores, even if the service is not running.

        The relative path of a SQLite file is resolved in the folder where the service was last started, otherwise in
        the current folder. After an offline start, the client is for the store of offline runs.
        """
        from autogen_team._ship import mlflow_backend

        return mlflow_backend.client(*self.stores())

    def stores(self) -> tuple[str, str]:
        """Return the tracking and the registry URI in use; after an offline start, the store of offline runs."""
        from autogen_team._ship import uris

        stores: tuple[str, str] | None = getattr(self, "_stores", None)
        return stores or (uris.absolute(self.tracking_uri), uris.absolute(self.registry_uri))
