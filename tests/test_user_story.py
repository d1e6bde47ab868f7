"""The names and defaults of the user story, which must not change.

They are written out here, because a test that reads them from the code would change with it.
"""

from __future__ import annotations

import abc
import inspect
from contextlib import AbstractContextManager
from typing import Any

import mlflow
import pytest
from loguru import logger
from pydantic import ValidationError

from autogen_team.errors import ConfigurationError
from autogen_team.io import osvariables, services
from autogen_team.io.osvariables import Env
from autogen_team.io.services import AlertsService, LoggerService, MlflowService, Service

LINE = (
    "<green>{time:YYYY-MM-DD HH:mm:ss.SSS}</green> | <level>{level: <8}</level> | "
    "<cyan>{name}</cyan>:<cyan>{function}</cyan>:<cyan>{line}</cyan> - <level>{message}</level>"
)
# class, field, default, variable, text of the variable, resulting value
FIELDS = [
    (LoggerService, "sink", "stderr", "AUTOGEN_TEAM_LOGGER_SINK", "stdout", "stdout"),
    (LoggerService, "level", "INFO", "AUTOGEN_TEAM_LOGGER_LEVEL", "DEBUG", "DEBUG"),
    (LoggerService, "format", LINE, "AUTOGEN_TEAM_LOGGER_FORMAT", "{message}", "{message}"),
    (LoggerService, "colorize", True, "AUTOGEN_TEAM_LOGGER_COLORIZE", "false", False),
    (LoggerService, "serialize", False, "AUTOGEN_TEAM_LOGGER_SERIALIZE", "true", True),
    (LoggerService, "backtrace", True, "AUTOGEN_TEAM_LOGGER_BACKTRACE", "false", False),
    (LoggerService, "diagnose", False, "AUTOGEN_TEAM_LOGGER_DIAGNOSE", "true", True),
    (LoggerService, "catch", True, "AUTOGEN_TEAM_LOGGER_CATCH", "false", False),
    (AlertsService, "enable", True, "AUTOGEN_TEAM_ALERTS_ENABLE", "false", False),
    (AlertsService, "app_name", "autogen_team", "AUTOGEN_TEAM_ALERTS_APP_NAME", "train", "train"),
    (AlertsService, "timeout", None, "AUTOGEN_TEAM_ALERTS_TIMEOUT", "5", 5),
    (MlflowService, "tracking_uri", "sqlite:///mlflow.db", "MLFLOW_TRACKING_URI", "http://t", "http://t"),
    (MlflowService, "registry_uri", "sqlite:///mlflow.db", "MLFLOW_REGISTRY_URI", "http://r", "http://r"),
    (MlflowService, "experiment_name", "autogen_team", "MLFLOW_EXPERIMENT_NAME", "digits", "digits"),
    (MlflowService, "registry_name", "autogen_team", "MLFLOW_REGISTERED_MODEL_NAME", "digits", "digits"),
    (MlflowService, "autolog_disable", False, "AUTOGEN_TEAM_MLFLOW_AUTOLOG_DISABLE", "true", True),
    (
        MlflowService,
        "autolog_disable_for_unsupported_versions",
        False,
        "AUTOGEN_TEAM_MLFLOW_AUTOLOG_DISABLE_FOR_UNSUPPORTED_VERSIONS",
        "true",
        True,
    ),
    (MlflowService, "autolog_exclusive", False, "AUTOGEN_TEAM_MLFLOW_AUTOLOG_EXCLUSIVE", "true", True),
    (
        MlflowService,
        "autolog_log_input_examples",
        False,
        "AUTOGEN_TEAM_MLFLOW_AUTOLOG_LOG_INPUT_EXAMPLES",
        "true",
        True,
    ),
    (
        MlflowService,
        "autolog_log_model_signatures",
        True,
        "AUTOGEN_TEAM_MLFLOW_AUTOLOG_LOG_MODEL_SIGNATURES",
        "false",
        False,
    ),
    (MlflowService, "autolog_log_models", True, "AUTOGEN_TEAM_MLFLOW_AUTOLOG_LOG_MODELS", "false", False),
    (MlflowService, "autolog_log_datasets", True, "AUTOGEN_TEAM_MLFLOW_AUTOLOG_LOG_DATASETS", "false", False),
    (MlflowService, "autolog_silent", False, "AUTOGEN_TEAM_MLFLOW_AUTOLOG_SILENT", "true", True),
    (Env, "mlflow_tracking_uri", "sqlite:///mlflow.db", "MLFLOW_TRACKING_URI", "http://t", "http://t"),
    (Env, "mlflow_registry_uri", "", "MLFLOW_REGISTRY_URI", "http://r", "http://r"),
    (Env, "mlflow_experiment_name", "autogen_team", "MLFLOW_EXPERIMENT_NAME", "digits", "digits"),
    (Env, "mlflow_registered_model_name", "autogen_team", "MLFLOW_REGISTERED_MODEL_NAME", "digits", "digits"),
]
TYPES: dict[type, dict[str, Any]] = {
    LoggerService: {
        "sink": str,
        "level": str,
        "format": str,
        "colorize": bool,
        "serialize": bool,
        "backtrace": bool,
        "diagnose": bool,
        "catch": bool,
    },
    AlertsService: {"enable": bool, "app_name": str},
    MlflowService: {
        "tracking_uri": str,
        "registry_uri": str,
        "experiment_name": str,
        "registry_name": str,
        "autolog_disable": bool,
        "autolog_disable_for_unsupported_versions": bool,
        "autolog_exclusive": bool,
        "autolog_log_input_examples": bool,
        "autolog_log_model_signatures": bool,
        "autolog_log_models": bool,
        "autolog_log_datasets": bool,
        "autolog_silent": bool,
    },
    MlflowService.RunConfig: {
        "name": str,
        "description": str | None,
        "tags": dict[str, Any] | None,
        "log_system_metrics": bool | None,
    },
    Env: {
        "mlflow_tracking_uri": str,
        "mlflow_registry_uri": str,
        "mlflow_experiment_name": str,
        "mlflow_registered_model_name": str,
    },
}
METHODS = [
    (Service, "start", []),
    (Service, "stop", []),
    (LoggerService, "start", []),
    (LoggerService, "stop", []),
    (LoggerService, "logger", []),
    (AlertsService, "start", []),
    (AlertsService, "stop", []),
    (AlertsService, "notify", ["title", "message"]),
    (MlflowService, "start", []),
    (MlflowService, "stop", []),
    (MlflowService, "run_context", ["run_config"]),
    (MlflowService, "client", []),
]


