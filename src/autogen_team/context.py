"""The global context of a job: its three services as one."""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from autogen_team.errors import NotStartedError
from autogen_team.io._settings import Setting, state_dir_setting
from autogen_team.io.services import AlertsService, LoggerService, MlflowService, Service

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from types import TracebackType

    import loguru
    import mlflow

__all__ = ["GlobalContext"]

_report = logging.getLogger("autogen_team")
_lock = threading.RLock()
_running: list[GlobalContext] = []
_reporting: list[GlobalContext] = []
"""The one that alerts when a run ends, if any does."""


class GlobalContext(Service):
    """Logging, alerts and MLflow tracking that start together, know of each other and stop together.

    >>> with GlobalContext() as context:
    ...     with context.run("train") as run:
    ...         mlflow.log_metric("loss", 0.1)
    >>> context.mlflow_service.client().get_run(run.info.run_id).info.status
    'FINISHED'
    """

    variable_prefix: ClassVar[str] = "AUTOGEN_TEAM_"
    argument_only: ClassVar[frozenset[str]] = frozenset({"logger_service", "alerts_service", "mlflow_service"})

    logger_service: LoggerService = Field(default_factory=LoggerService)
    """Where log lines go, and how they look."""
    alerts_service: AlertsService = Field(default_factory=AlertsService)
    """Whom to notify, and how."""
    mlflow_service: MlflowService = Field(default_factory=MlflowService)
    """Where runs and models are kept, and what is logged by itself."""

    alert_on: Literal["failure", "always", "never"] = "failure"
    """Which ends of a run are alerted: with its reason, duration, host, link and the end of the traceback."""

    @classmethod
    def current(cls) -> GlobalContext:
        """Return the context that runs in this process, the latest started if there are several.

        Raises:
            NotStartedError: none does.

        """
        with _lock:
            if not _running:
                raise NotStartedError("no GlobalContext runs in this process: write `with GlobalContext() as context:`")
            return _running[-1]

    def start(self) -> None:
        """Start logging, alerts and tracking, in this order; if one cannot, those before it are stopped again."""
        with _lock, ExitStack() as undo:
            if self.is_started:
                return
            for service in (self.logger_service, self.alerts_service, self.mlflow_service):
                if not service.is_started:  # one that the job has started itself is the job's to stop
                    service.start()
                    undo.callback(service.stop)
            if self.alert_on != "never" and not _reporting:  # else the outer context tells of every run already
                _reporting.append(self)
                undo.callback(_reporting.clear)
                undo.callback(self.alerts_service.report_runs(self.alert_on))
            _running.append(self)
            undo.callback(self._forget)
            self._on_stop(undo.pop_all().close)

    def settings(self) -> list[Setting]:
        """Return every setting of the context and its services."""
        own = [*super().settings(), state_dir_setting()]
        return own + [
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
        """The innermost open run of this thread, by whomever it was opened."""
        return self.mlflow_service.active_run

    @contextmanager
    def run(
        self, run: str | MlflowService.RunConfig, *, host: bool = False, **fields: Any
    ) -> Generator[mlflow.ActiveRun, None, None]:
        """Open a run for the block; `run` is its configuration, or its name with the other fields beside it.

        How it is closed is described at `MlflowService.run_context`; with `host`, a run that the code inside opens
        joins it, as described at `MlflowService.host_context`.
        """
        given = {"name": run} if isinstance(run, str) else run.model_dump()
        config = MlflowService.RunConfig(**{**given, **fields})
        service = self.mlflow_service
        with service.host_context(config) if host else service.run_context(config) as active:
            yield active

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log to the active run in a hot loop; see `MlflowService.log_metrics`."""
        self.mlflow_service.log_metrics(metrics, step)

    def notify(
        self, title: str, message: str, *, level: Literal["info", "success", "warning", "error"] = "info"
    ) -> None:
        """Send an alert; see `AlertsService.notify`."""
        self.alerts_service.notify(title, message, level=level)
