"""Sends log lines to an OpenTelemetry collector: severity, body, run, experiment, trace and span.

The logging call masks a line and writes it to a journal as JSON. Another process encodes and sends it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from autogen_team._logs.jsonl import as_text, plain
from autogen_team._logs.text import without_colour
from autogen_team._process import Undo
from autogen_team._redact import mask_value
from autogen_team._ship import collector, lines
from autogen_team.errors import ConfigurationError

if TYPE_CHECKING:
    from autogen_team._logs.text import Record

OWN = "opentelemetry"
"""Prefix of OpenTelemetry's own loggers. Their lines are not sent: a failure would log another line."""
_NUMBERS = ((50, 21), (40, 17), (30, 13), (20, 9), (10, 5), (0, 1))
"""Lowest loguru level of each severity number: FATAL, ERROR, WARN, INFO, DEBUG, TRACE."""
_RENAMED = {"run_id": "mlflow.run_id", "run_name": "mlflow.run_name", "experiment": "mlflow.experiment"}
_IDS = {"trace_id": "trace", "span_id": "span"}


class Lines:
    """Log lines on their way to the collector."""

    def __init__(self, outbox: lines.Lines, redact: Callable[[str], str] | None) -> None:
        self._outbox = outbox
        self._append = outbox.append
        self._redact = redact
        self._facts: tuple[Mapping[str, Any], str, str] = ({}, "", "")

    def put(self, record: Record, facts: Mapping[str, Any], trace: str, message: str) -> None:
        """Send a record with its run, its span, its traceback and its masked message; never raises."""
        try:
            body = self._body(record, facts, trace, message)
            if body:
                self._append(body)
        except Exception as error:  # the disk is full, or a bound value changes or fails
            self._outbox.lose(error)
        if self._outbox.thread is None:
            self._outbox.start()

    def _body(self, record: Record, facts: Mapping[str, Any], trace: str, message: str) -> str:
        """Return the body of an entry of the journal, secrets masked; empty if the line is not for the collector."""
        extra, level = record["extra"], record["level"]
        head = _of_place(
            level.no, level.name, record["name"], record["function"], record["line"], record["thread"].name
        )
        if not head:
            return ""
        if facts is not self._facts[0] and (facts or self._facts[0]):  # all lines of a run have the same run fields
            self._facts = facts, *self._of_facts(facts)
        _, of_run, shown = self._facts
        if extra or trace:
            shown += _object(f"{self._more(record, extra, trace)}{of_run}")
        # Reading the clock again takes a tenth of the time of a conversion; the result differs by microseconds.
        return f'{head}{shown}"t":{time.time_ns()},"body":{_text(message)}}}'

    def _of_facts(self, facts: Mapping[str, Any]) -> tuple[str, str]:
        """Return the members for the values of an entry, and the part of an entry without other values."""
        if self._redact is not None:
            facts = {name: self._redact(str(value)) for name, value in facts.items()}
        of_run = _members({_RENAMED.get(name, name): value for name, value in facts.items() if name not in _IDS})
        ids = {_IDS[name]: str(value).removeprefix("tr-") for name, value in facts.items() if name in _IDS}
        return of_run, _members(ids) + _object(of_run)

    def _more(self, record: Record, extra: Mapping[str, Any], trace: str) -> str:
        """Return the bound values and the exception of a record."""
        found = {name: value for name, value in plain(extra).items() if value is not None}
        if trace:
            found["exception.stacktrace"] = as_text(without_colour(trace))
            error = record["exception"]
            if error is not None and error.type is not None:
                found["exception.type"] = error.type.__qualname__
        return _members(found if self._redact is None else mask_value(found, self._redact))


def start(redact: Callable[[str], str] | None, state: Path) -> tuple[Lines, Undo]:
    """Return an object that sends lines, and a function that waits for the rest and stops.

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
    from opentelemetry.sdk.resources import Resource

    shared = plain(dict(Resource.create().attributes))
    if redact is not None:
        shared = mask_value(shared, redact)
    with ExitStack() as undo:
        outbox = lines.Lines(state, lambda: {**shared, "process.pid": os.getpid()})
        undo.callback(outbox.finish)
        return Lines(outbox, redact), undo.pop_all().close


@lru_cache(maxsize=1024)
def _of_place(number: int, level: str, logger: str | None, function: str, line: int, thread: str) -> str:
    """Return the beginning of an entry, the same for all lines of a place in the code; empty for `OWN`."""
    if (logger or "").startswith(OWN):
        return ""
    severity = next((severity for lowest, severity in _NUMBERS if number >= lowest), 1)
    place = [logger or "", function, line, thread]
    return _members(plain({"op": "line", "severity": severity, "level": level, "place": place}))


def _members(values: Mapping[str, Any]) -> str:
    """Return the members of a JSON object, each with a comma; a later member of the same name replaces it."""
    return orjson.dumps(values).decode()[1:-1] + "," if values else ""


def _object(members: str) -> str:
    """Return the member `values` with these members; empty if there are none."""
    return f'"values":{{{members[:-1]}}},' if members else ""


def _text(text: str) -> str:
    try:
        return orjson.dumps(text).decode()
    except TypeError:  # a lone surrogate
        return orjson.dumps(as_text(text)).decode()
