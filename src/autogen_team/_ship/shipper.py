"""The background thread that delivers the entries of the journal to the store, soon after they are written.

It sleeps until there is an entry, gathers more for a moment, and delivers them all. It retries for as long as the store
is out of reach. A flush cuts its pauses short. After a fork the child has a thread and a journal of its own.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import weakref
from contextlib import suppress

import orjson

from autogen_team._redact import mask
from autogen_team._ship.availability import Availability
from autogen_team._ship.backend import Unreachable
from autogen_team._ship.batches import Delivery
from autogen_team._ship.error_text import with_kind
from autogen_team._spool.journal import Journal
from autogen_team._spool.reader import Follower
from autogen_team._spool.records import Entry
from autogen_team._spool.wakeup import Wakeup

GATHER = 0.25
"""Seconds between the first entry of a batch and its delivery, for a fast store."""
_SHARE, _LONGEST_GATHER = 4.0, 4.0
"""Entries are gathered for `_SHARE` times as long as the last delivery took, at most `_LONGEST_GATHER` seconds. So a
store that many processes deliver to gets larger batches instead of more of them. The maximum is below the 5 s of
silence after which uvicorn closes a connection: a request that is sent at that moment is lost."""
_CHUNK = 128 * 2**10
"""Bytes of the journal that are delivered and then acknowledged together; about a thousand metrics."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0
"""Seconds between attempts while the store is out of reach; the pause doubles from the first value to the second."""
_SPREAD = 0.5, 1.5
"""Range of the random factor of a pause. Without it, many workers that lost their server at the same moment would all
return at the same moment, and overload the server again."""
_LAST_PATIENCE = 1.0
"""Seconds to wait for the current delivery before the thread ends, or before an unwritten entry is delivered."""
_TRIES = (0.1, 0.3, 0.0)
"""Seconds to wait after each attempt to deliver an entry that is stored nowhere else."""
_FORK_PATIENCE = 1.0
"""Seconds that a fork waits for the current delivery, whose locks would stay held in the child for ever."""

_report = logging.getLogger("autogen_team")
_shippers: weakref.WeakSet[Shipper] = weakref.WeakSet()


