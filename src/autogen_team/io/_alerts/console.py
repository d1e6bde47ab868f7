"""The last resort of every alert: one line on the console, whatever state the console is in."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO


def write_line(line: str) -> None:
    """Write `line` to stdout; to stderr if stdout is full, closed or gone; never raise.

    Characters that the stream cannot encode are written as escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            _write(stream, line + "\n")
        except Exception:  # noqa: S112 - there is no place left to report it to but the next stream  # nosec B112
            continue
        return


def _write(stream: TextIO, text: str) -> None:
    encoding = stream.encoding or "utf-8"
    data = text.encode(encoding, "backslashreplace")
    if stream in (sys.__stdout__, sys.__stderr__) and os.name == "posix":
        # Past the buffer: what a full disk does not take would stay in it, and make Python exit with status 120.
        _flush(stream)
        while data:
            data = data[os.write(stream.fileno(), data) :]
    else:  # a notebook, a test, a progress bar
        stream.write(data.decode(encoding))
        stream.flush()


def _flush(stream: TextIO) -> None:
    """Keep the order of the lines, as far as the job's own lines can be written at all."""
    try:
        stream.flush()
    except (OSError, RuntimeError, ValueError):  # full, interrupted in the middle by this very signal handler, closed
        return
