"""One flat, strictly valid JSON object per line; the fields are described in `docs/log-schema.md`."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from autogen_team._redact import MASK, is_secret_name, mask_value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from autogen_team._logs.text import Record

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
"""The fields of each line; a bound value with one of these names gets the prefix `extra_`."""

_DEEPEST = 20
_SHORT = 10**7
"""Numbers below this are not compared with known secrets."""
_SHORTEST_SECRET = 8
"""Length in characters; shorter field names are not searched for secrets."""
_LARGEST = 2**63 - 1


class JsonLines:
    """Renders records as JSON lines."""

    def __init__(self, redact: Callable[[str], str] | None) -> None:
        import orjson

        self._dumps = orjson.dumps
        self._options = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_APPEND_NEWLINE
        self._redact = redact
        self.masked: tuple[Any, str] = (None, "")
        """The message of the last line, and the same masked."""
        self._last = (datetime.min.replace(tzinfo=UTC), "")
        self._other = other
        if redact is not None:
            self._other = lambda value: mask_value(other(value), redact)
            self._name = lru_cache(lambda name: name if len(name) < _SHORTEST_SECRET else redact(name))
            self._is_secret = lru_cache(is_secret_name)
            self._facts: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {})

    def __call__(self, record: Record, facts: Mapping[str, Any], exception: str) -> bytes:
        """Return the record as a line with its newline, secrets masked; works for any value."""
        extra = record["extra"]
        message = record["message"]
        redact = self._redact
        if redact is not None:  # before escaping, so that each value is checked unescaped
            if type(message) is str:
                before, message = message, redact(message)
                self.masked = before, message  # in one step, because threads share it
            exception = redact(exception) if exception else exception
            if facts is not self._facts[0]:  # all lines of a run have the same run fields
                self._facts = facts, {name: redact(value) for name, value in facts.items()}
            facts = self._facts[1]
            if extra:
                try:
                    extra = {self._name(name): self._masked(name, value, redact) for name, value in extra.items()}
                except Exception:  # another thread changes a value, or it cannot be read
                    extra = {self._name(name): mask_value(plain(value), redact, name) for name, value in extra.items()}
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
            return self._dumps(fields, self._other, self._options)
        except Exception:
            return self._fallback_line(fields)

    def _masked(self, name: str, value: Any, redact: Callable[[str], str]) -> Any:
        """Return the value that is bound to `name`, secrets masked."""
        kind = type(value)
        if kind is float or value is None or kind is bool:
            return value
        if kind is str and not self._is_secret(name):
            return redact(value)
        if kind is int and not self._is_secret(name):
            # A number may be the value of a secret variable.
            return value if -_SHORT < value < _SHORT or redact(str(value)) == str(value) else MASK
        return mask_value(value, redact, name)

    def _fallback_line(self, fields: Mapping[str, Any]) -> bytes:
        """Return the line even if JSON cannot hold a field or its repr fails; approximate only that field."""
        found: dict[str, Any] = {}
        for name, value in fields.items():
            try:
                self._dumps({name: value}, self._other, self._options)
            except Exception:
                found |= plain({name: value})
            else:
                found[name] = value
        try:
            return self._dumps(found, self._other, self._options)
        except Exception:  # another thread changes a value
            return self._dumps(plain(found), None, self._options)

    def _time(self, moment: Any) -> str:
        second, shown = self._last
        past = moment - second
        if past.seconds or past.days:
            second = moment.astimezone(UTC).replace(microsecond=0)
            shown = second.strftime("%Y-%m-%dT%H:%M:%S.")
            self._last = second, shown  # in one step, because threads share it
        return f"{shown}{moment.microsecond:06d}Z"


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    while name in RESERVED:
        name = f"extra_{name}"
        while name in taken:
            name = f"extra_{name}"
    return name


def other(value: Any) -> Any:
    """Return a stand-in for a value that JSON lacks: the number of a numpy scalar, otherwise the repr."""
    if isinstance(value, float):
        return float(value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return repr(value)


def plain(value: Any, depth: int = 0) -> Any:
    """Return the value converted to JSON types only; never raises.

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
        except Exception:  # another thread changes the value
            return as_text(value)
    return as_text(value)


def as_text(value: Any) -> str:
    """Return the value as text that UTF-8 can hold: a string itself, anything else as its repr; never raises."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception:
        text = f"<{type(value).__name__} whose repr fails>"
    return str.encode(text, "utf-8", "backslashreplace").decode()
