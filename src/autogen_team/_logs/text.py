"""Lines of text: a template in loguru's markup, filled with a record, and made safe for files and terminals.

Logged data can neither forge a line nor send colours to the terminal. Control characters are escaped, and text after a
line break is indented. Only the colours of the template, and those that loguru renders, reach the terminal as escape
sequences.
"""

from __future__ import annotations

import re
import secrets
from string import Formatter
from typing import TYPE_CHECKING, Any

from autogen_team._logs import loguru_internals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Record = dict[str, Any]

_INDENT = "    "
_COMMON_TIME = "YYYY-MM-DD HH:mm:ss.SSS"

# C0 except tab and newline, C1, line and paragraph separators, marks that reverse text direction, lone surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_CONTINUED = re.compile(r"\n(?=[^\n])")
_COLOUR = re.compile(r"\x1b(\[[0-9;]*m)")
_RESET = "[0m"


def make_safe(text: str) -> str:
    r"""Return the text with control characters escaped and everything after its first line indented.

    >>> make_safe("loss\x1b[31m 0.5\n2026-01-01 forged")
    'loss\\x1b[31m 0.5\n    2026-01-01 forged'
    """
    if text.isprintable():
        return text
    return _CONTINUED.sub("\n" + _INDENT, _UNSAFE.sub(_escaped, text).rstrip("\n"))


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode()


def without_colour(text: str) -> str:
    """Return the text without escape sequences for colours."""
    return _COLOUR.sub("", text) if "\x1b" in text else text


class Template:
    """A parsed format of log lines."""

    def __init__(self, format: str) -> None:  # noqa: A002 - the user story's word
        """Parse the format.

        Raises:
            ValueError: markup or braces are not well formed.

        """
        self._format = format
        self._plain, self._times, self._wants_extra = _prepare(loguru_internals.without_markup(format))
        self._coloured: dict[str, tuple[str, str]] = {}
        # Stands for the escape character until the data has been made safe; data cannot guess it.
        self._mark = "".join(chr(0xE000 + secrets.randbelow(6400)) for _ in range(3))

    @property
    def wants_extra(self) -> bool:
        """Whether the format shows bound values, which include the facts about a run."""
        return self._wants_extra

    def plain(self, record: Record, extra: Mapping[str, Any] | None, exception: str) -> str:
        """Return the line without colours and newline; the caller still has to make it safe."""
        text = self._plain.format_map(self._values(record, extra, exception))
        return f"{text}\n{exception}" if exception else text

    def coloured(self, record: Record, extra: Mapping[str, Any] | None, message: str, exception: str) -> str:
        """Return the line for `paint`, not yet safe; `message` and `exception` may hold loguru's escape sequences."""
        template, active = self._painted(record["level"].name)
        values = self._values(record, extra, "")
        if message != record["message"]:  # the message has its own markup; after it the surrounding colours continue
            message = _COLOUR.sub(self._mark + r"\1", message).replace(
                self._mark + _RESET, self._mark + _RESET + active
            )
            values["message"] = message
        text = template.format_map(values)
        return text + "\n" + _COLOUR.sub(self._mark + r"\1", exception) if exception else text

    def paint(self, text: str) -> str:
        """Return the result of `coloured`, which is safe by now, with its escape sequences."""
        return text.replace(self._mark, "\x1b")

    def _painted(self, level: str) -> tuple[str, str]:
        colour = loguru_internals.level_colour(level)
        key = f"{level} {colour}"  # the colour of a level may be changed at any time
        found = self._coloured.get(key)
        if found is None:
            marked = loguru_internals.with_colours(self._format, colour).replace("\x1b", self._mark)
            template = _prepare(marked)[0]
            before = template.partition("{message")[0].rpartition(_RESET)[2]
            active = "".join(re.findall(re.escape(self._mark) + r"\[[0-9;]*m", before))
            found = self._coloured[key] = template, active
        return found

    def _values(self, record: Record, extra: Mapping[str, Any] | None, exception: str) -> Record:
        values = record.copy()
        values["exception"] = exception
        values["_level"] = record["level"].name
        for name, shown in self._times:
            values[name] = shown(record["time"])
        if extra is not None:
            values["extra"] = extra
        return values


def _prepare(template: str) -> tuple[str, list[tuple[str, Callable[[Any], str]]], bool]:
    """Return the template with faster fields, the formatters of its times, and whether it has the field `extra`.

    `{level}` and `{time:...}` are the most common fields, and formatting a record's own objects for them is slow.
    """
    parts: list[str] = []
    times: list[tuple[str, Callable[[Any], str]]] = []
    wants_extra = False
    for literal, field, spec, conversion in Formatter().parse(template):
        parts.append(literal.replace("{", "{{").replace("}", "}}"))
        if field is None:
            continue
        wants_extra = wants_extra or re.split(r"[.\[]", field)[0] == "extra" or "{extra" in (spec or "")
        plain_time = field == "time" and not conversion and "{" not in (spec or "")
        if plain_time:
            name = f"_time{len(times)}"
            times.append((name, CommonTime() if spec == _COMMON_TIME else loguru_internals.time_formatter(spec or "")))
            parts.append(f"{{{name}}}")
        else:
            name = "_level" if field == "level" and not conversion else field
            parts.append("{" + name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}")
    return "".join(parts), times, wants_extra


class CommonTime:
    """Formats a time like loguru's `YYYY-MM-DD HH:mm:ss.SSS`, and caches the last second."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = (-1, "")

    def __call__(self, time: Any) -> str:
        """Return the time as text."""
        second = ((time.toordinal() * 24 + time.hour) * 60 + time.minute) * 60 + time.second
        last, shown = self._last
        if second != last:
            shown = (
                f"{time.year:04d}-{time.month:02d}-{time.day:02d} {time.hour:02d}:{time.minute:02d}:{time.second:02d}."
            )
            self._last = second, shown  # in one step, because threads share it
        return f"{shown}{time.microsecond // 1000:03d}"


class Extra(dict[str, Any]):
    """Bound values for a format; a missing value is empty, with any attribute, index or format spec."""

    def __missing__(self, key: str) -> Any:
        return NOTHING


class _Nothing(str):
    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return ""

    def __getitem__(self, key: object) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        return self


NOTHING = _Nothing()
