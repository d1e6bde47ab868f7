"""Expectations of type checkers for the public names; `make types` checks this file, and nothing runs it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Literal, assert_type

import loguru
import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient
from pydantic import SecretStr

import autogen_team
from autogen_team import AlertsService, Env, GlobalContext, LoggerService, MlflowService, Service, errors, testing
from autogen_team.context import GlobalContext as ContextOfItsModule
from autogen_team.io import osvariables, services


def the_names_of_the_package_are_those_of_their_modules() -> None:
    """Assert that lazily imported names are typed."""
    assert_type(autogen_team.__version__, str)
    assert_type(autogen_team.GlobalContext, type[ContextOfItsModule])
    assert_type(autogen_team.Env, type[osvariables.Env])
    assert_type(autogen_team.Service, type[services.Service])
    assert_type(autogen_team.LoggerService, type[services.LoggerService])
    assert_type(autogen_team.AlertsService, type[services.AlertsService])
    assert_type(autogen_team.MlflowService, type[services.MlflowService])


def a_context_is_made_of_three_services() -> None:
    """Assert that a context consists of three services, and is a service itself."""
    with GlobalContext() as context:
        assert_type(context, GlobalContext)
        service: Service = context
        assert_type(service.is_started, bool)
        assert_type(context.logger_service, LoggerService)
        assert_type(context.alerts_service, AlertsService)
        assert_type(context.mlflow_service, MlflowService)
        assert_type(context.alert_on, Literal["failure", "always", "never"])
        assert_type(context.logger, loguru.Logger)
        assert_type(context.active_run, mlflow.ActiveRun | None)
        assert_type(GlobalContext.current(), GlobalContext)
        context.notify("done", "model trained")
        context.notify("done", "model trained", level="success")
        context.log_metrics({"loss": 0.1}, step=3)
        context.log_metrics({"epochs": 3})
        context.log_config({"lr": 0.1})


def a_run_of_the_context_is_mlflows() -> None:
    """Assert that a run is named by a text or a configuration, with further fields."""
    context = GlobalContext()
    with context.run("train", tags={"fold": 1}) as run:
        assert_type(run, mlflow.ActiveRun)
    with context.run(MlflowService.RunConfig(name="train"), nested=True, host=True) as run:
        assert_type(run, mlflow.ActiveRun)


def fold(number: int, *, scale: float = 1.0) -> str:
    """Stand for any function of a job."""
    return f"{number}{scale}"


def a_bound_function_has_the_signature_of_the_function() -> None:
    """Assert that a wrong argument is reported where it is passed."""
    context = GlobalContext()
    bound = context.bind(fold)
    assert_type(bound(3, scale=2.0), str)
    takes_a_function: Callable[[int], str] = context.bind(fold, nested=True)
    assert_type(takes_a_function(1), str)
    assert_type(context.bind(len, nested="count")("abc"), int)
    assert_type(context.bind(fold, nested=MlflowService.RunConfig(name="fold"))(1), str)
    bound("three")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def workers_are_told_by_an_initializer_or_by_variables() -> None:
    """Assert the types that the standard library expects."""
    context = GlobalContext()
    assert_type(context.initializer(), Callable[[], None])
    assert_type(context.initializer(nested="worker"), Callable[[], None])
    assert_type(context.worker_env(), dict[str, str])
    ProcessPoolExecutor(initializer=context.initializer()).shutdown()


def a_logger_service_gives_the_logger_of_loguru() -> None:
    """Assert that the fields have plain types."""
    service = LoggerService(sink="stdout", level="DEBUG")
    assert_type(service.logger(), loguru.Logger)
    assert_type((service.sink, service.level, service.format), tuple[str, str, str])
    assert_type(service.colorize, bool)
    assert_type(service.rotation, str | int | None)
    assert_type(service.start(), None)
    assert_type(service.stop(), None)
    with service as started:
        assert_type(started, LoggerService)


def an_alerts_service_takes_four_levels() -> None:
    """Assert that an unknown level is reported."""
    service = AlertsService(enable=False)
    assert_type(service.notify("done", "model trained"), None)
    assert_type(service.enable, bool)
    assert_type(service.app_name, str)
    assert_type(service.timeout, int | None)
    assert_type(service.urls, tuple[SecretStr, ...])
    assert_type(service.flush_timeout, float)
    service.notify("done", "model trained", level="fatal")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def an_mlflow_service_gives_a_client_and_runs() -> None:
    """Assert that client and runs are MLflow's own."""
    service = MlflowService(tracking_uri="sqlite:///mlflow.db")
    assert_type(service.client(), MlflowClient)
    assert_type(service.tracking_uri, str)
    assert_type(service.registry_uri, str)
    assert_type(service.experiment_name, str)
    assert_type(service.registry_name, str)
    assert_type(service.autolog_disable, bool)
    assert_type(service.mode, Literal["online", "auto", "offline"])
    assert_type(service.log_metrics({"loss": 0.1}, 1), None)
    assert_type(service.flush(), bool)
    assert_type(service.register("models:/m-1", alias="champion", tags={"fold": 1}), ModelVersion)
    assert_type(service.active_run, mlflow.ActiveRun | None)
    assert_type(service.link("1", "2"), str | None)
    with service.run_context(MlflowService.RunConfig(name="train")) as run:
        assert_type(run, mlflow.ActiveRun)
    with service.run_context(run_config=MlflowService.RunConfig(name="train")) as run:
        assert_type(run, mlflow.ActiveRun)


