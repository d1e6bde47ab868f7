"""Encode the spans and the log lines of journals as OTLP requests; nothing here loads MLflow."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf has no types
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

_TRACE_ID, _SPAN_ID = (re.compile(rf"[0-9a-f]{{{digits}}}") for digits in (32, 16))
_PLACE = ("logger.name", "code.function.name", "code.line.number", "thread.name")
_SAMPLED = 1
"""The flag of a trace that is recorded."""
_PREFIX = re.compile(r".*(?:tr-|/)")


def encode(spans: Sequence[Mapping[str, Any]], resource: Mapping[str, Any]) -> bytes:
    """Return the request for spans in the form of MLflow's `Span.to_dict`, with the attributes of a resource."""
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    _fill(group.resource.attributes, resource)
    scope = group.scope_spans.add()
    for span in spans:
        _add(scope.spans.add(), span)
    made: bytes = request.SerializeToString()
    return made


def encode_lines(groups: Iterable[tuple[Mapping[str, Any], Iterable[Mapping[str, Any]]]]) -> bytes:
    """Return the request for log lines; each group has the attributes of a resource, and entries of `_logs.otlp`."""
    request = ExportLogsServiceRequest()
    for resource, lines in groups:
        group = request.resource_logs.add()
        _fill(group.resource.attributes, resource)
        scope = group.scope_logs.add()
        scope.scope.name = "autogen_team"
        for line in lines:
            record = scope.log_records.add()
            record.time_unix_nano = record.observed_time_unix_nano = line["t"]
            record.severity_number, record.severity_text = line["severity"], line["level"]
            record.body.string_value = line["body"]
            _fill(record.attributes, {**line.get("values", {}), **dict(zip(_PLACE, line["place"], strict=False))})
            trace_id, span_id = line.get("trace", ""), line.get("span", "")
            if _TRACE_ID.fullmatch(trace_id) and _SPAN_ID.fullmatch(span_id):
                record.trace_id, record.span_id = bytes.fromhex(trace_id), bytes.fromhex(span_id)
                record.flags = _SAMPLED
    made: bytes = request.SerializeToString()
    return made


def rejected_lines(answer: bytes) -> tuple[int, str]:
    """Return how many log lines of an accepted request the collector has rejected, and its reason."""
    try:
        found = ExportLogsServiceResponse.FromString(answer).partial_success
    except DecodeError:  # some collectors answer with text
        return 0, ""
    return found.rejected_log_records, found.error_message


def _add(made: Span, span: Mapping[str, Any]) -> None:
    made.trace_id = base64.b64decode(span["trace_id"])
    made.span_id = base64.b64decode(span["span_id"])
    made.name = span["name"]
    made.start_time_unix_nano = span["start_time_unix_nano"]
    if span.get("end_time_unix_nano"):
        made.end_time_unix_nano = span["end_time_unix_nano"]
    if span.get("parent_span_id"):
        made.parent_span_id = base64.b64decode(span["parent_span_id"])
    made.status.code = Status.StatusCode.Value(span["status"]["code"])
    made.status.message = span["status"].get("message") or ""
    _fill(made.attributes, {name: _decoded(value) for name, value in span["attributes"].items()})
    for event in span.get("events", ()):
        added = made.events.add()
        added.name, added.time_unix_nano = event["name"], event["time_unix_nano"]
        _fill(added.attributes, event.get("attributes") or {})
    for link in span.get("links", ()):
        trace_id, span_id = _PREFIX.sub("", link["trace_id"]), link["span_id"]
        if _TRACE_ID.fullmatch(trace_id) and _SPAN_ID.fullmatch(span_id):  # some clients use longer ids
            linked = made.links.add()
            linked.trace_id, linked.span_id = bytes.fromhex(trace_id), bytes.fromhex(span_id)
            _fill(linked.attributes, link.get("attributes") or {})


def _decoded(value: Any) -> Any:
    """Decode the value of an attribute, which MLflow keeps as JSON; the server encodes it again."""
    try:
        return orjson.loads(value)
    except (TypeError, orjson.JSONDecodeError):  # an attribute of plain OpenTelemetry
        return value


def _fill(attributes: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        added = attributes.add()
        added.key = name
        _set(added.value, value)


def _set(made: Any, value: Any) -> None:
    match value:
        case None:
            pass
        case bool():
            made.bool_value = value
        case str():
            made.string_value = value
        case int() if -(2**63) <= value < 2**63:
            made.int_value = value
        case float():
            made.double_value = value
        case list():
            made.array_value.SetInParent()
            for item in value:
                _set(made.array_value.values.add(), item)
        case dict():
            made.kvlist_value.SetInParent()
            _fill(made.kvlist_value.values, value)
        case _:
            made.string_value = str(value)
