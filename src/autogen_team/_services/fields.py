"""Field types shared by several services."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from autogen_team._process import durations, sizes


def _as_text(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


Place: TypeAlias = Annotated[str, BeforeValidator(_as_text)]
"""A URI, a path or a stream name, as a string or a `Path`."""

Seconds: TypeAlias = Annotated[float, Field(gt=0, le=86_400.0)]
"""Seconds to wait, at most a day; a larger value is probably in the wrong unit."""


def _as_seconds(value: object) -> object:
    with suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    assert isinstance(value, str)
    return durations.seconds(value)


Duration: TypeAlias = Annotated[float, BeforeValidator(_as_seconds), Field(gt=0, allow_inf_nan=False)]
"""A time in seconds, or a text with a unit: `90s`, `15m`, `2h`, `1d`."""


def _as_bytes(value: object) -> object:
    return sizes.parse(value) if isinstance(value, str) else value


Size: TypeAlias = Annotated[int, BeforeValidator(_as_bytes), Field(gt=0)]
"""A number of bytes, or a text with a unit: `500 MB`, `10 GB`, `1 GiB`."""


def _lines(value: object) -> object:
    return tuple(line.strip() for line in value.splitlines() if line.strip()) if isinstance(value, str) else value


def _checked(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        try:
            matches_nothing = re.compile(pattern).match("") is not None
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        if matches_nothing:
            raise ValueError(f"{pattern!r} matches an empty text, so it would insert a mask between all characters")
    return patterns


Patterns: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_lines), AfterValidator(_checked)]
"""Regular expressions; in a variable, one per line."""


def _as_masking(value: object) -> object:
    if isinstance(value, bool):
        return "secrets" if value else "off"
    return _MASKINGS.get(value.strip().lower(), value) if isinstance(value, str) else value


_MASKINGS = {
    **dict.fromkeys(("true", "1", "yes", "on", "t", "y", "secrets"), "secrets"),
    **dict.fromkeys(("false", "0", "no", "off", "f", "n"), "off"),
    "content": "content",
}

TraceMasking: TypeAlias = Annotated[Literal["off", "secrets", "content"], BeforeValidator(_as_masking)]
"""Masking mode of traces; the setting was a bool once, so True means `secrets` and False means `off`."""
