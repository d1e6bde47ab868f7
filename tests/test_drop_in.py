"""Jobs written for the services of the user story run with these services, unchanged.

The jobs use another style than ours: services as class defaults, created at import, entered and exited by hand.
"""

# ruff: noqa: PLE1205 - ruff takes loguru for the standard library

from __future__ import annotations

import abc
import json
import typing as T  # noqa: N812 - as those jobs have it
from pathlib import Path
from types import TracebackType

import mlflow
import numpy as np
import pydantic as pdt
import pytest
import yaml
from sklearn.linear_model import LinearRegression

from autogen_team.io import services

Locals = dict[str, T.Any]


class Job(abc.ABC, pdt.BaseModel, strict=True, frozen=True, extra="forbid"):
    """Base class of the jobs."""

    KIND: str

    logger_service: services.LoggerService = services.LoggerService()
    alerts_service: services.AlertsService = services.AlertsService()
    mlflow_service: services.MlflowService = services.MlflowService()

    def __enter__(self) -> T.Self:
        """Start the services."""
        self.logger_service.start()
        logger = self.logger_service.logger()
        logger.debug("Alerts start: {}", self.alerts_service)
        self.alerts_service.start()
        logger.debug("Tracking starts: {}", self.mlflow_service)
        self.mlflow_service.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        exc_traceback: TracebackType | None,
    ) -> T.Literal[False]:
        """Stop the services in reverse order, and let the exception pass."""
        logger = self.logger_service.logger()
        logger.debug("Tracking stops: {}", self.mlflow_service)
        self.mlflow_service.stop()
        self.alerts_service.stop()
        logger.debug("Logging stops: {}", self.logger_service)
        self.logger_service.stop()
        return False

    @abc.abstractmethod
    def run(self) -> Locals:
        """Run the job, and return its local variables."""


class TrainingJob(Job):
    """Train and register a model."""

    KIND: T.Literal["TrainingJob"] = "TrainingJob"

    run_config: services.MlflowService.RunConfig = services.MlflowService.RunConfig(name="Training")
    fails: bool = False

    def run(self) -> Locals:
        logger = self.logger_service.logger()
        client = self.mlflow_service.client()
        logger.info("The store is {}", client.tracking_uri)
        with self.mlflow_service.run_context(run_config=self.run_config) as run:
            logger.info("The run is {}", run.info)
            inputs = np.arange(12.0).reshape(6, 2)
            regression = LinearRegression().fit(inputs, inputs.sum(axis=1))
            mlflow.log_metric("score", regression.score(inputs, inputs.sum(axis=1)))
            if self.fails:
                raise ValueError("no data")
            model = client.create_registered_model(self.mlflow_service.registry_name)
        self.alerts_service.notify(title="Model registered", message=f"it is {model.name}")
        return locals()


class PromotionJob(Job):
    """Set an alias without a run."""

    KIND: T.Literal["PromotionJob"] = "PromotionJob"

    alias: str = "Champion"

    def run(self) -> Locals:
        name = self.mlflow_service.registry_name
        self.alerts_service.notify(title="Model promoted", message=f"{name} is {self.alias}")
        return locals()


JobKind = TrainingJob | PromotionJob


class MainSettings(pdt.BaseModel, strict=True, frozen=True, extra="forbid"):
    """Content of a configuration file."""

    job: JobKind = pdt.Field(..., discriminator="KIND")


@pytest.fixture
def config(store_uri: str) -> dict[str, T.Any]:
    """Return the configuration of a training job, as loaded from a file."""
    return {
        "job": {
            "KIND": "TrainingJob",
            "logger_service": {"sink": "job.log", "level": "DEBUG", "colorize": False},
            "alerts_service": {"enable": False, "app_name": "jobs"},
            "mlflow_service": {
                "tracking_uri": store_uri,
                "registry_uri": store_uri,
                "experiment_name": "jobs",
                "registry_name": "jobs-model",
                "autolog_log_models": False,
            },
            "run_config": {"name": "Training", "description": "A real one.", "tags": {"is": "training"}},
        }
    }


def test_a_class_has_services_as_defaults():
    """Services are created at import, before anything is configured, and all jobs share them as values."""
    job = TrainingJob()

    assert job.logger_service == services.LoggerService()
    assert job.mlflow_service.experiment_name == "autogen_team"
    assert Job.model_fields["alerts_service"].default == services.AlertsService()
    with pytest.raises(TypeError, match="abstract"):
        Job(KIND="")


@pytest.mark.parametrize("dump", [json.dumps, yaml.safe_dump], ids=["JSON", "YAML"])
def test_a_training_job_runs_from_its_configuration(config, dump, capsys):
    """The job logs, opens a run, autologs, registers a model, alerts, and its run is FINISHED."""
    settings = MainSettings.model_validate(yaml.safe_load(dump(config)))  # JSON is YAML
    assert isinstance(settings.job, TrainingJob)

    with settings.job as runner:
        assert runner is settings.job
        found = runner.run()

    run = runner.mlflow_service.client().get_run(found["run"].info.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "Training")
    assert run.data.metrics["score"] == pytest.approx(1.0)
    assert run.data.params["fit_intercept"] == "True"  # autologging
    assert run.data.tags["is"] == "training"
    assert run.data.tags["mlflow.note.content"] == "A real one."
    assert found["client"].get_registered_model("jobs-model").name == "jobs-model"
    assert capsys.readouterr().out == "[jobs] Model registered: it is jobs-model\n"
    lines = Path("job.log").read_text()
    assert all(text in lines for text in ("Tracking starts: ", "The run is ", "Logging stops: "))


def test_settings_are_read_from_json_in_one_step(config):
    """Pydantic's own parser accepts the configuration in strict mode."""
    settings = MainSettings.model_validate_json(json.dumps(config))

    assert settings.job.mlflow_service.experiment_name == "jobs"


def test_the_kind_selects_the_job(config, capsys):
    """`KIND` discriminates a union of jobs, which inherit their services."""
    job = {**config["job"], "KIND": "PromotionJob"}
    del job["run_config"]
    settings = MainSettings.model_validate({"job": job})

    with settings.job as runner:
        runner.run()

    assert isinstance(runner, PromotionJob)
    assert capsys.readouterr().out == "[jobs] Model promoted: jobs-model is Champion\n"


def test_an_invalid_configuration_is_refused(config):
    """A misspelt field of a service is not ignored."""
    config["job"]["logger_service"]["levle"] = "INFO"

    with pytest.raises(ValueError, match="levle"):
        MainSettings.model_validate(config)


def test_an_exception_passes_and_the_run_has_failed(config):
    """The services are stopped, too."""
    config["job"]["fails"] = True
    job = MainSettings.model_validate(config).job

    with pytest.raises(ValueError, match="no data"), job as runner:
        runner.run()

    (run,) = job.mlflow_service.client().search_runs(
        [job.mlflow_service.client().get_experiment_by_name("jobs").experiment_id]
    )
    assert run.info.status == "FAILED"
    assert run.data.tags["autogen_team.exception"].startswith("ValueError: no data")
    assert not any(service.is_started for service in (job.logger_service, job.alerts_service, job.mlflow_service))
