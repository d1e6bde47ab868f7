"""What a thread waits for, and any code may call, a signal handler that interrupts such a call among it."""

from __future__ import annotations

from contextlib import suppress
from queue import Empty, SimpleQueue


class Wakeup:
    """An event for one waiter, which its waiting uses up.

    A `threading.Event` has a lock that a signal handler would wait for in vain if it has interrupted its `set`; the
    `put` of this queue is documented to be reentrant.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Let the waiter go on, or its next waiting end at once."""
        if self._calls.empty():
            self._calls.put(None)

    def clear(self) -> None:
        """Forget what was set."""
        with suppress(Empty):
            while True:
                self._calls.get_nowait()

    def wait(self, timeout: float | None) -> None:
        """Return when it is set, or after `timeout` seconds."""
        with suppress(Empty):
            self._calls.get(timeout=timeout)
