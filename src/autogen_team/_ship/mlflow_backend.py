"""MLflow's own stores as backends, and requests to servers by MLflow's own client."""

from __future__ import annotations

import base64
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import requests
from mlflow.entities import (
    DatasetInput,
    LoggedModelInput,
    Metric,
    Param,
    RunStatus,
    RunTag,
    Span,
    TraceInfo,
    ViewType,
)
from mlflow.entities.model_registry import PromptVersion
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
from mlflow.tracking import MlflowClient
from mlflow.tracking.request_header import registry as _headers
from mlflow.utils.proto_json_utils import parse_dict
from mlflow.utils.rest_utils import http_request
from mlflow.utils.workspace_utils import WORKSPACE_HEADER_NAME
from opentelemetry.sdk.resources import Resource

from autogen_team._process.private_names import find
from autogen_team._ship import mlflow_names, sql_bulk
from autogen_team._ship.backend import OPENED_BY, Backend, Batch, Refused, RunState, Unreachable
from autogen_team._ship.error_text import root_of, with_kind
from autogen_team._ship.rest_backend import HEADERS, PATIENCE, Answer, Server
from autogen_team.errors import ConfigurationError

_report = logging.getLogger("autogen_team")
ask: Callable[..., Any] = http_request
_prompt: Callable[..., Any] = PromptVersion
resolve_headers: Callable[[], dict[str, str]] = _headers.resolve_request_headers
read_proto: Callable[..., None] = parse_dict

_REFUSALS = frozenset(
    ErrorCode.Name(code)
    for code in (BAD_REQUEST, INVALID_PARAMETER_VALUE, INVALID_STATE, RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST)
)
_BAD_VALUES = (OverflowError, TypeError, ValueError)


class Store:
    """An MLflow store of any kind, called through its own methods."""

    ahead = 0.0

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
        """Log metrics, parameters and tags; an empty batch only checks whether the run accepts any."""
        with _translated():
            self._log(batch)

    def takes_others(self, run_id: str) -> bool:  # noqa: ARG002 - `Server` needs it
        """Return whether the store itself answers a request about this run without content."""
        return True

    def look(self, run_id: str) -> RunState:
        """Return status, tags and parameters of a run."""
        with _translated():
            run = self.store.get_run(run_id)
            return RunState(run.info.status, dict(run.data.tags), dict(run.data.params))
        raise AssertionError  # `_translated` translates every exception

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

    def log_spans(
        self, experiment_id: str, spans: Sequence[Mapping[str, Any]], resource: Mapping[str, Any] | None
    ) -> None:
        """Log spans as `Span.to_dict` of MLflow writes them; a span that the store has is replaced."""
        with _translated():
            self.store.log_spans(experiment_id, [_span(span, resource) for span in spans])

    def log_traces(self, infos: Sequence[Mapping[str, Any]]) -> None:
        """Log the infos of traces that have ended, as MLflow's REST API writes them; the store may have some."""
        for info in infos:
            with _translated():
                proto = service_pb2.TraceInfoV3()
                read_proto(info, proto)
                self.store.start_trace(TraceInfo.from_proto(proto))

    def tag_trace(self, trace_id: str, key: str, value: str) -> None:
        """Set a tag of a trace."""
        with _translated():
            self.store.set_trace_tag(trace_id, key, value)

    def link_prompts(self, trace_id: str, prompts: Sequence[Mapping[str, Any]]) -> None:
        """Link versions of prompts to a trace; do nothing if the store cannot."""
        named = [_prompt(one["name"], one["version"], template="") for one in prompts]
        with suppress(Refused, NotImplementedError, AttributeError):
            self._link_prompts(trace_id, named)

    def _link_prompts(self, trace_id: str, prompts: list[Any]) -> None:
        with _translated():
            self.store.link_prompts_to_trace(trace_id, prompts)

    def _log(self, batch: Batch) -> None:
        metrics = [Metric(**metric) for metric in batch.metrics]
        params = [Param(key, value) for key, value in batch.params.items()]
        self.store.log_batch(batch.run_id, metrics, params, [RunTag(*tag) for tag in batch.tags.items()])


class Database(Store):
    """A database that MLflow writes through SQLAlchemy."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self._is_as_expected = mlflow_names.SQL.works()

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
            except (AttributeError, ImportError, TypeError):  # another version: MLflow's method is slower, but works
                _report.info("MLflow's tables are not as expected; using MLflow's own store for metrics", exc_info=True)
                self._is_as_expected = False
        return False


def client(tracking_uri: str, registry_uri: str) -> MlflowClient:
    """Return a client bound to these stores, whatever MLflow's own settings say."""
    return MlflowClient(tracking_uri=tracking_uri, registry_uri=registry_uri)


