"""The MLFLOW_* environment variables that the services read, with this library's defaults."""

from __future__ import annotations

from autogen_team._services.settings import Settings

__all__ = ["Env"]


class Env(Settings):
    """Where MLflow keeps experiments and models, read when an `Env` is made: environment, then `.env`, then default.

    >>> import os
    >>> os.environ["MLFLOW_EXPERIMENT_NAME"] = "digits"
    >>> Env().mlflow_experiment_name
    'digits'
    """

    mlflow_tracking_uri: str = "sqlite:///mlflow.db"
    """Where runs are kept: a server (`http://...`), a database (`sqlite:///...`) or a folder."""
    mlflow_registry_uri: str = ""
    """Where registered models are kept; empty means wherever runs are."""
    mlflow_experiment_name: str = "autogen_team"
    """The experiment that runs belong to; made if it is not there."""
    mlflow_registered_model_name: str = "autogen_team"
    """The name under which a job registers its model."""


def default_of(name: str) -> str:
    """Return the default of a field, for fields whose variables have been looked up already."""
    return str(Env.model_fields[name].default)