def named(value: object) -> str:
    """Return the id of a test case."""
    return getattr(value, "__name__", value if isinstance(value, str) and value.isidentifier() else "")


@pytest.mark.parametrize(("cls", "field", "default", "variable", "text", "value"), FIELDS, ids=named)
def test_each_field_has_its_default_and_its_variable(cls, field, default, variable, text, value, monkeypatch):
    """An argument has the same effect as the variable."""
    assert getattr(cls(), field) == default
    assert type(getattr(cls(), field)) is type(default)

    monkeypatch.setenv(variable, text)
    assert getattr(cls(), field) == value
    monkeypatch.delenv(variable)
    assert getattr(cls(**{field: value}), field) == value


@pytest.mark.parametrize(("cls", "types"), TYPES.items(), ids=named)
def test_each_field_has_its_type(cls, types):
    """Types are those of the user story's diagram."""
    assert {name: cls.model_fields[name].annotation for name in types} == types


def test_the_timeout_of_an_alert_is_a_number_or_none():
    """The diagram does not show the upper bound."""
    assert AlertsService(timeout=5).timeout == 5
    assert AlertsService(timeout=None).timeout is None


@pytest.mark.parametrize(("cls", "method", "arguments"), METHODS, ids=named)
def test_each_method_has_its_arguments(cls, method, arguments):
    """Additional arguments have a default and are keyword-only."""
    parameters = list(inspect.signature(getattr(cls, method)).parameters.values())[1:]

    assert [each.name for each in parameters[: len(arguments)]] == arguments
    for extra in parameters[len(arguments) :]:
        assert extra.kind is inspect.Parameter.KEYWORD_ONLY
        assert extra.default is not inspect.Parameter.empty


def test_a_run_needs_only_a_name():
    """All other fields have defaults."""
    config = MlflowService.RunConfig(name="train")

    assert (config.name, config.description, config.tags, config.log_system_metrics) == ("train", None, None, True)


def test_each_service_is_a_service():
    """Only `start` is abstract in `Service`; all services are frozen and reject unknown fields."""
    assert issubclass(Service, abc.ABC)
    assert Service.__abstractmethods__ == {"start"}
    for cls in (LoggerService, AlertsService, MlflowService):
        assert issubclass(cls, Service)
        with pytest.raises(ValidationError, match="frozen"):
            setattr(cls(), next(iter(cls.model_fields)), "other")
        with pytest.raises(ConfigurationError, match="has no field"):
            cls(unknown=1)


def test_the_modules_are_those_of_the_story():
    """The services are in `io/services.py`, and `Env` is in `io/osvariables.py`."""
    assert services.__all__ == ["AlertsService", "LoggerService", "MlflowService", "Service"]
    assert osvariables.__all__ == ["Env"]
    assert services.__name__ == "autogen_team.io.services"


def test_the_services_return_objects_of_the_libraries(store_uri):
    """Services return loguru's logger, MLflow's client, and a context manager of MLflow's run."""
    mlflow_service = MlflowService(tracking_uri=store_uri, experiment_name="story", autolog_disable=True)

    assert LoggerService().logger() is logger
    assert isinstance(mlflow_service.client(), mlflow.MlflowClient)
    assert isinstance(MlflowService.env, Env)
    with mlflow_service:
        opening = mlflow_service.run_context(run_config=MlflowService.RunConfig(name="train", log_system_metrics=None))
        assert isinstance(opening, AbstractContextManager)
        with opening as run:
            assert isinstance(run, mlflow.ActiveRun)


def test_a_disabled_alert_is_printed(capsys):
    """The line has the application's name, the title and the message."""
    AlertsService(enable=False, app_name="train").notify(title="done", message="model trained")

    assert capsys.readouterr().out == "[train] done: model trained\n"
