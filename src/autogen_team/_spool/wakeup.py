"""Signal-safe wake-up for one waiting thread."""

from __future__ import annotations

from contextlib import suppress
from queue import Empty, SimpleQueue


class Wakeup:
    """An event for one waiting thread; each wait consumes the event.

    If a signal handler interrupts `threading.Event.set` and calls it again, it deadlocks on the event's lock. The
    `put` of this queue is documented to be reentrant.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Wake the waiter, or make its next wait return at once."""
        if self._calls.empty():
            self._calls.put(None)

    def clear(self) -> None:
        """Forget earlier calls of `set`."""
        with suppress(Empty):
            while True:
                self._calls.get_nowait()

    def wait(self, timeout: float | None) -> None:
        """Return when `set` is called, or after `timeout` seconds."""
        with suppress(Empty):
            self._calls.get(timeout=timeout)
