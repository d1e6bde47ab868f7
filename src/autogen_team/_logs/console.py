"""Prints lines on the current stderr or stdout, with or without colour, above progress bars."""

from __future__ import annotations

import os
import sys
from typing import Any, Literal

from autogen_team._process import streams

Name = Literal["stderr", "stdout"]


class Console:
    """`sys.stderr` or `sys.stdout`, looked up for each line, so that redirections, pytest and notebooks work."""

    def __init__(self, name: Name, *, colorize: bool) -> None:
        self.name = name
        self._colorize = colorize and not os.environ.get("NO_COLOR")
        self._force = bool(os.environ.get("FORCE_COLOR"))
        self.lines = 0
        """Number of lines written."""
        self._is_writing = False
        self._known: tuple[Any, bool] = (None, False)

    def is_coloured(self) -> bool:
        """Return whether to colour the next line: on a terminal or with FORCE_COLOR, unless turned off."""
        if not self._colorize:
            return False
        stream = getattr(sys, self.name)
        known, answer = self._known
        if stream is not known:
            answer = self._force or _is_terminal(stream)
            self._known = stream, answer
        return answer

    def write(self, line: bytes, moment: object = None) -> None:  # noqa: ARG002 - for files that rotate
        """Write the line and flush it; a process without this stream writes nothing."""
        # A stream that logs its own writes would recurse forever, so a nested line goes to the original stream.
        stream = getattr(sys, f"__{self.name}__" if self._is_writing else self.name)
        if stream is None:
            return
        self._is_writing = True
        try:
            _write(stream, line.decode())
        finally:
            self._is_writing = False
        self.lines += 1

    def after_fork(self) -> None:
        """Clear the mark of a write in progress: the writing thread does not exist in the child."""
        self._is_writing = False

    def close(self) -> None:
        """Do nothing: the stream belongs to the process."""


def _write(stream: Any, line: str) -> None:
    bars = sys.modules.get("tqdm.std")
    if bars is not None and getattr(bars.tqdm, "_instances", None):
        bars.tqdm.write(line, file=stream, end="")
        stream.flush()
    else:
        streams.write(stream, line)


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except Exception:  # no such method, closed, or None
        return False