def a_run_is_configured_by_plain_values() -> None:
    """Assert that fields have the types of the user story."""
    config = MlflowService.RunConfig(name="train", description="a baseline", tags={"fold": 1})
    assert_type(config.name, str)
    assert_type(config.description, str | None)
    assert_type(config.tags, dict[str, Any] | None)
    assert_type(config.log_system_metrics, bool | None)
    assert_type(config.nested, bool)
    assert_type(config.parent_run_id, str | None)
    assert_type(config.run_id, str | None)


def the_variables_of_mlflow_are_texts() -> None:
    """Assert that variables of the user's `Env` and of the service's are texts."""
    assert_type(Env().mlflow_tracking_uri, str)
    assert_type(MlflowService.env, Env)
    assert_type(MlflowService.env.mlflow_registry_uri, str)
    assert_type(MlflowService.env.mlflow_experiment_name, str)
    assert_type(MlflowService.env.mlflow_registered_model_name, str)


class OwnService(Service):
    """A user's own service, added as a fourth one."""

    path: str = "cache"

    def start(self) -> None:
        """Start the service."""


def a_service_of_ones_own_is_a_service() -> None:
    """Assert that a user's service has the context manager and settings of every other."""
    with OwnService(path="x") as service:
        assert_type(service, OwnService)
        assert_type(service.path, str)


def each_error_is_also_the_builtin_that_one_would_catch() -> None:
    """Assert that errors can be caught by code that does not know our package."""
    configuration: ValueError = errors.ConfigurationError("no")
    missing: ImportError = errors.MissingExtraError("no")
    not_started: RuntimeError = errors.NotStartedError("no")
    unavailable: ConnectionError = errors.TrackingUnavailableError("no")
    warning: UserWarning = errors.ConfigurationWarning("no")
    ours: list[errors.AutogenTeamError] = [
        errors.ConfigurationError("no"),
        errors.MissingExtraError("no"),
        errors.NotStartedError("no"),
        errors.TrackingUnavailableError("no"),
    ]
    base: errors.AutogenTeamWarning = errors.ConfigurationWarning("no")
    raise ExceptionGroup("all", [configuration, missing, not_started, unavailable, warning, *ours, base])


def lines_and_alerts_are_captured_as_values() -> None:
    """Assert the types for tests of users."""
    with testing.capture_logs("INFO") as lines:
        assert_type(lines, list[testing.Line])
        assert_type((lines[0].level, lines[0].message, lines[0].line), tuple[str, str, int])
        assert_type(lines[0].exception, BaseException | None)
    with testing.capture_alerts(AlertsService(), fail_with="no desktop") as alerts:
        assert_type(alerts, list[testing.Alert])
        assert_type((alerts[0].title, alerts[0].message), tuple[str, str])
    assert_type(testing.RecordingChannel().alerts, list[testing.Alert])
