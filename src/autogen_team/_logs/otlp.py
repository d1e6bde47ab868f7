"""Sends log lines to an OpenTelemetry collector: severity, body, run, experiment, trace and span.

A separate thread converts, masks and sends each line. The logging call only notes the run and the span of the line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from autogen_team._logs.jsonl import plain
from autogen_team._logs.text import without_colour
from autogen_team._process import Undo
from autogen_team._redact import mask_value
from autogen_team._ship import collector
from autogen_team.errors import ConfigurationError

if TYPE_CHECKING:
    from autogen_team._logs.text import Record

OWN = "opentelemetry"
"""Prefix of OpenTelemetry's own loggers. Their lines are not sent: a failure would log another line."""
_NUMBERS = ((50, 21), (40, 17), (30, 13), (20, 9), (10, 5), (0, 1))
"""Lowest loguru level of each severity number: FATAL, ERROR, WARN, INFO, DEBUG, TRACE."""
_RENAMED = {"run_id": "mlflow.run_id", "run_name": "mlflow.run_name", "experiment": "mlflow.experiment"}
_SPAN = ("trace_id", "span_id")


class Lines:
    """Log lines on their way to the collector."""

    def __init__(self, outbox: collector.Outbox) -> None:
        self._outbox = outbox
        self._put = outbox.put

    def put(self, record: Record, facts: Mapping[str, Any], trace: str) -> None:
        """Send a record with its run, its span and its traceback."""
        if not (record["name"] or "").startswith(OWN):
            self._put((record, facts, trace))


def start(redact: Callable[[str], str] | None) -> tuple[Lines, Undo]:
    """Return an object that sends lines, and a function that sends the rest and stops.

    Raises:
        MissingExtraError: the exporter is not installed.
        ConfigurationError: no collector is set, or its protocol is not supported.

    """
    if collector.endpoint("logs") is None:
        raise ConfigurationError(
            "otlp=True sends log lines to an OpenTelemetry collector, but none is configured: set "
            "OTEL_EXPORTER_OTLP_ENDPOINT, such as http://collector:4318"
        )
    collector.check("logs")
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter

    with ExitStack() as undo:
        outbox = collector.Outbox("logs", OTLPLogExporter(), _converter(redact))
        undo.callback(outbox.finish)
        return Lines(outbox), undo.pop_all().close


def _converter(redact: Callable[[str], str] | None) -> Callable[[Any], Any]:
    from opentelemetry._logs import LogRecord, SeverityNumber
    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import TraceFlags

    resource = Resource.create({"process.pid": os.getpid()})
    scope = InstrumentationScope("autogen_team")

    def convert(item: tuple[Record, Mapping[str, Any], str]) -> Any:
        record, facts, trace = item
        body, trace = str(record["message"]), without_colour(trace)
        extra = plain(record["extra"])
        if redact is not None:
            body, trace = redact(body), redact(trace)
            extra = mask_value(extra, redact)
        number = next(number for lowest, number in _NUMBERS if record["level"].no >= lowest)
        attributes = {
            **{name: value for name, value in extra.items() if value is not None},
            **{_RENAMED.get(name, name): value for name, value in facts.items() if name not in _SPAN},
            "logger.name": record["name"] or "",
            "code.function.name": record["function"],
            "code.line.number": record["line"],
            "thread.name": record["thread"].name,
        }
        if trace:
            attributes["exception.stacktrace"] = trace
            error = record["exception"]
            if error is not None and error.type is not None:
                attributes["exception.type"] = error.type.__qualname__
        moment = int(record["time"].timestamp() * 1e9)
        return ReadableLogRecord(
            log_record=LogRecord(
                timestamp=moment,
                observed_timestamp=moment,
                trace_id=_number(facts.get("trace_id", "")),
                span_id=_number(facts.get("span_id", "")),
                trace_flags=TraceFlags(TraceFlags.SAMPLED),
                severity_text=record["level"].name,
                severity_number=SeverityNumber(number),
                body=body,
                attributes=attributes,
            ),
            resource=resource,
            instrumentation_scope=scope,
        )

    return convert


def _number(identity: str) -> int:
    """Return the id of a trace or span as a number, as OpenTelemetry expects it; 0 if there is none."""
    try:
        return int(identity.removeprefix("tr-"), 16)
    except ValueError:
        return 0
