"""The last resort for every alert: a line or a block on the console, whatever the console's state."""

from __future__ import annotations

import os
import sys

from autogen_team._process import streams


def write_line(line: str) -> None:
    """Write `line` to stdout; to stderr if stdout is full, closed or missing; never raise.

    Under `autogen-team run` stderr comes first: a shell that captures the output of the job, with
    `x=$(autogen-team run ...)`, captures no alert. Characters that the stream cannot encode are written as escapes.
    """
    for stream in (sys.stderr, sys.stdout) if os.environ.get(streams.SUPERVISED) else (sys.stdout, sys.stderr):
        try:
            streams.write(stream, line + "\n")
        except Exception:  # noqa: S112 - there is no place left to report it to but the next stream  # nosec B112
            continue
        return
