"""Run work that may never end, within a given time.

Timeouts of sockets do not bound anything, because a server that sends a byte now and then outlasts them. Neither do
retries.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from autogen_team._process import grace
from autogen_team._process.threads import spawn

Result = TypeVar("Result")


def within(seconds: float, work: Callable[[], Result], *, name: str) -> Result:
    """Return what `work` returns, or raise what it raises; `work` runs on its own thread, called `name`.

    Once a signal has asked the process to end, `grace` bounds the time too.

    Raises:
        TimeoutError: it took longer. The thread is left behind, and does not keep the process alive.

    """
    seconds = grace.bounded(seconds)
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = spawn(run, name=name)
    if thread is None:
        return work()
    thread.join(min(seconds, threading.TIMEOUT_MAX))
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]
