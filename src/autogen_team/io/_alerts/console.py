"""The last resort of every alert: a line or a block on the console, whatever state the console is in."""

from __future__ import annotations

import os
import sys

from autogen_team.io import _streams


def write_line(line: str) -> None:
    """Write `line` to stdout; to stderr if stdout is full, closed or gone; never raise.

    Under `autogen-team run` stderr comes first: a shell that takes the output of the job, `x=$(autogen-team run ...)`,
    takes no alert for it. Characters that the stream cannot encode are written as escapes.
    """
    for stream in (sys.stderr, sys.stdout) if os.environ.get(_streams.SUPERVISED) else (sys.stdout, sys.stderr):
        try:
            _streams.write(stream, line + "\n")
        except Exception:  # noqa: S112 - there is no place left to report it to but the next stream  # nosec B112
            continue
        return
