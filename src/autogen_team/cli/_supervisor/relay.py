"""Copies bytes from one descriptor to another unchanged, and passes them to a function."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

_SIZE = 2**16
_GRACE = 0.5
"""Seconds for which output is still read from processes that outlive the job."""
_REST = 2**20
"""Number of bytes that the job may have left in the pipe before the output of those processes: Linux's largest pipe."""


class Relay:
    """A thread that reads from one descriptor and writes to another, until the input ends.

    When the reader of the output has ended, the thread stops reading too. The writer then gets a broken pipe, as it
    would without us.
    """

    def __init__(self, name: str, source: int, target: int, show: Callable[[bytes], None]) -> None:
        self._source = source
        self._target = target
        self._show = show
        self._is_idle = False
        self._until: float | None = None
        self._rest = 0
        self.fault = ""
        """A message about lost bytes and the reason; empty if none were lost."""
        self._lost = 0
        self._over, self._no_more = os.pipe()
        self._thread = threading.Thread(target=self._run, name=f"autogen_team-{name}", daemon=True)
        self._thread.start()

    def has_caught_up(self) -> bool:
        """Return whether everything written so far has been copied."""
        try:
            waiting = bool(select.select([self._source], [], [], 0)[0])
        except (OSError, ValueError):  # the source is closed, so no more data can arrive
            return True
        return (not waiting and self._is_idle) or not self._thread.is_alive()

    def finish(self) -> None:
        """Copy the rest of the input; call this when the writer has ended, although its children may still write."""
        os.close(self._no_more)
        self._thread.join()

    def _run(self) -> None:
        try:
            while data := self._next():
                if not self._pass_on(data):
                    break
                self._show(data)
        finally:
            with suppress(OSError):
                os.close(self._source)
            os.close(self._over)

    def _next(self) -> bytes:
        self._is_idle = True
        ready = select.select([self._source, self._over], [], [])[0]
        if self._over in ready:
            # The writer has ended, so all its output has arrived. Its children's output is read for a limited time.
            now = time.monotonic()
            self._until = now + _GRACE if self._until is None else self._until
            left = max(0.0, self._until - now)
            ready = select.select([self._source], [], [], left)[0] if left or self._rest < _REST else []
        self._is_idle = False
        try:
            data = os.read(self._source, _SIZE) if self._source in ready else b""
        except OSError:  # a terminal whose other side is closed
            return b""
        if self._until is not None:
            self._rest += len(data)
        return data

    def _pass_on(self, data: bytes) -> bool:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._target, view) :]
            except BlockingIOError:  # another process has made our output non-blocking
                select.select([], [self._target], [])
            except BrokenPipeError:
                return False
            except OSError as error:  # a full disk: the job continues
                self._lost += len(view)
                self.fault = f"{self._lost} bytes could not be written: {error.strerror}"
                return True
        return True


def wait_for(relays: Sequence[Relay], timeout: float) -> None:
    """Wait until all relays have caught up, at most `timeout` seconds, because the reader of our output may be slow."""
    deadline = time.monotonic() + timeout
    quiet = 0
    while quiet < 2 and time.monotonic() < deadline:  # bytes need a moment to get through a terminal
        quiet = quiet + 1 if all(relay.has_caught_up() for relay in relays) else 0
        time.sleep(0.005)
