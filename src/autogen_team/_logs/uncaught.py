"""Logs uncaught exceptions of the main thread, other threads and finalizers; asyncio logs those of tasks itself.

The previous hooks are called too, and restored on undo. Only the interpreter's own hook is skipped if the line was just
shown on stderr. It would print the same traceback a second time, with its secrets.
"""

from __future__ import annotations

import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import loguru

from autogen_team._logs import loguru_internals
from autogen_team._process.patches import Hook, replace

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from autogen_team._process import Undo


def log_uncaught(shown: Callable[[], int]) -> Undo:
    """Start to log uncaught exceptions; return a function that restores the previous hooks.

    The previous hooks are called too. Only Python's own hook is skipped for a line that stderr has already shown.

    Args:
        shown: returns the number of lines written to stderr.

    """
    undo = [
        replace(sys, "excepthook", partial(_main_thread, shown)),
        replace(threading, "excepthook", partial(_threads, shown)),
        replace(sys, "unraisablehook", partial(_finalizers, shown)),
    ]

    def undo_all() -> None:
        global _logged
        for one in undo:
            one()
        _logged = None

    return undo_all


def _main_thread(shown: Callable[[], int], previous: Hook, is_active: Callable[[], bool]) -> Hook:
    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        before = shown()
        if is_active() and issubclass(kind, Exception):  # Ctrl-C is not a failure
            _log("CRITICAL", "uncaught exception", (kind, error, trace))
        if previous is not sys.__excepthook__ or shown() == before:
            previous(kind, error, trace)

    return hook


def _threads(shown: Callable[[], int], previous: Hook, is_active: Callable[[], bool]) -> Hook:
    def hook(args: threading.ExceptHookArgs, /) -> None:
        before = shown()
        if is_active() and issubclass(args.exc_type, Exception):  # SystemExit ends a thread silently
            name = args.thread.name if args.thread is not None else "a thread that has ended"
            _log("ERROR", f"uncaught exception in {name}", (args.exc_type, args.exc_value, args.exc_traceback))
        if previous is not threading.__excepthook__ or shown() == before:
            previous(args)

    return hook


def _finalizers(shown: Callable[[], int], previous: Hook, is_active: Callable[[], bool]) -> Hook:
    def hook(args: sys.UnraisableHookArgs, /) -> None:
        before = shown()
        if is_active() and issubclass(args.exc_type, Exception):
            text = args.err_msg or "exception ignored in"
            _log("ERROR", f"{text}: {_name(args.object)}", (args.exc_type, args.exc_value, args.exc_traceback))
        if previous is not sys.__unraisablehook__ or shown() == before:
            previous(args)

    return hook


def log_failure(error: Exception) -> None:
    """Log the exception that ends the job, before logging stops."""
    _log("CRITICAL", "the job ends with an exception", (type(error), error, error.__traceback__))


def _log(level: str, text: str, exception: tuple[type[BaseException], BaseException | None, Any]) -> None:
    global _logged
    _, error, trace = exception
    if error is not None and error is _logged:  # the exception may pass several of our hooks
        return
    _logged = error
    try:
        loguru.logger.opt(exception=exception).patch(partial(_place, trace)).log(level, text)
    except Exception:  # a sink with catch=False; the previous hook must still run
        return


_logged: BaseException | None = None


def _place(trace: TracebackType | None, record: Any) -> None:
    """Set the location of the line to the place where the exception was raised."""
    if trace is None:
        return
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    path = Path(code.co_filename)
    record.update(
        name=trace.tb_frame.f_globals.get("__name__"),
        function=code.co_name,
        line=trace.tb_lineno,
        module=path.stem,
        file=loguru_internals.record_file(path.name, str(path)),
    )


def _name(it: object) -> str:
    try:
        return repr(it)
    except Exception:
        return f"a {type(it).__name__}"
