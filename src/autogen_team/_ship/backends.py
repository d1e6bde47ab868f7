"""Destinations of journal entries: an MLflow server, a database, or any other MLflow store.

Each request is sent once and with a short timeout, because the caller decides when to try again.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
from mlflow.entities import DatasetInput, LoggedModelInput, Metric, Param, RunStatus, RunTag, ViewType
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos import service_pb2
from mlflow.protos.databricks_pb2 import (
    BAD_REQUEST,
    INVALID_PARAMETER_VALUE,
    INVALID_STATE,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)
from mlflow.tracking._tracking_service import utils as _tracking
from mlflow.utils.proto_json_utils import parse_dict
from mlflow.utils.rest_utils import http_request

from autogen_team._ship import sql_bulk
from autogen_team._ship.error_text import first_line, with_kind

_report = logging.getLogger("autogen_team")
ask: Callable[..., Any] = http_request
read_proto: Callable[..., None] = parse_dict
_registry: Any = _tracking._tracking_store_registry  # noqa: SLF001 - `plain_store` asks it past any stand-in

OPENED_BY = "autogen_team.opened_by"
"""Tag that identifies a run whose id could not be recorded."""
PATIENCE = 30.0
"""Seconds that a server may take to answer one request."""
_REFUSALS = frozenset(
    ErrorCode.Name(code)
    for code in (BAD_REQUEST, INVALID_PARAMETER_VALUE, INVALID_STATE, RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST)
)
_BAD_VALUES = (OverflowError, TypeError, ValueError)
_FINAL = frozenset({400, 403, 404, 409, 413, 422})
"""HTTP statuses of an MLflow server that another attempt would not change."""
_TOO_LARGE = 413
_NOT_ABOUT_CONTENT = frozenset({401, 404, 407, 408, 425, 429})
"""HTTP statuses below 500 that say nothing about the content: a login is missing, or the server is away or busy."""
_TITLE = re.compile(r"<title[^>]*>([^<]*)", re.IGNORECASE)
_MARKUP = re.compile(r"<[^>]*>")
_BUSY = ("BAD_REQUEST: QueuePool limit", "BAD_REQUEST: (psycopg2.errors.ReadOnlySqlTransaction)")
"""Errors of a server that waited longer than 30 s for a connection to its database, or whose database has lost its
primary. MLflow reports almost every error of SQLAlchemy as a bad request. The server would take the same request
later."""


class Unreachable(Exception):  # noqa: N818 - what happened, not whose fault it is
    """The store could not be asked, or could not answer; the same request may succeed later."""


class Blocked(Unreachable):
    """A proxy or firewall before the store answers with a page of its own, perhaps because of the content."""


class Refused(Exception):  # noqa: N818 - the same
    """The store refuses the request, now and later."""


class RefusedOnTheWay(Refused):
    """A proxy or firewall before the store blocks this request, though it lets others through."""


@dataclass(slots=True)
class Batch:
    """Metrics, parameters and tags of one run that are logged in one request."""

    run_id: str
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """Each has `key`, `value`, `timestamp`, `step`, and perhaps `model_id`, `dataset_name`, `dataset_digest`."""
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.metrics) + len(self.params) + len(self.tags)

    def singles(self) -> list[Batch]:
        """Return each item as a batch of its own."""
        return [
            *(Batch(self.run_id, metrics=[metric]) for metric in self.metrics),
            *(Batch(self.run_id, params={key: value}) for key, value in self.params.items()),
            *(Batch(self.run_id, tags={key: value}) for key, value in self.tags.items()),
        ]


class Backend:
    """An MLflow store of any kind, called through its own methods."""

    def __init__(self, store: Any) -> None:
        self.store = store

    def create(self, entry: Mapping[str, Any]) -> str:
        """Create the run that an entry describes, unless it exists already, and return its id."""
        with _translated():
            filter_string = f"tags.`{OPENED_BY}` = '{entry['tags'][OPENED_BY]}'"
            found = self.store.search_runs([entry["experiment"]], filter_string, ViewType.ALL, max_results=1)
            if found:
                return str(found[0].info.run_id)
            tags = [RunTag(*tag) for tag in entry["tags"].items()]
            run = self.store.create_run(entry["experiment"], entry["user"], entry["start"], tags, entry["name"])
            return str(run.info.run_id)

    def log(self, batch: Batch) -> None:
        """Log metrics, parameters and tags; an empty batch finds out whether the run accepts any."""
        with _translated():
            self._log(batch)

    def takes_others(self, run_id: str) -> bool:  # noqa: ARG002 - `Server` needs it
        """Tell whether the store itself answers a request about this run without any content."""
        return True

    def update(self, run_id: str, status: str | None, end_time: int | None, name: str | None) -> None:
        """Change status, end (milliseconds since 1970) and name of a run."""
        with _translated():
            number = None if status is None else RunStatus.from_string(status)
            self.store.update_run_info(run_id, number, end_time, name)

    def remove_tag(self, run_id: str, key: str) -> None:
        """Remove a tag; a tag that does not exist counts as removed."""
        with suppress(Refused), _translated():
            self.store.delete_tag(run_id, key)

    def log_inputs(self, run_id: str, datasets: Sequence[Mapping[str, Any]], models: Sequence[str]) -> None:
        """Log the inputs of a run: datasets as MLflow's REST API writes them, and ids of models."""
        with _translated():
            self.store.log_inputs(
                run_id,
                datasets=[_dataset_input(found) for found in datasets],
                models=[LoggedModelInput(model_id) for model_id in models],
            )

    def _log(self, batch: Batch) -> None:
        metrics = [Metric(**metric) for metric in batch.metrics]
        params = [Param(key, value) for key, value in batch.params.items()]
        self.store.log_batch(batch.run_id, metrics, params, [RunTag(*tag) for tag in batch.tags.items()])


