"""Tracks records of the standard library while their handlers run, for each thread.

Jobs may connect loguru and `logging` themselves. A handler may pass records to loguru, as loguru's InterceptHandler
does. Or a sink may pass lines to `logging`, as loguru's PropagateHandler and pytest's `caplog` do. This state
distinguishes a new line from one that is already in the log or in a handler.
"""

from __future__ import annotations

import logging
import sys
from threading import get_ident

from autogen_team._process.forking import call_in_child


class _Passage:
    """A record whose handlers are running."""

    __slots__ = ("is_logged", "record")

    def __init__(self, record: logging.LogRecord) -> None:
        self.record = record
        self.is_logged = False
        """Whether one of the handlers has logged the record through loguru."""


under_way: dict[int, list[_Passage]] = {}
"""The passages of each thread that has any, innermost last. Nearly always empty, so a check costs little."""
forwarded: dict[int, logging.LogRecord] = {}
"""The record that the bridge is handing to loguru, by thread id."""


def begin(record: logging.LogRecord) -> None:
    """Note that the handlers of the record's logger are about to run, the bridge after all others."""
    passages = under_way.setdefault(get_ident(), [])
    if passages:  # a handler logs, or an exception left an older record here
        del passages[_calls_of_handlers() :]
    passages.append(_Passage(record))


def _calls_of_handlers() -> int:
    code = logging.Logger.callHandlers.__code__
    count = 0
    frame = sys._getframe()  # noqa: SLF001 - CPython's, as `logging` uses it
    while frame is not None:
        count += frame.f_code is code
        frame = frame.f_back  # type: ignore[assignment]  # None at the end
    return count


def end(record: logging.LogRecord) -> bool:
    """Note that the earlier handlers have run; return whether one of them logged the record through loguru."""
    thread = get_ident()
    passages = under_way.get(thread, [])
    is_logged = False
    for position in reversed(range(len(passages))):
        if passages[position].record is record:
            is_logged = passages[position].is_logged
            del passages[position:]  # an exception interrupted the inner ones
            break
    if not passages:
        under_way.pop(thread, None)
    return is_logged


def notice(message: object, args: tuple[object, ...]) -> None:
    """Note a call to loguru; if it contains the text of the current record, a handler is forwarding that record."""
    passages = under_way.get(get_ident())
    if not passages or passages[-1].is_logged:
        return
    try:
        text = passages[-1].record.getMessage()
        passages[-1].is_logged = any(
            text == part or (text and text in part) for part in (message, *args) if isinstance(part, str)
        )
    except Exception:  # the arguments do not match, so the handler could not format the text either
        return


def is_passed_on() -> bool:
    """Return whether this thread is passing a record to loguru, through the bridge or another handler."""
    thread = get_ident()
    passages = under_way.get(thread)
    return thread in forwarded or bool(passages and passages[-1].is_logged)


def is_echo(record: logging.LogRecord) -> bool:
    """Return whether a sink made this record from the record that this thread is passing to loguru."""
    original = forwarded.get(get_ident())
    return original is not None and (
        record is original
        or (
            (record.name, record.levelno, record.lineno) == (original.name, original.levelno, original.lineno)
            and (record.funcName, record.pathname) == (original.funcName, original.pathname)
        )
    )


def _forget_all() -> None:
    under_way.clear()
    forwarded.clear()


call_in_child(_forget_all)
