"""An OpenTelemetry collector: its address, requests to it, and a bounded queue of spans for it.

Spans are sent by OpenTelemetry's own exporter, and log lines by `Target`. Both read the standard variables:
`OTEL_EXPORTER_OTLP_ENDPOINT`, `..._TRACES_ENDPOINT`, `..._LOGS_ENDPOINT`, headers, timeout, compression, certificates.
"""

from __future__ import annotations

import gzip
import importlib.util
import logging
import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Literal, Protocol, TypeAlias
from urllib.parse import unquote

from autogen_team._process import grace, saved
from autogen_team._process.forking import start_afresh_after_fork
from autogen_team._process.threads import spawn
from autogen_team._redact import mask, mask_url
from autogen_team._ship.error_text import with_kind
from autogen_team.errors import ConfigurationError, MissingExtraError

Signal: TypeAlias = Literal["traces", "logs"]

MOST = 10_000
"""Maximum number of spans that wait for the collector; beyond it, the oldest are dropped."""
_BATCH = 512
_EVERY = 1.0
"""Seconds for which items are gathered, unless a batch is full."""
_PATIENCE = 5.0
"""Maximum seconds to wait for a collector at the end of the job."""
_EXPORTER = "opentelemetry.exporter.otlp.proto.http"
_HTTP = "http/protobuf"
_TIMEOUT = 10.0
"""Seconds; the default of OpenTelemetry's exporters."""
_PACKERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
_SUPPRESS = "suppress_instrumentation"
"""Key of OpenTelemetry's context that keeps instrumented HTTP clients from tracing the exporter."""

_report = logging.getLogger("autogen_team")