class Shipper:
    """Delivers the entries of one journal on a background thread."""

    def __init__(self, journal: Journal, delivery: Delivery, availability: Availability) -> None:
        self._journal = journal
        self._delivery = delivery
        self._availability = availability
        self._follower = Follower(journal)
        self.lost = 0
        """Number of entries that neither the journal nor the store has taken."""
        self.after_fork()
        _shippers.add(self)

    def after_fork(self) -> None:
        """Reset all state, the thread included, which does not survive a fork."""
        self._follower.close()
        self._follower = Follower(self._journal)
        self._delivering = threading.Lock()
        self._lock = threading.RLock()
        self._progress = threading.Condition(self._lock)
        self._urgent = Wakeup()
        self._wanted = 0
        self._stopping = False
        self._attempts = 0
        self._gather = GATHER
        self._chunk: list[Entry] | None = None
        """Entries that were read and are not delivered yet."""
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, unless it runs or has been stopped."""
        with self._lock:
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(target=self._run, name="autogen_team-tracking", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # no thread can be started any more: the interpreter is shutting down
                    self._thread = None

    def flush(self, timeout: float, *, give_up_when_cut: bool = False) -> bool:
        """Wait until the store has all entries written so far, at most `timeout` seconds; return whether it has them.

        With `give_up_when_cut`, a failed attempt ends the wait.
        """
        until = self._journal.number
        if self._journal.acked >= until:
            return True
        with self._lock:
            if self.is_asking:  # the delivery thread cannot wait for itself
                return False
            self.start()  # an earlier start may have failed
            self._wanted = max(self._wanted, until)
            self._urgent.set()
            self._journal.wake()
            attempts = self._attempts

            def is_over() -> bool:
                failed = give_up_when_cut and self._attempts > attempts
                return self._journal.acked >= until or self._thread is None or failed

            self._progress.wait_for(is_over, timeout)
        return self._journal.acked >= until

    def deliver_now(self, body: str) -> None:
        """Deliver an entry that the journal could not take, after those that it holds; if that fails, it is lost."""
        self.flush(_LAST_PATIENCE, give_up_when_cut=True)
        fault = ""
        for pause in _TRIES:
            try:
                with self._delivering:
                    self._delivery.deliver([orjson.loads("{" + body)])
            except Unreachable as error:
                fault = str(error)
                time.sleep(pause)
            else:
                return
        self._availability.failed(fault)
        self.lost += 1

    def stop(self, timeout: float) -> bool:
        """Deliver the rest, at most for `timeout` seconds, and end the thread; return whether the store has it all."""
        deadline = time.monotonic() + timeout
        while not (delivered := self.flush(max(0.0, deadline - time.monotonic()))) or self.has_more:
            if self._thread is None or time.monotonic() >= deadline:
                break
        with self._lock:
            self._stopping = True
            thread = self._thread
        self._urgent.set()
        self._journal.wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_LAST_PATIENCE)
        self._follower.close()
        return delivered

    @property
    def is_asking(self) -> bool:
        """Whether the calling thread is the delivery thread."""
        return threading.current_thread() is self._thread

    @property
    def has_more(self) -> bool:
        """Whether the journal has entries that the store has not taken."""
        return self._journal.acked < self._journal.number

    def pause(self, timeout: float) -> bool:
        """Block further deliveries once the current one is done; return False if that takes too long."""
        return self._delivering.acquire(timeout=timeout)

    def resume(self) -> None:
        """Allow deliveries again after a `pause` that returned True."""
        self._delivering.release()

    def _run(self) -> None:
        while self._goes_on():
            self._journal.wait(None)
            while self._goes_on() and self._journal.acked < self._journal.number:
                self._urgent.clear()
                if self._wanted <= self._journal.acked:
                    self._urgent.wait(self._gather)
                try:
                    began = time.monotonic()
                    self._deliver(self._journal.number)
                    self._gather = min(max(GATHER, _SHARE * (time.monotonic() - began)), _LONGEST_GATHER)
                except Exception:
                    with suppress(Exception):  # a log handler of the job may raise, which must not end this thread
                        _report.exception("the journal could not be delivered; what is in it stays there")
                    self._urgent.wait(_LONGEST_PAUSE)

    def _goes_on(self) -> bool:
        return not self._stopping

    def _deliver(self, until: int) -> None:
        """Deliver the entries up to the number `until`; later ones are gathered for the next delivery."""
        while self._journal.acked < until and self._has_chunk():
            pause = _FIRST_PAUSE
            while not self._attempt():
                self._journal.sync()
                spread = random.uniform(*_SPREAD)  # noqa: S311 - not a secret  # nosec B311
                self._urgent.wait(pause * spread)
                if self._stopping:
                    return
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _has_chunk(self) -> bool:
        if self._chunk is None:
            self._chunk = self._follower.read(_CHUNK)
        return self._chunk is not None

    def _attempt(self) -> bool:
        assert self._chunk is not None
        number = self._follower.number
        self._urgent.clear()  # a flush from now on gets another attempt at once
        try:
            with self._delivering:
                self._delivery.deliver(self._chunk)
        except Unreachable as error:
            self._availability.failed(str(error))
        except Exception as error:
            self._availability.failed(mask(with_kind(error)))
            _report.debug("a delivery failed", exc_info=True)
        else:
            self._journal.ack(number)
            self._chunk = None
            self._availability.answered(
                f"; {self._journal.number - number} entries wait" if self._availability.is_cut else ""
            )
            with self._lock:
                self._progress.notify_all()
            return True
        with self._lock:
            self._attempts += 1
            self._progress.notify_all()
        return False


class _Held(threading.local):
    """Couriers that the calling thread has paused for its fork; two threads may fork at the same time."""

    shippers: tuple[Shipper, ...] = ()


_held = _Held()


def _before_fork() -> None:
    _held.shippers = tuple(shipper for shipper in _shippers if shipper.pause(_FORK_PATIENCE))


def _after_fork_in_parent() -> None:
    for shipper in _held.shippers:
        shipper.resume()
    _held.shippers = ()


if hasattr(os, "register_at_fork"):  # Windows cannot fork
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