class Database(Backend):
    """A database that MLflow writes through SQLAlchemy."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self._is_as_expected = True

    def _log(self, batch: Batch) -> None:
        rest = batch
        is_plain = not any("model_id" in metric or "dataset_name" in metric for metric in batch.metrics)
        if is_plain and batch.metrics and self._insert(batch):
            rest = Batch(batch.run_id, params=batch.params, tags=batch.tags)
        if len(rest) or not len(batch):
            super()._log(rest)

    def _insert(self, batch: Batch) -> bool:
        if self._is_as_expected:
            try:
                return sql_bulk.insert_metrics(self.store, batch.run_id, batch.metrics)
            except (AttributeError, ImportError, TypeError):  # another MLflow: its own method is slower, but fits
                _report.info("MLflow's tables are not as expected; metrics take its own way", exc_info=True)
                self._is_as_expected = False
        return False


class Server(Backend):
    """An MLflow server, through its REST API, with MLflow's own credentials, certificates and headers."""

    def create(self, entry: Mapping[str, Any]) -> str:
        """Create the run that an entry describes, unless it exists already, and return its id."""
        filter_string = f"tags.`{OPENED_BY}` = '{entry['tags'][OPENED_BY]}'"
        found = self._post("runs/search", experiment_ids=[entry["experiment"]], filter=filter_string, max_results=1)
        if found.get("runs"):
            return str(found["runs"][0]["info"]["run_id"])
        made = self._post(
            "runs/create",
            experiment_id=entry["experiment"],
            user_id=entry["user"],
            start_time=entry["start"],
            run_name=entry["name"],
            tags=[{"key": key, "value": value} for key, value in entry["tags"].items()],
        )
        return str(made["run"]["info"]["run_id"])

    def log(self, batch: Batch) -> None:
        """Log metrics, parameters and tags."""
        self._post(
            "runs/log-batch",
            run_id=batch.run_id,
            metrics=[{**metric, "value": _as_json(metric["value"])} for metric in batch.metrics],
            params=[{"key": key, "value": value} for key, value in batch.params.items()],
            tags=[{"key": key, "value": value} for key, value in batch.tags.items()],
        )

    def takes_others(self, run_id: str) -> bool:
        """Tell whether the server itself answers a request about this run without any content."""
        try:
            self._post("runs/log-batch", run_id=run_id)
        except Refused:
            return True
        except Unreachable:
            return False
        return True

    def update(self, run_id: str, status: str | None, end_time: int | None, name: str | None) -> None:
        """Change status, end (milliseconds since 1970) and name of a run."""
        self._post("runs/update", run_id=run_id, status=status, end_time=end_time, run_name=name)

    def remove_tag(self, run_id: str, key: str) -> None:
        """Remove a tag; a tag that does not exist counts as removed."""
        with suppress(Refused):
            self._post("runs/delete-tag", run_id=run_id, key=key)

    def log_inputs(self, run_id: str, datasets: Sequence[Mapping[str, Any]], models: Sequence[str]) -> None:
        """Log the inputs of a run: datasets as MLflow's REST API writes them, and ids of models."""
        named = [{"model_id": model_id} for model_id in models]
        self._post("runs/log-inputs", run_id=run_id, datasets=list(datasets), models=named)

    def _post(self, endpoint: str, **body: Any) -> dict[str, Any]:
        around = sys.exc_info()[1]
        try:
            response = ask(
                self.store.get_host_creds(),
                f"/api/2.0/mlflow/{endpoint}",
                "POST",
                max_retries=0,
                timeout=PATIENCE,
                raise_on_status=False,
                extra_headers={"Content-Type": "application/json"},
                data=orjson.dumps({name: value for name, value in body.items() if value is not None}),
            )
        except Exception as error:
            raise Unreachable(_root(error, around)) from None
        # A proxy whose server is away answers 404 to everything, so only MLflow's own refusals are final.
        refusal = None if response.status_code == 200 else _refusal(response.text)
        if refusal is not None and response.status_code in _FINAL and not refusal.startswith(_BUSY):
            raise Refused(refusal)
        if response.status_code != 200:
            raise _not_taken(response.status_code, refusal, response.text)
        try:
            found: dict[str, Any] = orjson.loads(response.content or b"{}")
        except orjson.JSONDecodeError:  # some firewalls report a blocked request with status 200
            raise Blocked(f"it answers with a page instead of JSON: {_gist(response.text)!r}") from None
        return found


