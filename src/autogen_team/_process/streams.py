"""Write to standard output and standard error past their buffers.

If a full disk or a closed pipe rejects a text, the text stays in the buffer of the stream. Python writes it again at
exit, and exits with status 120 if that fails. So a line of ours would change the exit status of the job. Also, a
buffered stream raises an error if a signal handler that interrupts a write writes to it.
"""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress
from typing import TextIO

SUPERVISED = "AUTOGEN_TEAM_SUPERVISED"
"""Variable that is set in a job of `autogen-team run` and its child processes: stdout is for the job's output."""
_PATIENCE = 5.0
"""Seconds to wait until the reader of a non-blocking stream makes room."""


def write(stream: TextIO, text: str) -> None:
    """Write the text and flush it, after the text that the job has already written to the stream.

    If another object has replaced the standard stream, as in a notebook, its own `write` method gets the text.
    Characters that the encoding of the stream cannot express are written as escapes.

    Raises:
        OSError: the stream did not accept all of the text; no part of it is left in the buffer.
        ValueError: the stream is closed.

    """
    encoding = getattr(stream, "encoding", None) or "utf-8"
    descriptor = _descriptor(stream)
    if descriptor is not None:
        with suppress(OSError, RuntimeError, ValueError):  # disk full, interrupted by this signal handler, closed
            stream.flush()
        _write_all(descriptor, text.encode(encoding, "backslashreplace"))
        return
    try:
        stream.write(text)
    except UnicodeEncodeError:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    flush = getattr(stream, "flush", None)
    if flush is not None:
        flush()


def _descriptor(stream: TextIO) -> int | None:
    """Return the descriptor of a standard stream of the process; None for any other stream."""
    if (stream is not sys.__stdout__ and stream is not sys.__stderr__) or os.name != "posix":
        return None
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # another process has made the descriptor non-blocking
            if not select.select([], [descriptor], [], _PATIENCE)[1]:
                raise
