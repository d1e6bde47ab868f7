"""An MLflow server as a backend, through its REST API; nothing here loads MLflow."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, TypeAlias
from urllib.parse import quote

import orjson

from autogen_team._process.threads import in_parallel
from autogen_team._ship import trace_entries
from autogen_team._ship.backend import OPENED_BY, Batch, Blocked, Refused, RefusedOnTheWay, RunState, Unreachable
from autogen_team._ship.error_text import first_line, root_of

PATIENCE = 30.0
"""Maximum seconds for the answer to one request."""
HEADERS = {"Content-Type": "application/json"}
_FINAL = frozenset({400, 403, 404, 409, 413, 422})
"""HTTP statuses of an MLflow server after which another attempt would fail, too."""
_TOO_LARGE = 413
_SKEW = 2.0
"""Maximum difference in seconds that equal clocks may show: a header has whole seconds, and an answer takes time."""
_NOT_ABOUT_CONTENT = frozenset({401, 404, 407, 408, 425, 429})
"""HTTP statuses below 500 that are not about the content: a login is missing, or the server is down or busy."""
_UNKNOWN = frozenset({404, 501})
_SPANS = "/v1/traces"
"""Path at which an MLflow server of version 3.4 or newer accepts spans by OpenTelemetry's protocol."""
_AT_ONCE, _PORTION = 8, 64
"""Number of parallel requests for traces, because each trace takes one (MLflow's own client sends ten), and number of
spans after which a request is full."""
_LONGEST_METADATA, _LONGEST_TRACE_TAG = 250, 4096
"""Lengths in characters to which MLflow's own client cuts the names and metadata of traces, and their tags."""
_TITLE = re.compile(r"<title[^>]*>([^<]*)", re.IGNORECASE)
_MARKUP = re.compile(r"<[^>]*>")
_BUSY = ("BAD_REQUEST: QueuePool limit", "BAD_REQUEST: (psycopg2.errors.ReadOnlySqlTransaction)")
"""Errors of a server that waited longer than 30 s for a connection to its database, or whose database has lost its
primary. MLflow reports almost every error of SQLAlchemy as a bad request. The server would accept the same request
later."""


class Unknown(Unreachable):
    """The server, or a proxy in front of it, does not know a request."""


class Answer(Protocol):
    """The attributes of a `requests` response that are used here."""

    status_code: int

    @property
    def text(self) -> str:
        """The body as text."""
        ...

    @property
    def content(self) -> bytes:
        """The body as bytes."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, with case-insensitive names."""
        ...


Send: TypeAlias = Callable[..., Answer]
"""Sends one request to a path of the server, with a JSON body, or GET without a body; waits at most `PATIENCE` seconds.

The optional third and fourth arguments are another method and other headers.
"""


def sender(login: Callable[[], Mapping[str, Any]]) -> Send:
    """Return a function that sends with the credentials that `login` returns; see `mlflow_backend.login_of`."""
    import requests  # takes as long as all other imports here together

    session = requests.Session()
    session.trust_env = False  # the environment is not the job's; the job has read its own

    def send(path: str, body: bytes | None, method: str | None = None, headers: Mapping[str, str] = HEADERS) -> Answer:
        known = login()
        auth = None if known["auth"] is None else tuple(known["auth"])
        cert = tuple(known["cert"]) if isinstance(known["cert"], list) else known["cert"]
        return session.request(
            method or ("GET" if body is None else "POST"),
            known["url"] + path,
            data=body,
            headers={**known["headers"], **headers},
            auth=auth,
            proxies=known["proxies"],
            verify=known["verify"],
            cert=cert,
            timeout=PATIENCE,
        )

    return send


