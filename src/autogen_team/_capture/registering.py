"""Register the model of a job under a name, once its files are uploaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow

from autogen_team._capture import write_behind
from autogen_team._redact import mask, mask_url
from autogen_team.errors import ConfigurationError, TrackingUnavailableError

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_OF_A_MODEL = re.compile(r"models:/[^/]+(/\d+)?|runs:/(?P<run>[^/]+)/.+|(?!models:|runs:|file:)[a-z][\w+.-]*:.+")
"""URIs of a logged model, of a registered version, of artifacts of a run, and of files elsewhere, such as on S3."""
_ALIAS = re.compile(r"(?!(latest|v\d+)\Z)[\w-]{1,255}", re.IGNORECASE)
"""MLflow's rule: `latest` and `v1` are reserved."""


def register(
    model_uri: str, name: str, *, alias: str | None, tags: Mapping[str, Any] | None, flush: Callable[[], bool]
) -> ModelVersion:
    """Register a model as the next version of `name`, after `flush` has delivered its files.

    Raises:
        ConfigurationError: `model_uri` or `alias` is not valid.
        TrackingUnavailableError: the files did not arrive in time.

    """
    _require_model(model_uri)
    if alias is not None:
        _require_alias(alias)
    if not flush():
        raise TrackingUnavailableError(
            f"{mask_url(model_uri)} is not registered, because its files are not uploaded yet: call "
            "register again later, or raise AUTOGEN_TEAM_MLFLOW_FLUSH_TIMEOUT"
        )
    version = mlflow.register_model(_as_stored(model_uri), name, tags=dict(tags) if tags else None)
    if alias is None:
        return version
    client = mlflow.MlflowClient()
    client.set_registered_model_alias(version.name, alias, version.version)
    return client.get_model_version(version.name, version.version)


def _require_alias(alias: object) -> None:
    if not (isinstance(alias, str) and _ALIAS.fullmatch(alias)):
        raise ConfigurationError(
            f"{mask(str(alias))!r} is not a valid alias for a model version: use letters, digits, - and _, but not "
            "latest, and not a version number such as v1"
        )


def _require_model(model_uri: object) -> None:
    if isinstance(model_uri, str):
        is_folder = model_uri and "\0" not in model_uri and Path(model_uri.removeprefix("file://"), "MLmodel").is_file()
        if is_folder or _OF_A_MODEL.fullmatch(model_uri):
            return
    raise ConfigurationError(
        f"model_uri {mask_url(str(model_uri))!r} does not name a model: pass the model_uri that log_model returns, "
        "such as models:/m-0a1b, or runs:/RUN_ID/model, or a folder with an MLmodel file"
    )


def _as_stored(model_uri: str) -> str:
    """Return the URI with the store's id of the run, if the run began in an outage."""
    found, shared = _OF_A_MODEL.fullmatch(model_uri), write_behind.of(mlflow.get_tracking_uri())
    if found and shared and (run_id := found["run"]):
        return model_uri.replace(run_id, shared.store.real_id(run_id), 1)
    return model_uri