def plain_store(uri: str, artifact_uri: str | None = None) -> Any:
    """Return MLflow's own store for the URI, whatever stands in for it."""
    # A stand-in is found by an attribute of the registry object; the class of the registry is as MLflow made it.
    return type(_registry)._get_store_with_resolved_uri(_registry, uri, artifact_uri)  # noqa: SLF001 - see above


def hard_delete_of(uri: str) -> Callable[[str], object] | None:
    """Return the function that deletes a run of this store for good, by its id; None for a server."""
    found: Callable[[str], object] | None = getattr(plain_store(uri), "_hard_delete_run", None)
    return found


def of(store: Any, uri: str) -> Backend:
    """Return the backend for an MLflow store: a server, a database, or any other."""
    if uri.startswith(("http://", "https://")):
        return Server(store)
    return Database(store) if hasattr(store, "engine") else Backend(store)


class _translated:  # noqa: N801 - reads as a phrase; a generator would cost ten times as much
    """Translate exceptions of a store into `Refused` or `Unreachable`."""

    def __enter__(self) -> None:
        self._around = sys.exc_info()[1]  # an exception that is already being handled is not our cause

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if not isinstance(error, Exception):
            return
        does_not_fit = isinstance(_root_of(error, self._around), _BAD_VALUES)  # the value, into the database
        if does_not_fit or is_refusal(error):
            raise Refused(with_kind(error)) from error
        raise Unreachable(with_kind(error)) from error


def is_refusal(error: Exception, *, at_server: bool = False) -> bool:
    """Tell whether MLflow itself has refused a request, and would do so again.

    With `at_server`, only an error of the server itself counts: a proxy may answer 404 to everything.
    """
    if not isinstance(error, RestException if at_server else MlflowException):
        return False
    return error.error_code in _REFUSALS and not _is_passing(error.__cause__)


def _is_passing(cause: BaseException | None) -> bool:
    """Tell whether a database has failed for a passing reason: its pool, its primary, or the connection."""
    errors = sys.modules.get("sqlalchemy.exc")  # a job that logs to a server does not load SQLAlchemy
    if errors is None:
        return False
    is_lost = bool(getattr(cause, "connection_invalidated", False))
    return is_lost or isinstance(cause, (errors.InternalError, errors.TimeoutError))


def _dataset_input(found: Mapping[str, Any]) -> DatasetInput:
    proto = service_pb2.DatasetInput()
    read_proto(found, proto)
    return DatasetInput.from_proto(proto)


def _as_json(value: float) -> float | str:
    return value if value - value == 0 else {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[repr(value)]


def _refusal(text: str) -> str | None:
    """Return the message of an MLflow error; None if the text is not one."""
    try:
        found = orjson.loads(text)
        return f"{found['error_code']}: {found.get('message', '')}"
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
        return None


def _not_taken(status: int, refusal: str | None, text: str) -> Exception:
    """Return the exception for a status other than 200; `refusal` is MLflow's own message, if there is one."""
    said = f"it answers {status} {(refusal or _gist(text))[:200]}".rstrip()
    if refusal is None and status == _TOO_LARGE:
        return RefusedOnTheWay(said)
    if refusal is None and 400 <= status < 500 and status not in _NOT_ABOUT_CONTENT:
        return Blocked(said)
    return Unreachable(said)


def _gist(page: str) -> str:
    """Return the title of a page, or its first words."""
    titled = _TITLE.search(page)
    words = titled[1] if titled else _MARKUP.sub(" ", page)
    return " ".join(words.split())[:80]


def _root(error: BaseException, around: BaseException | None) -> str:
    """Return the message of the root cause; MLflow, requests and urllib3 each wrap it in a message of their own."""
    return first_line(_root_of(error, around))


def _root_of(error: BaseException, around: BaseException | None) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None and cause is not around:
        error = cause
    return error