class Server:
    """An MLflow server, through its REST API."""

    def __init__(self, send: Send) -> None:
        """Send each request with `send`, which adds address, credentials, certificates and headers."""
        self._send = send
        self._date = ""
        """Time of the last answer by the server's clock, as an HTTP header."""
        self._heard = 0.0
        """The same time by this machine's clock, in seconds since 1970."""

    @property
    def ahead(self) -> float:
        """Seconds by which the server's clock is ahead of this machine's; 0 if unknown."""
        with suppress(ValueError):
            found = parsedate_to_datetime(self._date).timestamp() - self._heard
            return found if abs(found) > _SKEW else 0.0
        return 0.0

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
        """Return whether the server itself answers a request about this run without content."""
        try:
            self._post("runs/log-batch", run_id=run_id)
        except Refused:
            return True
        except Unreachable:
            return False
        return True

    def look(self, run_id: str) -> RunState:
        """Return status, tags and parameters of a run."""
        run = self._ask(f"runs/get?run_id={run_id}", None)["run"]
        tags, params = (
            {one["key"]: one.get("value", "") for one in run["data"].get(kind, ())} for kind in ("tags", "params")
        )
        return RunState(run["info"]["status"], tags, params)

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

    def log_spans(
        self, experiment_id: str, spans: Sequence[Mapping[str, Any]], resource: Mapping[str, Any] | None
    ) -> None:
        """Log spans as `Span.to_dict` of MLflow writes them; a span that the server has is replaced."""
        from autogen_team._ship import otlp_request  # most jobs have no traces

        headers = {"Content-Type": "application/x-protobuf", "x-mlflow-experiment-id": experiment_id}

        def send(some: Sequence[Mapping[str, Any]]) -> None:
            with self._only_by_newer_servers("spans"):
                self._exchange(_SPANS, otlp_request.encode(some, resource or {}), "POST", headers)

        in_parallel(send, trace_entries.portions(spans, _PORTION), at_once=_AT_ONCE, name="autogen_team-spans")

    def log_traces(self, infos: Sequence[Mapping[str, Any]]) -> None:
        """Log the infos of traces that have ended, as MLflow's REST API writes them; the server may have some."""
        in_parallel(self._log_trace, infos, at_once=_AT_ONCE, name="autogen_team-traces")

    def _log_trace(self, info: Mapping[str, Any]) -> None:
        cut = {
            **info,
            "trace_metadata": _cut(info.get("trace_metadata", {}), _LONGEST_METADATA),
            "tags": _cut(info.get("tags", {}), _LONGEST_TRACE_TAG),
        }
        with self._only_by_newer_servers("traces in this format"):
            self._exchange("/api/3.0/mlflow/traces", orjson.dumps({"trace": {"trace_info": cut}}))

    def tag_trace(self, trace_id: str, key: str, value: str) -> None:
        """Set a tag of a trace."""
        body = orjson.dumps({"key": key, "value": value})
        self._exchange(f"/api/2.0/mlflow/traces/{quote(trace_id, safe='')}/tags", body, "PATCH")

    def link_prompts(self, trace_id: str, prompts: Sequence[Mapping[str, Any]]) -> None:
        """Link versions of prompts to a trace; do nothing if the server cannot."""
        named = [{"name": one["name"], "version": str(one["version"])} for one in prompts]
        with suppress(Refused), self._only_by_newer_servers("links to prompts"):
            self._post("traces/link-prompts", trace_id=trace_id, prompt_versions=named)

    @contextmanager
    def _only_by_newer_servers(self, what: str) -> Iterator[None]:
        """Raise `Refused` if the server is up but does not know the request.

        A proxy whose server is down does not know it either, so another request checks the server.
        """
        try:
            yield
        except Unknown as unknown:
            if self.takes_others(""):
                raise Refused(f"this MLflow server does not accept {what}: {unknown}") from None
            raise

    def _post(self, endpoint: str, **body: Any) -> dict[str, Any]:
        return self._ask(endpoint, orjson.dumps(_given(body)))

    def _ask(self, endpoint: str, body: bytes | None) -> dict[str, Any]:
        answer = self._exchange(f"/api/2.0/mlflow/{endpoint}", body)
        try:
            found: dict[str, Any] = orjson.loads(answer.content or b"{}")
        except orjson.JSONDecodeError:  # some firewalls report a blocked request with status 200
            raise Blocked(f"it answered with a page instead of JSON: {_gist(answer.text)!r}") from None
        return found

    def _exchange(self, path: str, body: bytes | None, *more: Any) -> Answer:
        """Send a request, and return the answer with status 200."""
        around = sys.exc_info()[1]
        try:
            answer = self._send(path, body, *more)
        except Exception as error:
            raise Unreachable(first_line(root_of(error, around))) from None
        self._date, self._heard = answer.headers.get("Date", ""), time.time()
        # A proxy whose server is down answers 404 to everything, so only MLflow's own refusals are final.
        refusal = None if answer.status_code == 200 else _refusal(answer.text)
        if refusal is not None and answer.status_code in _FINAL and not refusal.startswith(_BUSY):
            raise Refused(refusal)
        if answer.status_code != 200:
            raise _not_taken(answer.status_code, refusal, answer.text)
        return answer


def _cut(values: Mapping[str, str], longest: int) -> dict[str, str]:
    return {key[:_LONGEST_METADATA]: value[:longest] for key, value in values.items()}


def _given(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


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
    if status in _UNKNOWN:
        return Unknown(said)
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
