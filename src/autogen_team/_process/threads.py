"""Threads that do not keep the process alive."""

from __future__ import annotations

import threading
from collections.abc import Callable


def spawn(work: Callable[[], object], *, name: str) -> threading.Thread | None:
    """Start a daemon thread; return None where no thread can be started any more.

    That is so when the interpreter is shutting down, or a limit of the system is reached. The caller then does the work
    itself, or without it.
    """
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread
