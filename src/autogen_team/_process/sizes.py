"""Sizes in bytes as people read and write them; imports no other module of this package."""

from __future__ import annotations

import re

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*")


def parse(text: str) -> int:
    """Parse a size such as `10 GB`, `512 MiB` or `1000`, and return it in bytes.

    >>> parse("1.5 GB"), parse("512MiB"), parse("1000")
    (1500000000, 536870912, 1000)

    Raises:
        ValueError: the text is not a size.

    """
    found = _SIZE.fullmatch(text)
    if found is None or found[2].upper() not in _UNITS:
        raise ValueError(f"{text!r} is not a size: write a number and a unit, such as 500 MB or 10 GB")
    return round(float(found[1]) * _UNITS[found[2].upper()])


def show(size: float) -> str:
    """Format a number of bytes with a unit.

    >>> show(0), show(999), show(1_500_000), show(10**10)
    ('0 B', '999 B', '1.5 MB', '10 GB')
    """
    units = ["B", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.3g} {units[0]}"
