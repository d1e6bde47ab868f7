"""Forwards the standard library's log records, and warnings, to loguru, so that libraries log to the job's log.

A handler on the root logger takes the records that propagate there. It runs after all other handlers, and skips a
record that one of them has logged through loguru. Other handlers no longer print on the console. `logging.basicConfig`
still sets the level.

Some libraries print on the console through their own handler and do not propagate: mlflow, alembic, sqlalchemy, huey,
transformers, optuna. We find their handlers when they log, so the order of imports does not matter. Their records go to
loguru instead of the console.

Handlers of other kinds, levels and `propagate` do not change. A record that its logger would not emit is not emitted,
so a suppressed debug call costs no more than before.

We inspect handlers in `Logger.filter`, which returns before they are called. So a handler that looks for the caller of
`logging`, by counting frames or by their files, finds the frames that it expects.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
import warnings
import weakref
from typing import TYPE_CHECKING, Any

from autogen_team._logs import loguru_internals, passing
from autogen_team._logs.faults import is_reporting
from autogen_team._logs.passing import is_passed_on
from autogen_team._process import streams
from autogen_team._process.patches import Hook, replace

if TYPE_CHECKING:
    from collections.abc import Callable

    from autogen_team._process import Undo

_OWN = "autogen_team"
_WARNINGS = "py.warnings"  # the standard library's name of their logger

_NEW = frozenset(logging.makeLogRecord({}).__dict__)
_PARTS = _NEW | {"message", "asctime", "taskName"}
"""The standard attributes of a record; all others are fields added by the caller."""

consoles_left: list[object] = []
"""The console sinks that stopped writing because the job called `logger.remove()`."""

_formatter = logging.Formatter()
_diverted = threading.local()
"""Holds, for each thread, the last record that a library's own handler passed to loguru."""


def is_unheard() -> bool:
    """Return whether the job has removed our console handler and has no handler of its own."""
    return bool(consoles_left) and not loguru_internals.has_other_handlers()


def forward(record: logging.LogRecord) -> None:
    """Log the record through loguru with its own name, location, time, fields and exception; never raises."""
    thread = threading.get_ident()
    if is_reporting() or thread in passing.forwarded or loguru_internals.is_inside_a_sink() or _is_about_a_sink(record):
        # The record comes from loguru or from a sink, so it must not go back to loguru.
        _print_or_drop(record)
        return
    if record.levelno < loguru_internals.least_level():
        if not loguru_internals.takes_anything():  # all handlers are gone, as at the exit of the interpreter
            _last_resort(record)
        return
    try:
        passing.forwarded[thread] = record
        try:
            text = record.getMessage()
        except Exception as error:  # the arguments do not match; the standard library would print a traceback
            text = f"{record.msg} {record.args!r} [{type(error).__name__}: {error}]"
        _log(record, text)
        if is_unheard():
            _last_resort(record)
    except Exception:  # with `catch=False` a sink may raise, which must not reach a library that logs
        _print(record)
    finally:  # also after Ctrl-C in the `__str__` of an argument
        passing.forwarded.pop(thread, None)


def _log(record: logging.LogRecord, text: str) -> None:
    attributes = record.__dict__
    fields = {}
    if len(attributes) > len(_NEW) and not attributes.keys() <= _PARTS:
        fields = {name: attributes[name] for name in attributes if name not in _PARTS and not name.startswith("_")}
    error = record.exc_info if record.exc_info and record.exc_info[0] else None
    if record.exc_text and not error:  # the traceback of another process
        text = f"{text}\n{record.exc_text}"
    if record.stack_info:
        text = f"{text}\n{record.stack_info}"
    if passing.under_way:
        passing.notice(text, ())
    loguru_internals.log(record, text, fields, error)


def _is_about_a_sink(record: logging.LogRecord) -> bool:
    """Return whether asyncio reports the failure of a coroutine sink, which would fail on the report too."""
    return record.name == "asyncio" and bool(record.exc_info) and loguru_internals.comes_from_a_sink(record.exc_info)


def _print_or_drop(record: logging.LogRecord) -> None:
    """Print a record that must not be logged: our own always, others unless a handler accepts them."""
    if record.name.partition(".")[0] == _OWN:
        _print(record)
    elif not (passing.is_echo(record) or hasattr(record, "extra")):  # a line that a loguru sink sent back to `logging`
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None:
            if not all(isinstance(handler, Bridge) for handler in logger.handlers):
                return
            logger = logger.parent if logger.propagate else None
        _last_resort(record)


def _last_resort(record: logging.LogRecord) -> None:
    if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
        logging.lastResort.handle(record)


def _print(record: logging.LogRecord) -> None:
    """Print a report about logging itself on stderr."""
    try:
        streams.write(sys.stderr, f"{_OWN}: {_formatter.format(record)}\n")
    except Exception:  # stderr was the last place to report to
        return


class Bridge(logging.Handler):
    """Handler that passes records on to loguru, which has its own locks."""

    def createLock(self) -> None:  # noqa: N802 - the standard library's name
        """Create no lock: held around loguru's lock, it would deadlock with a sink that logs."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Forward the record, unless an earlier handler logged it through loguru."""
        is_logged = bool(passing.under_way) and passing.end(record)
        if not is_logged and self.filter(record):
            forward(record)
        return True


class _Diversion(logging.Filter):
    """Filter that forwards a record to loguru, and prevents a library's own handler from printing it."""

    def __init__(self, handler: logging.Handler, *, forwards: bool) -> None:
        super().__init__()
        self._handler = handler
        self._forwards = forwards

    def filter(self, record: logging.LogRecord) -> bool:
        stream = getattr(self._handler, "stream", None)
        if self._forwards and getattr(stream, "enabled", True):  # this is how mlflow silences its stream
            last: weakref.ref[logging.LogRecord] | None = getattr(_diverted, "record", None)
            if last is None or last() is not record:  # otherwise another handler of the library forwarded it
                _diverted.record = weakref.ref(record)
                forward(record)
        return False


