"""Durations on the command line: `90s`, `5m`, `2h`."""

from __future__ import annotations

import re

import typer

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def seconds(text: str) -> float:
    """Return a duration in seconds.

    >>> seconds("90s"), seconds("5m"), seconds("1.5h")
    (90.0, 300.0, 5400.0)

    Raises:
        typer.BadParameter: the text is not a duration, or it is zero.

    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    length = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not length:
        raise typer.BadParameter(f"{text!r} is not a duration: write 90s, 5m, 2h or 1d")
    return length
