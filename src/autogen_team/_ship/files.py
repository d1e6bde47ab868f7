"""MLflow's own artifact repositories, and uploads of single files and folders to them."""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, ErrorCode
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.utils.uri import add_databricks_profile_info_to_artifact_uri

from autogen_team._ship import mlflow_backend, refused, trace_files
from autogen_team._ship.backend import Refused, Unreachable
from autogen_team._ship.error_text import with_kind
from autogen_team._spool.records import Entry

_with_profile: Callable[..., Any] = add_databricks_profile_info_to_artifact_uri
_FINAL = frozenset({400, 403, 409, 413, 422})
"""HTTP statuses after which another attempt to upload would fail, too; nginx answers 413 above 1 MB."""
_INVALID = ErrorCode.Name(INVALID_PARAMETER_VALUE)
_MISREAD = frozenset("#?%")
_UNSTORABLE = re.compile(r"#|%[0-9A-Fa-f]{2}")
"""A server rejects `#`, and decodes `%` with two digits once too often."""
_asking = threading.local()


@contextmanager
def plainly() -> Iterator[None]:
    """Give this thread MLflow's own repositories inside the block, even while replacements are installed."""
    before, _asking.plainly = is_plain(), True
    try:
        yield
    finally:
        _asking.plainly = before


def is_plain() -> bool:
    """Return whether this thread asks for MLflow's own repositories."""
    return getattr(_asking, "plainly", False)


@lru_cache(maxsize=128)
def repository_at(root: str, tracking_uri: str) -> Any:
    """Return MLflow's own repository for the artifacts at the URI `root`."""
    with plainly():
        return get_artifact_repository(root, tracking_uri=tracking_uri)


def root_of(store: Any, run_id: str, uri: str) -> str:
    """Return the URI of a run's artifacts in the store of `uri`; `store` may be a client."""
    root: str = _with_profile(store.get_run(run_id).info.artifact_uri, uri)
    return root


def repository_of(client: mlflow.MlflowClient, run_id: str) -> Any:
    """Return MLflow's own repository of a run's artifacts."""
    uri = client.tracking_uri
    return repository_at(root_of(client, run_id, uri), uri)


def send(repository: Any, path: Path, folder: str | None) -> None:
    """Upload a file to a folder of a repository, under its own name.

    MLflow does not escape `#`, `?` and `%` in the URLs of its requests: `a?b.txt` would overwrite `a`.

    Raises:
        MlflowException: an MLflow server cannot store a file of this name, or the upload failed.

    """
    log: Callable[[str, str | None], None] = repository.log_artifact
    name = "/".join(filter(None, (folder, path.name)))
    if not (isinstance(repository, HttpArtifactRepository) and _MISREAD & set(name)):
        log(str(path), folder)
        return
    if _UNSTORABLE.search(name):
        text = f"an MLflow server cannot store {name!r}, because of the # or the % before two digits: rename it"
        raise MlflowException(text, error_code=INVALID_PARAMETER_VALUE)
    with tempfile.TemporaryDirectory() as scratch:
        link = Path(scratch, _escaped(path.name))
        link.symlink_to(path.absolute())
        log(str(link), None if folder is None else _escaped(folder))


def _escaped(name: str) -> str:
    return "".join(f"%{ord(character):02X}" if character in _MISREAD else character for character in name)


def is_final(error: Exception, uri: str) -> bool:
    """Return whether an upload of the store `uri` would fail again in the same way."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    # MLflow sent no request: the path is not valid, or the name of the file is not text.
    is_invalid = isinstance(error, MlflowException) and error.error_code == _INVALID
    return (
        status in _FINAL
        or is_invalid
        or isinstance(error, UnicodeError)
        or mlflow_backend.is_refusal(error, at_server=uri.startswith("http"))
    )


def bring(client: mlflow.MlflowClient, journal_folder: Path, entry: Entry) -> None:
    """Upload the file of a trace, or an artifact of an entry from a version before 0.1.0, and remove the copy.

    A rejected copy is moved to the folder `refused`.

    Raises:
        Unreachable: the upload failed; another attempt may succeed.
        Refused: no attempt can succeed, for example because the file is too large or its run is deleted.

    """
    place = journal_folder / entry["place"]
    if not place.exists():  # an earlier attempt uploaded it, and failed at a later entry
        return
    try:
        if entry["op"] == "trace_file":
            with plainly():
                trace_files.upload(client, place, entry)
        elif "run" in entry:
            repository_of(client, entry["run"]).log_artifacts(str(place), entry.get("path"))
        else:
            location = client.get_logged_model(entry["model"]).artifact_location
            repository = repository_at(_with_profile(location, client.tracking_uri), client.tracking_uri)
            repository.log_artifacts(str(place), entry.get("path"))
    except Exception as error:
        reason = with_kind(error)
        if not is_final(error, client.tracking_uri):
            raise Unreachable(reason) from error
        aside = refused.set_aside(journal_folder.parent.parent, f"{journal_folder.name}-{place.name}", place)
        raise Refused(f"{reason}; it is in {aside}") from error
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)
