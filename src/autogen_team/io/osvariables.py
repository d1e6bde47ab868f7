"""The MLFLOW_* environment variables that the services read, with this library's defaults."""

from autogen_team._services.env import Env

__all__ = ["Env"]