def endpoint(signal: Signal, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the URL of the collector for a signal; None without a collector.

    >>> endpoint("logs", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/"})
    'http://collector:4318/v1/logs'
    """
    own = environment.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", "").strip()
    base = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip()
    return own or (f"{base.rstrip('/')}/v1/{signal}" if base else None)


def check(signal: Signal) -> None:
    """Check that a signal can be sent.

    Raises:
        MissingExtraError: the exporter is not installed.
        ConfigurationError: the variables choose a protocol other than HTTP with protocol buffers.

    """
    if not _is_installed():
        raise MissingExtraError(
            f"sending {signal} to {mask_url(endpoint(signal) or 'a collector')} needs OpenTelemetry's exporter: "
            "pip install 'autogen-team[otel]'"
        )
    for name in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = os.environ.get(name, "").strip()
        if protocol and protocol != _HTTP:
            raise ConfigurationError(f"{name}={protocol!r} is not supported: set it to {_HTTP!r}, usually on port 4318")
        if protocol:
            return


def _is_installed() -> bool:
    with suppress(ImportError):
        return importlib.util.find_spec(_EXPORTER) is not None
    return False


def probe(signal: Signal, timeout: float) -> str:
    """Send an empty request to the collector, and return its URL, masked.

    Raises:
        ConfigurationError: see `check`.
        OSError: the collector cannot be reached, or answers with a status other than 200.

    """
    check(signal)
    target = replace(Target.of(signal), timeout=timeout)
    status, reason, _ = target.sender()(b"")
    if status != HTTPStatus.OK:
        raise ConnectionError(f"it answers {status} {reason}")
    return mask_url(target.url)


Send: TypeAlias = Callable[[bytes], tuple[int, str, bytes]]
"""Send a request in protocol buffers, and return the status of the answer, its reason and its content."""


@dataclass(frozen=True, slots=True)
class Target:
    """A collector for a signal, and how to reach it. Equal targets can share a connection."""

    url: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    timeout: float
    """Seconds."""
    compression: str
    verify: bool | str
    """Whether to verify the certificate of the collector, or the file with the authorities that may sign it."""
    client: tuple[str, str] | str | None
    """File with the certificate of the client, or that file and the file of its key; None for no certificate."""

    @classmethod
    def of(cls, signal: Signal, environment: Mapping[str, str] = os.environ) -> Target:
        """Return the collector that the standard variables name; unusable values are replaced by their defaults."""

        def value(name: str) -> str:
            own = environment.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}", "").strip()
            return own or environment.get(f"OTEL_EXPORTER_OTLP_{name}", "").strip()

        pairs = (part.partition("=") for part in value("HEADERS").split(",") if "=" in part)
        try:
            timeout = float(value("TIMEOUT") or _TIMEOUT)
        except ValueError:
            timeout = _TIMEOUT
        certificate, key = value("CLIENT_CERTIFICATE"), value("CLIENT_KEY")
        return cls(
            url=endpoint(signal, environment) or "",
            headers=tuple((unquote(name.strip()), unquote(text.strip())) for name, _, text in pairs),
            timeout=timeout,
            compression=value("COMPRESSION").lower(),
            verify=value("CERTIFICATE") or True,
            client=(certificate, key) if certificate and key else certificate or None,
        )

    def sender(self) -> Send:
        """Return a function that sends requests over one connection, for one thread.

        It raises OSError if the collector does not answer.
        """
        import requests  # takes as long as all other imports here together

        session = requests.Session()
        session.headers.update(self.headers)
        session.headers["Content-Type"] = "application/x-protobuf"
        pack = _PACKERS.get(self.compression)
        if pack is not None:
            session.headers["Content-Encoding"] = self.compression

        def send(data: bytes) -> tuple[int, str, bytes]:
            packed = data if pack is None else pack(data)
            answer = session.post(
                self.url, packed, timeout=self.timeout, verify=self.verify, cert=self.client, allow_redirects=False
            )
            return answer.status_code, answer.reason, answer.content

        return send


class Exporter(Protocol):
    """The methods of an OpenTelemetry exporter that this module uses."""

    def export(self, batch: Sequence[Any], /) -> Any:
        """Send the items; the result has the `name` SUCCESS if the collector has accepted them."""

    def shutdown(self) -> Any:
        """Stop waiting for the collector."""


class Outbox:
    """Queue of items for a collector, which may be down or silent; only `finish` waits for the collector."""

    def __init__(self, what: Signal, export: Exporter, convert: Callable[[Any], Any]) -> None:
        """Convert each item by `convert`, and send it by `export` on a background thread."""
        self._what = what
        self._exporter = export
        self._convert = convert
        self._place = mask_url(endpoint(what) or "")
        self._has_reported = False
        self.lost = 0
        """Number of items that did not reach the collector."""
        self._sending = 0
        self.after_fork()
        start_afresh_after_fork(self)

    def after_fork(self) -> None:
        """Leave the items to the parent."""
        self._items: deque[Any] = deque()
        self._more = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_ending = self._is_over = False

    def put(self, item: Any) -> None:
        """Add an item; for hot paths."""
        items = self._items
        items.append(item)
        if len(items) >= _BATCH:
            if len(items) > MOST:
                with suppress(IndexError):
                    items.popleft()
                    self.lost += 1
            self._more.set()
        if self._thread is None:
            self._start()

    def finish(self) -> None:
        """Send the rest within a few seconds, and report the number of lost items."""
        deadline = time.monotonic() + grace.bounded(_PATIENCE)
        self._is_ending = True
        self._more.set()
        thread = self._thread
        if thread is not None:
            thread.join(max(0.0, deadline - time.monotonic()))
        left = len(self._items) + self._sending
        if thread is not None and thread.is_alive():
            self._is_over = True
            spawn(self._exporter.shutdown, name="autogen_team-otlp-shutdown")
        if self.lost + left:
            text = "%d %s did not reach the OpenTelemetry collector at %s"
            _report.warning(text, self.lost + left, _NOUNS[self._what], self._place)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._is_ending:
                self._thread = spawn(self._run, name=f"autogen_team-otlp-{self._what}")

    def _run(self) -> None:
        from opentelemetry.context import attach, set_value

        attach(set_value(_SUPPRESS, True))
        # The exporters log each failure; an outbox reports the first one.
        with saved.quiet(_EXPORTER, below=logging.CRITICAL):
            while not self._is_over:
                self._more.wait(_EVERY)
                self._more.clear()
                is_last = self._is_ending
                while self._items and not self._is_over:
                    self._send()
                if is_last:
                    self._exporter.shutdown()
                    return

    def _send(self) -> None:
        batch: list[Any] = []
        with suppress(IndexError):  # the queue is empty
            while len(batch) < _BATCH:
                batch.append(self._items.popleft())
        self._sending = len(batch)
        try:
            result = self._exporter.export([self._convert(item) for item in batch])
            fault = "" if getattr(result, "name", "") == "SUCCESS" else "the export failed"
        except Exception as error:
            fault = mask(with_kind(error))
        self._sending = 0
        if fault:
            self.lost += len(batch)
            if not self._has_reported:
                self._has_reported = True
                text = "%s cannot be sent to the OpenTelemetry collector at %s: %s; the job continues without it"
                _report.warning(text, _NOUNS[self._what], self._place, fault)


_NOUNS = {"traces": "spans", "logs": "log lines"}
