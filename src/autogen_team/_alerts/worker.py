"""A background thread that delivers items from a queue, so that the job never waits for a delivery.

The thread is a daemon. The first item starts it, and it ends after a while without items, so an unused worker is
garbage-collected like any other object. The queue is bounded; `submit` returns False when it is full. After a fork, the
child's worker is empty and starts its own thread, since the parent still delivers its own items. `submit` and `stop`
may be called from any thread and from a signal handler.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from autogen_team._process.forking import start_afresh_after_fork

if TYPE_CHECKING:
    from collections.abc import Callable

Item = TypeVar("Item")

IDLE: Final = 5.0  # seconds without an item after which the thread ends

_report = logging.getLogger("autogen_team")


class Worker(Generic[Item]):
    """Queue with a thread that passes one item after another to `deliver`.

    `deliver` should handle its own failures. If it raises, the exception is reported once, until the next success.
    """

    def __init__(self, deliver: Callable[[Item], object], *, name: str, capacity: int) -> None:
        self.name = name
        self._deliver = deliver
        self._capacity = capacity
        self._stopped = False
        self._failing = False
        self.after_fork()
        start_afresh_after_fork(self)

    def after_fork(self) -> None:
        """Forget the parent's thread, and the items that the parent will deliver."""
        # Reentrant, because a signal handler may call `submit` while the interrupted code holds the lock.
        self._work = threading.Condition(threading.RLock())
        self._queue: deque[Item] = deque()
        self._is_delivering = False
        self._thread: threading.Thread | None = None

    def submit(self, item: Item) -> bool:
        """Queue `item`; return False if the queue is full, the worker is stopped, or no thread can be started."""
        with self._work:
            if self._stopped or len(self._queue) >= self._capacity or not self._has_thread():
                return False
            self._queue.append(item)
            self._work.notify()
            return True

    def stop(self) -> bool:
        """Accept no more items and drop those that wait; return False if a delivery is still in progress."""
        with self._work:
            self._stopped = True
            self._queue.clear()
            self._work.notify()
            return self.is_idle

    @property
    def is_idle(self) -> bool:
        """Whether no item waits or is being delivered."""
        return not self._queue and not self._is_delivering

    def _has_thread(self) -> bool:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no thread can be started: a limit of the system, or the interpreter is shutting down
                self._thread = None
            except BaseException:  # Ctrl-C; a thread that has started anyway ends, because it is not `self._thread`
                if self._thread.ident is None:
                    self._thread = None
                raise
        return self._thread is not None

    def _run(self) -> None:
        while True:
            with self._work:
                if self._thread is not threading.current_thread():
                    return
                self._is_delivering = False
                self._work.wait_for(lambda: self._queue or self._stopped, IDLE)
                if not self._queue:
                    # Cleared under the lock that `submit` takes for its check, so no item is left without a thread.
                    self._thread = None
                    return
                self._is_delivering = True  # set first, because `is_idle` does not take the lock
                item = self._queue.popleft()
            try:
                self._deliver(item)
            except BaseException as error:  # SystemExit too: the items behind this one must still be delivered
                self._report_failure(error)
            else:
                self._failing = False

    def _report_failure(self, error: BaseException) -> None:
        if not self._failing:
            self._failing = True
            with suppress(Exception):  # a log handler of the job may raise, which must not end the thread
                _report.warning("%s: could not deliver: %s: %s", self.name, type(error).__name__, error)
