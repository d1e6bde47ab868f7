"""Wait for threads and tasks that a target has left running, in the order in which Python does before it exits.

Python lets the main thread look ended, calls what libraries have registered for that moment, and joins all threads that
are not daemons. This module does the same while the run is still open. Executors of the standard library are the
exception: Python shuts them down for good, but closing the run still needs them. Only their tasks are waited for.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import _threads_wakeups as _managers
from concurrent.futures.thread import _threads_queues as _workers
from contextlib import contextmanager, suppress
from typing import Any

from autogen_team._capture.signals import Terminated
from autogen_team._process.forking import call_in_child, start_afresh_after_fork

_EXECUTORS: tuple[Any, ...] = (ThreadPoolExecutor, ProcessPoolExecutor)

_report = logging.getLogger("autogen_team")


@contextmanager
def awaited() -> Iterator[None]:
    """Wait for threads and tasks at the end of the block, unless a signal has ended it: that must take effect now.

    A process that the target has forked, and that leaves the block too, does not wait here; Python waits there later.
    """
    owner = os.getpid()
    tasks = _Tasks()
    end = _end_of_main_thread()
    with tasks.noted():
        try:
            yield
        except (Exception, SystemExit) as error:
            if not isinstance(error, Terminated):
                _wait(tasks, end, owner)
            raise
        _wait(tasks, end, owner)


def _wait(tasks: _Tasks, end: threading.Event, owner: int) -> None:
    if os.getpid() != owner:
        return
    end.set()
    is_over = False
    while not is_over:
        tasks.wait()
        _call_back()
        for thread in _own():
            with suppress(RuntimeError):  # the thread is just being started; the next round waits for it
                thread.join()
        is_over = not (tasks.are_left() or _own())


def _own() -> list[threading.Thread]:
    """Return the threads that Python would join, except those of executors, which end when Python shuts those down."""
    return [
        thread
        for thread in threading.enumerate()
        if not thread.daemon
        and thread is not threading.current_thread()
        and thread not in _workers
        and thread not in _managers
    ]


def _call_back() -> None:
    """Call the functions that Python calls before it joins threads, latest first, except those of executors.

    Libraries such as joblib end their threads in such a function. Python has no public way to register one.
    """
    registered: list[Callable[[], object]] = getattr(threading, "_threading_atexits", [])
    for call in registered[::-1]:
        function = getattr(call, "func", call)
        if not str(getattr(function, "__module__", "")).startswith("concurrent.futures."):
            registered.remove(call)
            try:
                call()
            except Exception:
                _report.warning("%r failed at the end of the job", function, exc_info=True)


class _Tasks:
    """The tasks that were submitted to executors inside the block of `noted`, and the callbacks of these tasks."""

    def __init__(self) -> None:
        self.after_fork()
        start_afresh_after_fork(self)

    def after_fork(self) -> None:
        """Forget the tasks of the parent process."""
        self._change = threading.Condition()
        self._futures: set[Future[Any]] = set()
        self._callbacks: set[object] = set()

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Record each task that is submitted to an executor inside the block."""
        plain = [executor.submit for executor in _EXECUTORS]
        plain_add = Future.add_done_callback
        for executor, submit in zip(_EXECUTORS, plain, strict=True):
            executor.submit = self._noting(submit)
        setattr(Future, "add_done_callback", self._counting(plain_add))  # noqa: B010 - mypy forbids the assignment
        try:
            yield
        finally:
            for executor, submit in zip(_EXECUTORS, plain, strict=True):
                executor.submit = submit
            setattr(Future, "add_done_callback", plain_add)  # noqa: B010 - the same

    def wait(self) -> None:
        """Return when all tasks and their callbacks have ended, including tasks that other tasks have submitted."""
        with self._change:  # `concurrent.futures.wait` waits forever for a task that is cancelled by a shutdown
            self._change.wait_for(lambda: not self.are_left())

    def are_left(self) -> bool:
        """Tell whether any task or callback has not ended."""
        return bool(self._futures or self._callbacks)

    def _noting(self, submit: Callable[..., Future[Any]]) -> Callable[..., Future[Any]]:
        @functools.wraps(submit)
        def submit_and_note(executor: Any, /, *arguments: Any, **fields: Any) -> Future[Any]:
            future = submit(executor, *arguments, **fields)
            with self._change:
                self._futures.add(future)
            future.add_done_callback(self._forget)
            return future

        return submit_and_note

    def _counting(self, add: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(add)
        def add_done_callback(future: Future[Any], fn: Callable[[Future[Any]], object]) -> None:
            if fn == self._forget or future not in self._futures:
                add(future, fn)
                return
            token = object()
            with self._change:
                self._callbacks.add(token)

            def call(done: Future[Any]) -> None:
                try:
                    fn(done)
                finally:
                    with self._change:
                        self._callbacks.discard(token)
                        self._change.notify_all()

            add(future, call)

        return add_done_callback

    def _forget(self, future: Future[Any]) -> None:
        with self._change:
            self._futures.discard(future)
            self._change.notify_all()


def _end_of_main_thread() -> threading.Event:
    """Return an event that, once set, makes the main thread look ended to threads that join it or check it.

    The methods that are replaced here stay so as long as this process lives; forked children get those of the class.
    """
    main: Any = threading.main_thread()
    end = threading.Event()

    def is_alive() -> bool:
        return not end.is_set()

    def join(timeout: float | None = None) -> None:
        if threading.current_thread() is main:
            raise RuntimeError("cannot join current thread")
        end.wait(timeout)

    main.is_alive, main.join = is_alive, join
    return end


def _give_back_main_thread() -> None:
    for name in ("is_alive", "join"):
        vars(threading.main_thread()).pop(name, None)


call_in_child(_give_back_main_thread)
