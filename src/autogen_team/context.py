"""The global context of a job: its three services, started and stopped as one."""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, ParamSpec, TypeVar

from pydantic import Field

from autogen_team import _propagation
from autogen_team._process import activity, durations, grace, identity, on_demand
from autogen_team._process.folders import state_folder
from autogen_team._process.forking import ForkSafeLock, call_in_child
from autogen_team._services import worker_runs
from autogen_team._services.fields import Duration, Patterns, Seconds
from autogen_team._services.settings import Setting
from autogen_team.errors import ConfigurationError, NotStartedError
from autogen_team.io.services import AlertsService, LoggerService, MlflowService, Service

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from types import TracebackType

    import loguru
    import mlflow

__all__ = ["GlobalContext"]

_SHORTEST_SECRET = 4
"""Minimum length of a value that `redact` accepts, in characters."""
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

_report = logging.getLogger("autogen_team")
_lock = ForkSafeLock()
_running: list[GlobalContext] = []
_reporting: list[GlobalContext] = []
"""The context that sends alerts when a run ends, if there is one."""
_inherited: list[GlobalContext] = []
"""Contexts that a forked child has inherited from its parent."""


def _note_inherited() -> None:
    _inherited[:] = _running


call_in_child(_note_inherited)


def _leave_inherited_logs() -> None:
    """Stop writing to the log destinations of the parent of this forked worker."""
    for context in _inherited:
        context.logger_service.stop()
    _inherited.clear()


def _child(nested: bool | str | MlflowService.RunConfig, name: str) -> MlflowService.RunConfig | None:
    if isinstance(nested, MlflowService.RunConfig):
        return nested
    if not nested:
        return None
    # The job's run already samples the system metrics of the machine; every child would record the same values.
    return MlflowService.RunConfig(name=nested if isinstance(nested, str) else name, log_system_metrics=None)


