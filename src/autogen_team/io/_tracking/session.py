"""MLflow set up for a job, and given back as it was."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from autogen_team.errors import ConfigurationError, ConfigurationWarning, TrackingUnavailableError
from autogen_team.io import _job
from autogen_team.io._redact import mask_url
from autogen_team.io._tracking import probe, turns

if TYPE_CHECKING:
    import mlflow
    from mlflow.tracking import MlflowClient

_ALLOW_FILE_STORE = "MLFLOW_ALLOW_FILE_STORE"
_QUIET_URLS = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"


@dataclass(frozen=True, slots=True)
class Settings:
    """What tracking needs to know."""

    tracking_uri: str
    registry_uri: str
    experiment_name: str
    connect_timeout: float
    """Seconds."""
    autolog: Mapping[str, bool]
    """The arguments of `mlflow.autolog`."""
    state_dir: Path
    """For locks; need not exist."""


def start(settings: Settings) -> _job.Undo:
    """Point MLflow at the stores, set the experiment, switch autologging on; the returned function gives all that back.

    Raises:
        TrackingUnavailableError: a store does not answer, or not in time.
        ConfigurationError: the experiment cannot be used.

    """
    for uri in dict.fromkeys((settings.tracking_uri, settings.registry_uri)):
        probe.check(uri, settings.connect_timeout)

    import mlflow

    from autogen_team.io._tracking import runs, seam

    with ExitStack() as undo:
        undo.callback(seam.keep_environment(_ALLOW_FILE_STORE, _QUIET_URLS))
        _allow_file_store(settings.tracking_uri, settings.registry_uri)
        os.environ.setdefault(_QUIET_URLS, "true")  # stdout belongs to the job
        undo.callback(seam.keep_uris())
        mlflow.set_tracking_uri(settings.tracking_uri)
        mlflow.set_registry_uri(settings.registry_uri)
        _set_experiment(settings)
        undo.callback(seam.keep_autolog())
        mlflow.autolog(**dict[str, Any](settings.autolog))
        undo.callback(_job.set_source(runs.facts))
        return undo.pop_all().close


def client(tracking_uri: str, registry_uri: str) -> MlflowClient:
    """Return a client bound to these stores, whatever MLflow's own settings say."""
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri, registry_uri=registry_uri)


def active_run() -> mlflow.ActiveRun | None:
    """Return the innermost open run of this thread; does not load MLflow only to find none."""
    loaded = sys.modules.get("mlflow")
    return loaded.active_run() if loaded else None


def _set_experiment(settings: Settings) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException, RestException

    from autogen_team.io._tracking import runs, seam

    try:
        with (
            turns.in_turn(settings.tracking_uri, settings.state_dir),
            _impatient(settings.connect_timeout),
            seam.quiet("alembic"),  # some 70 lines about the schema of a database that is being made
        ):
            experiment = mlflow.set_experiment(settings.experiment_name)
        runs.remember_experiment(experiment.experiment_id, experiment.name)
    except RestException:
        raise  # the server did answer; its words are the best there are
    except MlflowException as error:
        if "deleted experiment" in str(error):
            raise ConfigurationError(
                f"the experiment {settings.experiment_name!r} is deleted: restore it (mlflow experiments restore) or "
                "name another one in MLFLOW_EXPERIMENT_NAME"
            ) from error
        raise TrackingUnavailableError(probe.unavailable(settings.tracking_uri, str(error))) from error
    except Exception as error:
        # SQLAlchemy, its drivers and the operating system each have words of their own for the same.
        reason = str(error).partition("\n")[0]
        raise TrackingUnavailableError(probe.unavailable(settings.tracking_uri, reason)) from error


@contextmanager
def _impatient(timeout: float) -> Iterator[None]:
    """Bound MLflow's own waiting, for the time of the start only; what the user has set stays."""
    from autogen_team.io._tracking import seam

    bounds = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, math.ceil(timeout))),
    }
    with ExitStack() as undo:
        undo.callback(seam.keep_environment(*bounds))
        undo.callback(seam.ask_databases_once())
        for name, value in bounds.items():
            os.environ.setdefault(name, value)
        yield


def _allow_file_store(*uris: str) -> None:
    for uri in dict.fromkeys(uris):
        if is_folder(uri):
            warnings.warn(
                f"{mask_url(uri)} is a folder: MLflow keeps its file store in maintenance and will drop it; move to "
                "sqlite:///mlflow.db (mlflow migrate-filestore)",
                ConfigurationWarning,
                stacklevel=5,
            )
            os.environ[_ALLOW_FILE_STORE] = "true"


def is_folder(uri: str) -> bool:
    """Tell whether MLflow would keep this store in a folder."""
    scheme = urlsplit(uri).scheme
    return scheme in ("", "file") or len(scheme) == 1  # C:\runs
