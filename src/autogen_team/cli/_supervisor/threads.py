"""Waiting for what a target has left at work, as Python does before it exits.

Python tells the threads of executors to end, and no executor takes work afterwards; here the run is still to be closed,
with executors. So theirs are waited for until they have nothing left to do.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.thread import _threads_queues
from contextlib import contextmanager, suppress
from typing import Any

from autogen_team.io._tracking.ending import Terminated

_GLANCE = 0.02
"""Seconds between two looks at what is still at work."""


@contextmanager
def awaited() -> Iterator[None]:
    """Wait for them when the block has ended, except by a signal, which wants an end now."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if not isinstance(error, Terminated):
            _wait()
        raise
    _wait()


def _wait() -> None:
    is_over = False
    while not is_over:
        for thread in _own():
            with suppress(RuntimeError):  # it is being started at this moment, and waited for in the next round
                thread.join()
        is_over = _executors_are_idle()


def _own() -> list[threading.Thread]:
    return [
        thread
        for thread in threading.enumerate()
        if not thread.daemon
        and thread is not threading.current_thread()
        and thread not in _threads_queues
        and thread not in _managers()
    ]


def _managers() -> Any:
    """Return the threads that manage pools of processes; they end when somebody shuts the pool down."""
    processes = sys.modules.get("concurrent.futures.process")
    return processes._threads_wakeups if processes else ()  # noqa: SLF001 - there is no other way to tell them


class _Mark:
    """Handed to an executor as work: the thread that comes to it has done all that was handed over before."""

    def __init__(self, idle: set[threading.Thread], over: threading.Event) -> None:
        self._idle = idle
        self._over = over
        self.future: Future[None] = Future()  # which is cancelled when the executor is shut down so

    def run(self, *_: object) -> None:
        """Keep the thread until everybody has been looked at."""
        self._idle.add(threading.current_thread())
        self._over.wait()


def _executors_are_idle() -> bool:
    """Wait until each thread of an executor has come to its mark; tell whether nothing is left to do anywhere then."""
    idle: set[threading.Thread] = set()
    marked: set[threading.Thread] = set()
    over = threading.Event()
    try:
        while busy := {thread for thread in threading.enumerate() if thread in _threads_queues} - idle:
            for thread in busy - marked:
                _threads_queues[thread].put(_Mark(idle, over))
                marked.add(thread)
            time.sleep(_GLANCE)
        has_more = any(not queue.empty() for queue in map(_threads_queues.get, idle) if queue is not None)
        has_tasks = any(manager.is_alive() and manager.pending_work_items for manager in list(_managers()))
        if has_tasks:
            time.sleep(_GLANCE)
        return not (has_more or has_tasks or _own())
    finally:
        over.set()
