"""Threads that do not keep the process alive."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

_Item = TypeVar("_Item")


def spawn(work: Callable[[], object], *, name: str) -> threading.Thread | None:
    """Start a daemon thread; return None if no thread can be started.

    This happens when the interpreter is shutting down or a system limit is reached. The caller then does the work
    itself or skips it.
    """
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread


def in_parallel(work: Callable[[_Item], object], items: Sequence[_Item], *, at_once: int, name: str) -> None:
    """Call `work` with each item in several threads, and return when all calls have ended.

    Raises:
        Exception: the first error of a call. After it, no further call begins.

    """
    waiting = iter(items)
    lock = threading.Lock()
    failures: list[BaseException] = []

    def go_on() -> None:
        while not failures:
            with lock:
                item = next(waiting, _END)
            if item is _END:
                return
            try:
                work(item)  # type: ignore[arg-type]  # `_END` is excluded above
            except BaseException as error:
                failures.append(error)

    helpers = [spawn(go_on, name=name) for _ in range(min(at_once, len(items)) - 1)]
    go_on()
    for helper in helpers:
        if helper is not None:
            helper.join()
    if failures:
        raise failures[0]


_END = object()
