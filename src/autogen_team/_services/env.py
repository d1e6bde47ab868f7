"""The MLFLOW_* environment variables that the services read, with this library's defaults."""

from __future__ import annotations

from autogen_team._services.settings import Settings

__all__ = ["Env"]


class Env(Settings):
    """Locations of experiments and models, read when an `Env` is created from the environment, `.env` or defaults.

    >>> import os
    >>> os.environ["MLFLOW_EXPERIMENT_NAME"] = "digits"
    >>> Env().mlflow_experiment_name
    'digits'
    """

    mlflow_tracking_uri: str = "sqlite:///mlflow.db"
    """Tracking store: a server (`http://...`), a database (`sqlite:///...`) or a folder."""
    mlflow_registry_uri: str = ""
    """Store of registered models; empty means the tracking store."""
    mlflow_experiment_name: str = "autogen_team"
    """Experiment of the runs; created if it does not exist."""
    mlflow_registered_model_name: str = "autogen_team"
    """Name under which a job registers its model."""


def default_of(name: str) -> str:
    """Return the default of a field, for a field whose variable is already looked up."""
    return str(Env.model_fields[name].default)
