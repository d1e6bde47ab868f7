"""One background thread that delivers what it is handed, so that the job never waits for it.

The thread is a daemon, started by the first item and gone after a while without any: a worker that is forgotten is
garbage like any other object. The queue is bounded and the caller is told when it is full; what `stop` could not get
delivered it hands back. After a fork the child's worker is empty and makes its own thread, since the parent still
delivers what it had. `submit`, `flush` and `stop` may be called from any thread and from a signal handler.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Item = TypeVar("Item")

_report = logging.getLogger("autogen_team")


class Forkable(Protocol):
    """Whatever holds locks, threads or queues, of which a forked child needs its own."""

    def after_fork(self) -> None:
        """Start afresh; called in the child, before anything else runs in it."""


_forkables: weakref.WeakSet[Forkable] = weakref.WeakSet()


def start_afresh_after_fork(it: Forkable) -> None:
    """Call `it.after_fork` in every child that this process forks, for as long as `it` is alive."""
    _forkables.add(it)


def _after_fork() -> None:
    for it in list(_forkables):
        it.after_fork()


if hasattr(os, "register_at_fork"):  # Windows cannot fork
    os.register_at_fork(after_in_child=_after_fork)


class Worker(Generic[Item]):
    """Hand items, in order and in batches, to `deliver` on a thread of its own.

    A batch goes out when `batch` items wait, or `interval` seconds after its first, or when someone flushes. `deliver`
    is expected to deal with its own failures; one that raises is reported once, until a batch succeeds again, and the
    batch is counted in `failed`.
    """

    def __init__(
        self,
        deliver: Callable[[list[Item]], object],
        *,
        name: str,
        capacity: int,
        batch: int = 1,
        interval: float = 0.0,
        idle: float = 5.0,
    ) -> None:
        self.name = name
        self._deliver = deliver
        self._capacity = capacity
        self._batch = batch
        self._interval = interval
        self._idle = idle
        self._stopped = False
        self._failing = False
        self.after_fork()
        start_afresh_after_fork(self)

    def after_fork(self) -> None:
        """Forget the parent's thread and what the parent will deliver."""
        # Reentrant, because a signal handler may submit while the code that it interrupts holds the lock.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._progress = threading.Condition(self._lock)
        self._queue: deque[Item] = deque()
        self._sending: list[Item] = []
        self._thread: threading.Thread | None = None
        self._accepted = self._finished = self._urgent = 0
        self.refused = 0
        """Items that `submit` did not take."""
        self.failed = 0
        """Items whose delivery raised."""

    def submit(self, item: Item) -> bool:
        """Queue `item`; False, and counted in `refused`, if the queue is full or the worker is stopped."""
        with self._lock:
            if self._stopped or len(self._queue) >= self._capacity or not self._has_thread():
                self.refused += 1
                return False
            self._queue.append(item)
            self._accepted += 1
            # The thread sleeps through what falls between the first item of a batch and the last.
            if len(self._queue) == 1 or len(self._queue) >= self._batch:
                self._work.notify()
            return True

    def flush(self, timeout: float) -> bool:
        """Deliver what was submitted up to now without waiting for full batches; False if that takes too long."""
        with self._lock:
            until = self._accepted
            self._urgent = max(self._urgent, until)
            self._work.notify()
            if threading.current_thread() is self._thread:  # it cannot wait for itself
                return self._finished >= until
            return self._progress.wait_for(lambda: self._finished >= until, timeout)

    def stop(self, timeout: float) -> list[Item]:
        """Take no more items, deliver those waiting, and return the ones that were not delivered in time.

        A batch that is still under way is among them, although it may arrive yet. Stopping twice returns nothing.
        """
        with self._lock:
            self._stopped = True
        self.flush(timeout)
        with self._lock:
            left = [*self._sending, *self._queue]
            self._sending = []
            self._queue.clear()
            self._finished = self._accepted
            self._work.notify()
            self._progress.notify_all()
            return left

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not self._queue and not self._sending

    def _has_thread(self) -> bool:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no thread can be started: a limit of the system, or the interpreter is going down
                self._thread = None
        return self._thread is not None

    def _run(self) -> None:
        while batch := self._take():
            try:
                self._deliver(batch)
            except BaseException as error:  # SystemExit included: the items behind this one still want delivery
                self._count_failure(batch, error)
            else:
                self._failing = False
            with self._lock:
                if self._sending:  # else `stop` has given up on it and handed it back
                    self._sending = []
                    self._finished += len(batch)
                    self._progress.notify_all()

    def _take(self) -> list[Item]:
        with self._lock:
            self._work.wait_for(lambda: self._queue or self._stopped, self._idle)
            self._work.wait_for(self._is_due, self._interval)
            self._sending = [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]
            if not self._sending:
                # Forgotten under the same lock under which `submit` looks, so that no item is left without a thread.
                self._thread = None
            return list(self._sending)

    def _is_due(self) -> bool:
        return not self._queue or self._stopped or len(self._queue) >= self._batch or self._urgent > self._finished

    def _count_failure(self, batch: list[Item], error: BaseException) -> None:
        self.failed += len(batch)
        if not self._failing:
            self._failing = True
            with suppress(Exception):  # a handler of the job's may raise, and the thread must not end by it
                _report.warning("%s: could not deliver: %s: %s", self.name, type(error).__name__, error)