def plain_store(uri: str, artifact_uri: str | None = None) -> Any:
    """Return MLflow's own store for the URI, even while a replacement is installed.

    Raises:
        ConfigurationError: this version of MLflow has changed how it looks up its stores.

    """
    stores = mlflow_names.STORES
    if not stores.works():
        versions = stores.library.versions
        raise ConfigurationError(f"{stores.lacking(list(stores.names))}: install MLflow {versions}")
    # A replacement is an attribute of the registry object; the registry's class is MLflow's own.
    registry = find(stores.names[0])
    return type(registry)._get_store_with_resolved_uri(registry, uri, artifact_uri)  # noqa: SLF001 - see above


def hard_delete_of(uri: str) -> Callable[[str], object] | None:
    """Return the function that permanently deletes a run of this store by its id; None for a server."""
    store = plain_store(uri)
    if hasattr(store, "engine"):
        mlflow_names.HARD_DELETE.works()  # reports a missing name
    found: Callable[[str], object] | None = getattr(store, "_hard_delete_run", None)  # what `mlflow gc` calls
    return found


def of(store: Any, uri: str) -> Backend:
    """Return the backend for an MLflow store: a server, a database, or any other."""
    if uri.startswith(("http://", "https://")):
        return Server(partial(_send, store))
    return Database(store) if hasattr(store, "engine") else Store(store)


def _send(
    store: Any, path: str, body: bytes | None, method: str | None = None, headers: Mapping[str, str] = HEADERS
) -> Answer:
    """Send a request with MLflow's own credentials, certificates and headers."""
    answer: Answer = ask(
        store.get_host_creds(),
        path,
        method or ("GET" if body is None else "POST"),
        max_retries=0,
        timeout=PATIENCE,
        raise_on_status=False,
        extra_headers=dict(headers),
        data=body,
    )
    return answer


def login_of(uri: str) -> dict[str, Any] | None:
    """Return the values needed to send requests to a server as MLflow does; None if only MLflow can send them.

    MLflow itself signs requests for AWS, Databricks and plugins of the group `mlflow.request_auth_provider`.
    """
    known = plain_store(uri).get_host_creds()
    if known.aws_sigv4 or known.auth or known.use_databricks_sdk or getattr(known, "client_secret", None):
        return None
    headers = dict[str, str](resolve_headers())
    if workspace := os.environ.get("MLFLOW_WORKSPACE", "").strip():
        headers.setdefault(WORKSPACE_HEADER_NAME, workspace)
    if getattr(known, "workspace_id", None):
        headers["x-databricks-org-id"] = known.workspace_id
    if known.username and known.password:
        secret = base64.standard_b64encode(f"{known.username}:{known.password}".encode()).decode()
        headers["Authorization"] = f"Basic {secret}"
    elif known.token:
        headers["Authorization"] = f"Bearer {known.token}"
    url = known.host.removesuffix("/")
    from_environment = requests.Session().merge_environment_settings(
        url, {}, None, known.verify, known.client_cert_path
    )
    return {
        "url": url,
        "headers": headers,
        "auth": requests.utils.get_netrc_auth(url),
        "proxies": dict(from_environment["proxies"]),
        "verify": from_environment["verify"],
        "cert": from_environment["cert"],
    }


class _translated:  # noqa: N801 - reads as a phrase; a generator would cost ten times as much
    """Translate exceptions of a store into `Refused` or `Unreachable`."""

    def __enter__(self) -> None:
        self._around = sys.exc_info()[1]  # an exception that is already being handled is not the cause

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if not isinstance(error, Exception):
            return
        does_not_fit = isinstance(root_of(error, self._around), _BAD_VALUES)  # a value, into a column
        if does_not_fit or is_refusal(error):
            raise Refused(with_kind(error)) from error
        raise Unreachable(with_kind(error)) from error


def is_refusal(error: Exception, *, at_server: bool = False) -> bool:
    """Return whether MLflow itself rejected a request, and would reject it again.

    With `at_server`, only an error of the server itself counts: a proxy may answer 404 to everything.
    """
    if not isinstance(error, RestException if at_server else MlflowException):
        return False
    return error.error_code in _REFUSALS and not _is_temporary(error.__cause__)


def _is_temporary(cause: BaseException | None) -> bool:
    """Return whether a database failed for a temporary reason: its pool, its primary or the connection."""
    errors = sys.modules.get("sqlalchemy.exc")  # a job that logs to a server does not load SQLAlchemy
    if errors is None:
        return False
    is_lost = bool(getattr(cause, "connection_invalidated", False))
    return is_lost or isinstance(cause, (errors.InternalError, errors.TimeoutError))


def _span(found: Mapping[str, Any], resource: Mapping[str, Any] | None) -> Span:
    span: Span = Span.from_dict(dict(found))
    if resource and mlflow_names.SPANS.works():
        span._span._resource = Resource(dict(resource))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return span


def _dataset_input(found: Mapping[str, Any]) -> DatasetInput:
    proto = service_pb2.DatasetInput()
    read_proto(found, proto)
    return DatasetInput.from_proto(proto)
