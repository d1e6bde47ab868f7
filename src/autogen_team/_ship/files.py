"""Upload files that wait beside a journal to the artifacts of their run or model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import mlflow
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.uri import add_databricks_profile_info_to_artifact_uri

from autogen_team._process.folders import private_folder
from autogen_team._ship import mlflow_backend, trace_files
from autogen_team._ship.backend import Refused, Unreachable
from autogen_team._ship.error_text import with_kind
from autogen_team._spool.records import Entry

Kind: TypeAlias = Literal["run", "logged_model"]

_with_profile: Callable[..., Any] = add_databricks_profile_info_to_artifact_uri
_FINAL = frozenset({400, 403, 409, 413, 422})
"""HTTP statuses of an upload that another attempt would not change; nginx answers 413 above 1 MB."""


@lru_cache(maxsize=128)
def repository_of(client: mlflow.MlflowClient, owner: str, kind: Kind) -> Any:
    """Return MLflow's own artifact repository of a run or logged model, even while a replacement is installed."""
    if kind == "run":
        location = client.get_run(owner).info.artifact_uri
    else:
        location = client.get_logged_model(owner).artifact_location
    uri = client.tracking_uri
    return get_artifact_repository(_with_profile(location, uri), tracking_uri=uri)


def _is_final(error: Exception, uri: str) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status in _FINAL or mlflow_backend.is_refusal(error, at_server=uri.startswith("http"))


def bring(client: mlflow.MlflowClient, journal_folder: Path, entry: Entry) -> None:
    """Upload the artifact of an entry to its run, model or trace, and remove the copy; move a refused one to `refused`.

    Raises:
        Unreachable: the upload failed; another attempt may succeed.
        Refused: no attempt can succeed, for example because the file is too large or its run is gone.

    """
    place = journal_folder / entry["place"]
    if not place.exists():  # an earlier attempt uploaded it, and failed at a later entry
        return
    try:
        if entry["op"] == "trace_file":
            trace_files.upload(client, place, entry)
        else:
            kind: Kind = "run" if "run" in entry else "logged_model"
            repository = repository_of(client, entry.get("run") or entry["model"], kind)
            repository.log_artifacts(str(place), entry.get("path"))
    except Exception as error:
        reason = with_kind(error)
        if not _is_final(error, client.tracking_uri):
            raise Unreachable(reason) from error
        aside = journal_folder.parent.parent / "refused" / f"{journal_folder.name}-{place.name}"
        private_folder(aside.parent)
        shutil.move(place, aside)
        raise Refused(f"{reason}; it is in {aside}") from error
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)
