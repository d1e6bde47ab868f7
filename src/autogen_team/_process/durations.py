"""Durations for people."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Return a duration for people, in its two largest units.

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
