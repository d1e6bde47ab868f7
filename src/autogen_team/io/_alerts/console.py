"""The last resort of every alert: one line on the console, whatever state the console is in."""

from __future__ import annotations

import sys

from autogen_team.io import _streams


def write_line(line: str) -> None:
    """Write `line` to stdout; to stderr if stdout is full, closed or gone; never raise.

    Characters that the stream cannot encode are written as escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            _streams.write(stream, line + "\n")
        except Exception:  # noqa: S112 - there is no place left to report it to but the next stream  # nosec B112
            continue
        return
