"""The last resort for an alert: a line or a block on the console, even if a stream is closed or full."""

from __future__ import annotations

import os
import sys

from autogen_team._process import streams


def write_line(line: str) -> None:
    """Write `line` to stdout, or to stderr if stdout is full, closed or missing; never raise.

    Under `autogen-team run` stderr comes first, so that a shell that captures the output of the job with
    `x=$(autogen-team run ...)` does not capture alerts. Characters that the stream cannot encode are written as
    escapes.
    """
    for stream in (sys.stderr, sys.stdout) if os.environ.get(streams.SUPERVISED) else (sys.stdout, sys.stderr):
        try:
            streams.write(stream, line + "\n")
        except Exception:  # noqa: S112 - only the next stream is left to report to  # nosec B112
            continue
        return
