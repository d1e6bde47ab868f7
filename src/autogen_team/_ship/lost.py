"""RUNNING runs of all machines in a store, including runs whose job no longer sends heartbeats."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mlflow.exceptions import MlflowException

from autogen_team._process import run_events
from autogen_team._redact import mask, mask_url
from autogen_team._ship import mlflow_backend, server_probe, uris
from autogen_team._ship.backend import Backend, Batch, Refused, Unreachable
from autogen_team._ship.error_text import with_kind
from autogen_team._ship.signs import ALIVE_TAG, HOST_TAG, LOST, PID_TAG, moment
from autogen_team.errors import ConfigurationError, TrackingUnavailableError

if TYPE_CHECKING:
    from mlflow.entities import Run

_PAGE = 1000
_EXPERIMENTS = 200
"""Maximum number of experiments in one search; a server rejects longer requests."""


@dataclass(frozen=True, slots=True)
class Running:
    """A run whose status is RUNNING."""

    run_id: str
    name: str
    experiment: str
    host: str
    """The machine of its job; empty without heartbeats."""
    pid: str
    started: float
    """Seconds since 1970, as are the other times."""
    sign: float | None
    """The last heartbeat; None without heartbeats, as for a run of plain MLflow."""
    latest: float
    """The last heartbeat; without heartbeats, the newest metric or the start."""

    @property
    def reason(self) -> str:
        """The reason to record when the run is closed."""
        at = datetime.fromtimestamp(self.latest, UTC)
        return f"{LOST} {at:%Y-%m-%dT%H:%M:%SZ}" + (f" ({self.host})" if self.host else "")


class Store:
    """A store, seen from a machine that may not have run any of its jobs."""

    def __init__(self, uri: str, timeout: float) -> None:
        """Open the store at `uri`.

        Raises:
            TrackingUnavailableError: the store does not answer within `timeout` seconds.
            ConfigurationError: the store does not exist, and MLflow would create it.

        """
        server_probe.check(uri, timeout)
        place = uris.local_place(uri)
        if place is not None and not place.exists():
            raise ConfigurationError(f"there is no store at {mask_url(uri)}: choose one with --tracking-uri")
        if uris.is_folder(uri):
            os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # MLflow would try for minutes
        import mlflow

        self._client = mlflow.MlflowClient(uri)
        self._backend: Backend = mlflow_backend.of(mlflow_backend.plain_store(uri), uri)

    def running(self, experiment: str | None = None) -> list[Running]:
        """Return the RUNNING runs, newest first.

        Raises:
            ConfigurationError: the experiment does not exist.
            TrackingUnavailableError: the store cannot be read.

        """
        with _translated():
            names = self._experiments(experiment)
            ids = list(names)
            some = [ids[start : start + _EXPERIMENTS] for start in range(0, len(ids), _EXPERIMENTS)]
            found = [_running(run, names[run.info.experiment_id]) for part in some for run in self._search(part)]
        return sorted(found, key=lambda one: one.started, reverse=True)

    def now(self, of: Running) -> float:
        """Return the time by the clock of the store, in seconds since 1970; the request needs any run of the store.

        Raises:
            TrackingUnavailableError: the store cannot be read.

        """
        with _translated(), suppress(Refused):
            self._backend.look(of.run_id)
        return time.time() + self._backend.ahead

    def close(self, one: Running) -> bool:
        """Close the run as KILLED, unless it has ended or sent a heartbeat meanwhile; return whether it is closed now.

        Raises:
            TrackingUnavailableError: the store cannot be read.

        """
        with _translated(), suppress(Refused):  # the run was deleted meanwhile
            found = self._backend.look(one.run_id)
            sign = moment(found.tags.get(ALIVE_TAG, ""))
            if found.status != "RUNNING" or (one.sign is not None and sign != one.sign):
                return False
            self._backend.log(Batch(one.run_id, tags={run_events.EXCEPTION_TAG: one.reason}))
            self._backend.update(one.run_id, "KILLED", int(one.latest * 1000), None)
            return True
        return False

    def _experiments(self, name: str | None) -> dict[str, str]:
        if name is not None:
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise ConfigurationError(f"the store has no experiment {name!r}")
            return {found.experiment_id: name}
        names: dict[str, str] = {}
        token = None
        while True:
            page = self._client.search_experiments(max_results=_PAGE, page_token=token)
            names |= {one.experiment_id: one.name for one in page}
            token = page.token
            if not token:
                return names

    def _search(self, experiment_ids: list[str]) -> Iterator[Run]:
        token = None
        while True:
            page = self._client.search_runs(
                experiment_ids, "attributes.status = 'RUNNING'", max_results=_PAGE, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return


@contextmanager
def _translated() -> Iterator[None]:
    """Translate errors of the store into TrackingUnavailableError."""
    try:
        yield
    except (MlflowException, Unreachable) as error:
        raise TrackingUnavailableError(f"the store cannot be read: {mask(with_kind(error))}") from error


def _running(run: Run, experiment: str) -> Running:
    tags = run.data.tags
    started = run.info.start_time / 1000
    sign = moment(tags.get(ALIVE_TAG, ""))
    metrics = run.to_proto().data.metrics  # with times, which `run.data.metrics` lacks
    latest = max([started, *(metric.timestamp / 1000 for metric in metrics)]) if sign is None else sign
    return Running(
        run_id=run.info.run_id,
        name=run.info.run_name or run.info.run_id,
        experiment=experiment,
        host=tags.get(HOST_TAG, ""),
        pid=tags.get(PID_TAG, ""),
        started=started,
        sign=sign,
        latest=latest,
    )
