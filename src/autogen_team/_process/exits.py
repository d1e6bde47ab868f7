"""Ends a process of ours without the teardown of the interpreter, which frees each object of each module.

For MLflow this takes 0.2 seconds, and half a second with SQLAlchemy.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress


def skip_teardown() -> Callable[[], None]:
    """Prepare to end the process right after its exit handlers, with status 0; call the result once all work is done.

    Call this before other modules are imported: exit handlers run in reverse order, and ours must be the last.
    """
    is_done = False

    def done() -> None:
        nonlocal is_done
        is_done = True

    def leave() -> None:
        if is_done:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError, AttributeError):  # it is closed, or there is none
                    stream.flush()
            os._exit(0)

    atexit.register(leave)
    return done
