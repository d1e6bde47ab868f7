"""The global context of an ML or LLM job: logging, alerts and MLflow tracking that start and stop together.

    from autogen_team import GlobalContext

    with GlobalContext() as context, context.run("train"):
        context.logger.info("started")

Importing the package is cheap: each name below is loaded at its first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autogen_team.context import GlobalContext
    from autogen_team.io.osvariables import Env
    from autogen_team.io.services import AlertsService, LoggerService, MlflowService, Service

__all__ = ["AlertsService", "Env", "GlobalContext", "LoggerService", "MlflowService", "Service", "__version__"]

__version__ = "0.1.0"

_MODULES = {
    "AlertsService": "autogen_team.io.services",
    "Env": "autogen_team.io.osvariables",
    "GlobalContext": "autogen_team.context",
    "LoggerService": "autogen_team.io.services",
    "MlflowService": "autogen_team.io.services",
    "Service": "autogen_team.io.services",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
