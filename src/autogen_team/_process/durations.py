"""Durations as people read and write them."""

from __future__ import annotations

import re

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def duration(seconds: float) -> str:
    """Format a duration in its two largest units.

    >>> duration(0.25), duration(75), duration(7380), duration(180000)
    ('0.2 s', '1 min 15 s', '2 h 3 min', '2 d 2 h')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min {rest} s"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min"


def seconds(text: str) -> float:
    """Parse a duration such as `90s` or `5m`, and return it in seconds.

    >>> seconds("90s"), seconds("5m"), seconds("1.5h")
    (90.0, 300.0, 5400.0)

    Raises:
        ValueError: the text is not a duration, or the duration is zero.

    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    length = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not length:
        raise ValueError(f"{text!r} is not a duration: write 90s, 5m, 2h or 1d")
    return length
