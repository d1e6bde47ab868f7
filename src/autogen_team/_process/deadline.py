"""Run work with a time limit, even if the work never ends.

A socket timeout does not limit the total time, because a server can send a byte now and then. Retries do not limit it
either.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from autogen_team._process import grace
from autogen_team._process.threads import spawn

Result = TypeVar("Result")


def within(seconds: float, work: Callable[[], Result], *, name: str) -> Result:
    """Run `work` on its own thread, called `name`, and return its result or raise its exception.

    After a signal that ends the process, `grace` limits the time too.

    Raises:
        TimeoutError: `work` took longer. Its thread continues, but does not keep the process alive.

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
