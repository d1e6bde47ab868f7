"""One flat, strictly valid JSON object per line; the fields are described in `docs/log-schema.md`."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from autogen_team.io._logs.text import Record

RESERVED = frozenset(
    {
        "time",
        "level",
        "message",
        "logger",
        "module",
        "function",
        "line",
        "process",
        "thread",
        "exception",
    }
)
"""The fields that each line has; a bound value of such a name gets `extra_` before it."""

_DEEPEST = 20
_SHORT = 10**7
"""Numbers below it are no secrets."""
_ASSIGNMENT = '"{}":"correct1horse2battery3staple"'
"""A value that is masked if and only if its name says so."""
_LARGEST = 2**63 - 1


class JsonLines:
    """Turns records into lines."""

    def __init__(self, redact: Callable[[str], str] | None) -> None:
        import orjson

        self._dumps = orjson.dumps
        self._loads = orjson.loads
        self._options = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_APPEND_NEWLINE
        self._redact = redact
        self._last = (datetime.min.replace(tzinfo=UTC), "")
        if redact is not None:
            self._is_suspicious = lru_cache(lambda name: redact(_ASSIGNMENT.format(name)) != _ASSIGNMENT.format(name))
            self._facts: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {})

    def __call__(self, record: Record, facts: Mapping[str, Any], exception: str) -> bytes:
        """Return the line, secrets masked, with its newline; there is one, whatever the values are."""
        extra = record["extra"]
        message = record["message"]
        redact = self._redact
        whole = redact
        if redact is not None and not (extra and self._needs_care(extra)):
            # Much less to search than in the line as a whole, and all that can hold a secret.
            whole = None
            message = redact(message) if type(message) is str else message
            exception = redact(exception) if exception else exception
            if facts is not self._facts[0]:  # a run has the same ones for each of its lines
                self._facts = facts, {name: redact(value) for name, value in facts.items()}
            facts = self._facts[1]
            if extra:
                extra = {name: redact(value) if type(value) is str else value for name, value in extra.items()}
        fields: dict[str, Any] = {
            "time": self._time(record["time"]),
            "level": record["level"].name,
            "message": message,
            "logger": record["name"],
            "module": record["module"],
            "function": record["function"],
            "line": record["line"],
            "process": record["process"].id,
            "thread": record["thread"].name,
            "exception": exception.strip("\n") or None,
            **facts,
        }
        if extra:
            for name, value in extra.items():
                fields[_free_name(name, extra) if name in RESERVED else name] = value
        try:
            line = self._dumps(fields, other, self._options)
        except Exception:
            line = self._in_spite_of(fields)
        return line if whole is None else self._masked(line, fields, whole)

    def _in_spite_of(self, fields: Mapping[str, Any]) -> bytes:
        """Return the line though JSON cannot hold a field, or its repr fails: that one is said as well as it can be."""
        found: dict[str, Any] = {}
        for name, value in fields.items():
            try:
                self._dumps({name: value}, other, self._options)
            except Exception:
                found |= plain({name: value})
            else:
                found[name] = value
        try:
            return self._dumps(found, other, self._options)
        except Exception:  # somebody changes a value meanwhile
            return self._dumps(plain(found), None, self._options)

    def _needs_care(self, extra: Mapping[str, Any]) -> bool:
        """Tell whether a name or a value is such that secrets can only be found in the line as a whole."""
        for name, value in extra.items():
            kind = type(value)
            if not (
                kind is str
                or kind is float
                or (kind is int and -_SHORT < value < _SHORT)
                or kind is bool
                or value is None
            ):
                return True
            if self._is_suspicious(name):
                return True
        return False

    def _time(self, moment: Any) -> str:
        second, shown = self._last
        past = moment - second
        if past.seconds or past.days:
            second = moment.astimezone(UTC).replace(microsecond=0)
            shown = second.strftime("%Y-%m-%dT%H:%M:%S.")
            self._last = second, shown  # in one step, because threads share it
        return f"{shown}{moment.microsecond:06d}Z"

    def _masked(self, line: bytes, fields: Mapping[str, Any], redact: Callable[[str], str]) -> bytes:
        text = line.decode()
        masked = redact(text)
        if masked == text:
            return line
        if not self._is_valid(masked):
            # A secret that was a number, say: without quotes around it, the mask is no JSON.
            texts = {name: as_text(value) for name, value in fields.items()}
            masked = redact(self._dumps(texts, None, self._options).decode())
            if not self._is_valid(masked):
                return self._dumps({name: redact(text) for name, text in texts.items()}, None, self._options)
        return masked.encode()

    def _is_valid(self, line: str) -> bool:
        try:
            self._loads(line)
        except ValueError:
            return False
        return True


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    while name in RESERVED:
        name = f"extra_{name}"
        while name in taken:
            name = f"extra_{name}"
    return name


def other(value: Any) -> Any:
    """Return what stands for a value that JSON does not have: a number for one of numpy's, otherwise the repr."""
    if isinstance(value, float):
        return float(value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return repr(value)


def plain(value: Any, depth: int = 0) -> Any:
    """Return the value made of nothing but what JSON has; never raises.

    >>> plain({1: float("nan"), "set": {2}, "big": 2**64})
    {'1': None, 'set': '{2}', 'big': '18446744073709551616'}
    """
    if isinstance(value, str):
        return str.encode(value, "utf-8", "backslashreplace").decode()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and type(value) is int:
        return value if -_LARGEST <= value <= _LARGEST else as_text(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if depth < _DEEPEST:
        try:
            if isinstance(value, dict):
                return {as_text(key): plain(item, depth + 1) for key, item in list(value.items())}
            if isinstance(value, (list, tuple)):
                return [plain(item, depth + 1) for item in list(value)]
        except Exception:  # somebody changes it meanwhile
            return as_text(value)
    return as_text(value)


def as_text(value: Any) -> str:
    """Return the value as text that UTF-8 can hold: a string itself, otherwise its repr; never raises."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception:
        text = f"<{type(value).__name__} whose repr fails>"
    return str.encode(text, "utf-8", "backslashreplace").decode()