class _Once(logging.Filter):
    """Filter for a handler that is a sink too: drops a line that it also gets as a record from its logger."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not passing.is_echo(record)


def intercept() -> Undo:
    """Start forwarding records and warnings; return a function that undoes it."""
    bridge = Bridge()
    added: dict[logging.Handler, list[logging.Filter]] = {}
    once = _Once()
    others: set[logging.Handler] = {bridge}
    root = logging.getLogger()

    def add_filter(handler: logging.Handler, made: logging.Filter) -> None:
        added.setdefault(handler, []).append(made)
        handler.addFilter(made)

    def keep_in_place(logger: logging.Logger, record: logging.LogRecord) -> None:
        last: logging.Logger | None = logger
        handlers = logger.handlers.copy()
        while last is not None and last.propagate:
            last = last.parent
            if last is not None:
                handlers += last.handlers
        for handler in handlers:
            if handler not in added and handler not in others:
                if _is_on_console(handler):
                    # The bridge forwards records that reach the root logger.
                    add_filter(handler, _Diversion(handler, forwards=last is not None))
                elif not isinstance(handler, logging.StreamHandler):  # a StreamHandler may change its stream later
                    others.add(handler)
        for handler in loguru_internals.logging_sinks():
            if handler in handlers and once not in handler.filters:
                add_filter(handler, once)
        if last is None:
            if not root.handlers or root.handlers[-1] is not bridge:  # another handler has been added, or all removed
                root.removeHandler(bridge)
                root.addHandler(bridge)
            if len(handlers) > 1 or passing.under_way:  # only another handler can log the record before the bridge
                passing.begin(record)

    def keeping_in_place(previous: Hook, is_active: Callable[[], bool]) -> Hook:
        def filter_record(self: logging.Logger, record: logging.LogRecord) -> Any:
            if not is_active():
                return previous(self, record)
            if passing.forwarded and passing.is_echo(record):
                return False
            kept = previous(self, record)
            if kept:  # from Python 3.12 on, it may be another record
                keep_in_place(self, kept if isinstance(kept, logging.LogRecord) else record)
            return kept

        return filter_record

    def without_bridge(previous: Hook, is_active: Callable[[], bool]) -> Hook:
        @functools.wraps(previous)
        def configure(**options: Any) -> None:
            """Call `basicConfig` without the bridge, because it does nothing when the root logger has a handler."""
            was_there = bridge in root.handlers
            root.removeHandler(bridge)
            try:
                previous(**options)
            finally:
                if was_there and is_active():
                    root.addHandler(bridge)

        return configure

    root.addHandler(bridge)
    replaced = [
        replace(logging, "basicConfig", without_bridge),
        replace(logging.Logger, "filter", keeping_in_place),
        replace(warnings, "showwarning", _forward_warnings),
    ]

    def undo() -> None:
        for give_back in replaced:
            give_back()
        for handler, filters in added.items():
            for one in filters:
                handler.removeFilter(one)
        root.removeHandler(bridge)

    return undo


def _is_on_console(handler: logging.Handler, depth: int = 3) -> bool:
    """Return whether the handler prints on the console, directly or through an attribute such as rich's `Console`."""
    if isinstance(handler, (logging.FileHandler, Bridge)) or not depth:
        return False
    if isinstance(handler, logging.StreamHandler):
        return _is_console(handler.stream)
    return any(
        _is_on_console(held, depth - 1) if isinstance(held, logging.Handler) else _prints(held)
        for held in list(vars(handler).values())
    )


def _prints(held: Any) -> bool:
    if held is None or isinstance(held, (str, bytes, int, float, list, dict, logging.Filterer, logging.Formatter)):
        return False
    try:
        return (
            _is_console(held) or _is_console(getattr(held, "file", None)) or _is_console(getattr(held, "stream", None))
        )
    except Exception:  # an object whose attributes fail
        return False


def _is_console(stream: Any) -> bool:
    if stream is None:
        return False
    # mlflow's own stream writes to the current sys.stderr.
    if type(stream).__name__ == "MlflowLoggingStream" or any(
        stream is one for one in (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__)
    ):
        return True
    try:
        return stream.fileno() in (1, 2)
    except Exception:  # not a file, or closed
        return False


def _forward_warnings(previous: Hook, is_active: Callable[[], bool]) -> Hook:
    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        if file is not None or not is_active():
            previous(message, category, filename, lineno, file, line)
            return
        record = logging.LogRecord(
            _WARNINGS, logging.WARNING, filename, lineno, f"{category.__name__}: {message}", None, None, "<module>"
        )
        forward(record)

    return show


class _TasksOnly(Bridge):
    """Bridge for asyncio's logger alone; leaves records to the bridge on the root logger if there is one."""

    def handle(self, record: logging.LogRecord) -> bool:
        if any(isinstance(handler, Bridge) for handler in logging.getLogger().handlers):
            return True
        return super().handle(record)


def forward_asyncio() -> Undo:
    """Forward asyncio's reports of task exceptions that were never retrieved, even if nothing else is forwarded."""
    logger = logging.getLogger("asyncio")
    bridge = _TasksOnly(logging.ERROR)
    logger.addHandler(bridge)
    return lambda: logger.removeHandler(bridge)


__all__ = ["Bridge", "forward", "forward_asyncio", "intercept", "is_passed_on"]