class GlobalContext(Service):
    """Logging, alerts and MLflow tracking that start together, work together and stop together.

    >>> with GlobalContext() as context:
    ...     with context.run("train") as run:
    ...         mlflow.log_metric("loss", 0.1)
    >>> context.mlflow_service.client().get_run(run.info.run_id).info.status
    'FINISHED'
    """

    variable_prefix: ClassVar[str] = "AUTOGEN_TEAM_"
    argument_only: ClassVar[frozenset[str]] = frozenset({"logger_service", "alerts_service", "mlflow_service"})

    logger_service: LoggerService = Field(default_factory=LoggerService)
    """The logging service."""
    alerts_service: AlertsService = Field(default_factory=AlertsService)
    """The alerts service."""
    mlflow_service: MlflowService = Field(default_factory=MlflowService)
    """The tracking service."""

    alert_on: Literal["failure", "always", "never"] = "failure"
    """When to alert about the end of a run, with reason, link and traceback: `failure`, `always` or `never`."""

    grace: Seconds | None = None
    """Seconds that the whole shutdown may take after SIGTERM or SIGHUP; the agent delivers the rest."""

    stall_after: Duration | None = None
    """How long the job may be silent (`15m`): no metric, log line, output, `progress`. Then an alert has its stacks."""

    stall_kill: bool = False
    """End a job that stays silent for a second `stall_after`, as KILLED with that reason."""

    redact_patterns: Patterns = ()
    """Regular expressions for your own secrets, one per line in a variable; if one has a group, only that is masked."""
    redact_allow: Patterns = ()
    """Regular expressions for text to leave unmasked; each must match the whole text that would be masked."""

    @classmethod
    def current(cls) -> GlobalContext:
        """Return the running context of this process; if several run, the one started last.

        Raises:
            NotStartedError: no context is running.

        """
        if not _running:
            on_demand.asked()
        with _lock:
            if not _running:
                raise NotStartedError("no GlobalContext is running: write `with GlobalContext() as context:`")
            return _running[-1]

    def start(self) -> None:
        """Start logging, alerts and tracking, in this order; if one fails, stop the ones already started."""
        with _lock, ExitStack() as undo:
            if self.is_started:
                return
            if self.grace is not None:
                undo.callback(grace.allow(self.grace))
            if self.stall_after is not None:
                from autogen_team._services import stalls

                state = state_folder(self.mlflow_service.state_dir)
                undo.callback(stalls.watch(self.alerts_service, state, self.stall_after, kills=self.stall_kill))
            if self.redact_patterns or self.redact_allow:
                from autogen_team import _redact

                undo.callback(_redact.configured(self.redact_patterns, self.redact_allow))
            run = _propagation.run_of_environment(self.mlflow_service)
            if identity.worker() is None and (run is not None or identity.rank()):  # rank 0 is the job itself
                identity.become_worker()
                undo.callback(identity.forget_worker)
            if run is not None:
                worker_runs.begin_work(self.mlflow_service, run)
            if identity.worker() is not None:
                _leave_inherited_logs()
            for service in (self.logger_service, self.alerts_service, self.mlflow_service):
                if not service.is_started:  # the job stops a service that it has started itself
                    service.start()
                    undo.callback(service.stop)
            if self.alert_on != "never" and not _reporting:  # else the outer context already reports every run
                _reporting.append(self)
                undo.callback(_reporting.clear)
                undo.callback(self.alerts_service.report_runs(self.alert_on))
            if run is not None:
                undo.enter_context(worker_runs.contribute_log(self.mlflow_service, run))
                undo.enter_context(worker_runs.work_for(self.mlflow_service, run))
            _running.append(self)
            undo.callback(self._forget)
            self._on_stop(undo.pop_all().close)

    def settings(self) -> list[Setting]:
        """Return every setting of the context and its services."""
        return super().settings() + [
            replace(setting, name=f"{name}.{setting.name}")
            for name in self.service_classes()
            for setting in getattr(self, f"{name}_service").settings()
        ]

    @classmethod
    def service_classes(cls) -> dict[str, type[Service]]:
        """Return the classes of the services by their short names: `logger`, `alerts`, `mlflow`."""
        annotations = {name.removesuffix("_service"): field.annotation for name, field in cls.model_fields.items()}
        return {
            name: annotation
            for name, annotation in annotations.items()
            if isinstance(annotation, type) and issubclass(annotation, Service)
        }

    def environment(self) -> dict[str, str]:
        """Return the variables of the context and its services; see `Settings.environment`."""
        found = super().environment()
        for name in self.argument_only:
            found |= getattr(self, name).environment()
        return found

    def bind(
        self, fn: Callable[_Parameters, _Result], *, nested: bool | str | MlflowService.RunConfig = False
    ) -> Callable[_Parameters, _Result]:
        """Return a function that calls `fn` inside this context, in a thread or in any worker process.

        In another process, the first call starts the services with the same settings. They stop when that process
        exits. There, `mlflow.log_...` logs to the run that is open here now, through a journal of that process. With
        `nested`, each call gets a child run, named after the function unless `nested` is a name or a configuration.
        Autologging works in child runs, not in a run that many processes share.

        Each process writes its own log file, `train-<host>-<pid>.log` beside `train.log`; its lines carry the same
        `run_id`, and `worker`. Alerts are sent for failures only. A call returns when the store has everything that
        the call logged, unless the store is unreachable.

        The result can be pickled if `fn` can. Coroutine functions and generators are inside the context while they
        run.

        >>> from concurrent.futures import ThreadPoolExecutor
        >>> def fold(number):
        ...     mlflow.log_metric("accuracy", 0.9, step=number)
        >>> with GlobalContext() as context, context.run("train") as run, ThreadPoolExecutor() as pool:
        ...     _ = list(pool.map(context.bind(fold), range(3)))
        >>> len(context.mlflow_service.client().get_metric_history(run.info.run_id, "accuracy"))
        3

        Raises:
            NotStartedError: the context is not running.

        """
        name: str = getattr(
            getattr(fn, "func", fn), "__name__", type(fn).__name__
        )  # for a partial, the name of its function
        return _propagation.Bound(self, fn, _child(nested, name))

    def initializer(self, *, nested: bool | str | MlflowService.RunConfig = False) -> Callable[[], None]:
        """Return an initializer for a pool, which puts a worker process inside this context until the process exits.

        `bind` has the details; with `nested`, each process has one child run. Call this method while the run for the
        workers is open.

        >>> from concurrent.futures import ProcessPoolExecutor
        >>> from math import sqrt
        >>> with GlobalContext() as context, context.run("train"):
        ...     with ProcessPoolExecutor(2, initializer=context.initializer()) as pool:
        ...         list(pool.map(sqrt, [1.0, 4.0]))
        [1.0, 2.0]

        Raises:
            NotStartedError: the context is not running.

        """
        return _propagation.Initializer(self, _child(nested, ""))

    def worker_env(self) -> dict[str, str]:
        """Return environment variables that put a child process inside this context.

        A `GlobalContext` started there has the same settings, and joins the run that is open here now, as described at
        `bind`. Runs that it opens become children. So do the runs of a program that only knows MLflow. Secrets are
        omitted, such as the URLs of alerts given as an argument. The password in a tracking URI is not omitted.

        >>> import os, subprocess
        >>> with GlobalContext() as context, context.run("train"):
        ...     environment = {**os.environ, **context.worker_env()}
        ...     done = subprocess.run(["true"], env=environment)

        Raises:
            NotStartedError: the context is not running.

        """
        return _propagation.environment(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.logger_service.log_failure(error)
        super().__exit__(kind, error, traceback)

    def _forget(self) -> None:
        # by identity: contexts with the same fields are equal
        _running[:] = [context for context in _running if context is not self]

    @property
    def logger(self) -> loguru.Logger:
        """Loguru's logger."""
        return self.logger_service.logger()

    @property
    def active_run(self) -> mlflow.ActiveRun | None:
        """The innermost open run of this thread, whichever code opened it."""
        return self.mlflow_service.active_run

    @contextmanager
    def run(
        self, run: str | MlflowService.RunConfig, *, host: bool = False, **fields: Any
    ) -> Generator[mlflow.ActiveRun, None, None]:
        """Open a run for the block.

        The run is closed as described at `MlflowService.run_context`.

        Args:
            run: the configuration of the run, or its name.
            host: whether the first run that the code inside opens joins this one, and later ones become its children.
            **fields: other fields of the configuration.

        """
        given = {"name": run} if isinstance(run, str) else run.model_dump()
        config = MlflowService.RunConfig(**{**given, **fields})
        service = self.mlflow_service
        with worker_runs.host_run(service, config) if host else service.run_context(config) as active:
            yield active

    @property
    def attempt(self) -> int:
        """The attempt number of the open run's job, counted from 1; see `MlflowService.attempt`."""
        return self.mlflow_service.attempt

    def last_step(self, key: str | None = None) -> int | None:
        """Return the last step of a metric of the open run, or of any metric; see `MlflowService.last_step`."""
        return self.mlflow_service.last_step(key)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log to the active run in a hot loop; see `MlflowService.log_metrics`."""
        self.mlflow_service.log_metrics(metrics, step)

    def log_config(self, config: object) -> None:
        """Log a configuration to the active run, as parameters and as `config.yaml`; see `MlflowService.log_config`."""
        self.mlflow_service.log_config(config)

    def progress(self, *, expect_within: float | str | None = None) -> None:
        """Report progress in code that neither logs nor prints, so that the job does not count as silent.

        With `expect_within`, in seconds or as `"40m"`, announce that the job may be silent for that long. The next call
        withdraws the announcement. Without `stall_after`, the method does nothing. It takes no lock and less than a
        microsecond.

        >>> with GlobalContext(stall_after="15m") as context:
        ...     context.progress(expect_within="40m")

        Raises:
            ConfigurationError: `expect_within` is not a duration.

        """
        if isinstance(expect_within, str):
            try:
                expect_within = durations.seconds(expect_within)
            except ValueError as error:
                raise ConfigurationError(f"expect_within: {error}") from None
        activity.progress(expect_within)

    def redact(self, *secrets: str) -> None:
        """Mask these values in everything that is logged after this call; for secrets from a vault, for example.

        They are masked in log lines, alerts, parameters, tags, traces and errors of this process and of its forked
        children. They are also masked in the output that `autogen-team run` keeps. They stay masked after the context
        has stopped. Other processes, such as spawned workers, must call this themselves.

        >>> with GlobalContext() as context:
        ...     context.redact("correct-horse")

        Raises:
            ConfigurationError: a value is shorter than four characters, so masking it would spoil ordinary text.

        """
        from autogen_team import _redact

        for secret in secrets:
            if len(secret) < _SHORTEST_SECRET:
                raise ConfigurationError(
                    f"a secret of {len(secret)} characters is too short: masking it would spoil ordinary text; "
                    f"the minimum is {_SHORTEST_SECRET} characters"
                )
        _redact.add_secrets(*secrets)

    def notify(
        self, title: str, message: str, *, level: Literal["info", "success", "warning", "error"] = "info"
    ) -> None:
        """Send an alert; see `AlertsService.notify`."""
        self.alerts_service.notify(title, message, level=level)
