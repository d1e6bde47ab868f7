"""The records of the standard library's logging, and warnings, in loguru: every library's lines in the job's own log.

A handler on the root logger takes what propagates there; what other handlers of that logger would print on the console
is kept back, and `logging.basicConfig` still sets the level. Libraries that print on the console through a handler of
their own and do not propagate (mlflow, alembic, sqlalchemy, huey, transformers, optuna) are found when they log, so the
order of imports does not matter: what such a handler would print goes to loguru instead. Handlers of other kinds,
levels and `propagate` stay as they are, and a record that a logger would not emit is not emitted: a suppressed debug
call costs what it always did.
"""

from __future__ import annotations

import functools
import logging
import math
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

import loguru

from autogen_team.io import _streams
from autogen_team.io._logs import seam
from autogen_team.io._logs.faults import is_reporting
from autogen_team.io._logs.hooks import Hook, replace

if TYPE_CHECKING:
    from collections.abc import Callable

    from autogen_team.io._job import Undo

_OWN = "autogen_team"
_LEVELS = {10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR", 50: "CRITICAL"}
_WARNINGS = "py.warnings"  # the name that the standard library has for them

_state = threading.local()
_formatter = logging.Formatter()


def is_forwarding() -> bool:
    """Tell whether the calling code handles a record that came from the standard library."""
    return getattr(_state, "forwarding", False)


def forward(record: logging.LogRecord) -> None:
    """Log the record through loguru, with its own name, place and exception; never raises."""
    if is_reporting() or is_forwarding() or seam.is_inside_a_sink():
        # It comes out of loguru: forwarded by a handler of somebody's, or said by a sink. It must not go in again.
        if record.name.partition(".")[0] == _OWN:
            _say(record)
        return
    least = seam.least_level()
    if record.levelno < least:
        if least == math.inf and logging.lastResort is not None and record.levelno >= logging.lastResort.level:
            logging.lastResort.handle(record)  # all handlers are gone, as at the exit of the interpreter
        return
    _state.forwarding = True
    try:
        text = record.getMessage()
    except Exception as error:  # the arguments do not fit: the standard library would print a traceback
        text = f"{record.msg} {record.args!r} [{type(error).__name__}: {error}]"
    try:
        _log(record, text)
    except Exception:  # with `catch=False` a sink may raise: to whoever logs, not to whatever library says something
        _say(record)
    finally:
        _state.forwarding = False


def _log(record: logging.LogRecord, text: str) -> None:
    def describe(made: Any) -> None:
        made["name"] = record.name
        made["function"] = record.funcName
        made["line"] = record.lineno
        made["module"] = record.module
        made["file"] = seam.record_file(record.filename, record.pathname)
        level = made["level"]
        if level.name != record.levelname:
            made["level"] = seam.record_level(record.levelname, level.no, level.icon)

    exception = record.exc_info if record.exc_info and record.exc_info[0] else None
    if record.stack_info:
        text = f"{text}\n{record.stack_info}"
    level = _LEVELS.get(record.levelno, record.levelno)
    plain = loguru.logger.opt(exception=exception) if exception else loguru.logger  # each step makes a logger anew
    plain.patch(describe).log(level, text)


def _say(record: logging.LogRecord) -> None:
    """Print a word about logging itself, for which there is no log."""
    try:
        _streams.write(sys.stderr, f"{_OWN}: {_formatter.format(record)}\n")
    except Exception:  # nobody is left to be told
        return


class Bridge(logging.Handler):
    """Hands records to loguru, which has its own locks."""

    def createLock(self) -> None:  # noqa: N802 - the standard library's name
        """Do without: held around loguru's lock, it would be a deadlock with a sink that logs."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Forward the record."""
        if self.filter(record):
            forward(record)
        return True


class _Diversion(logging.Filter):
    """Forwards what a library's own handler is about to print, and keeps it from printing."""

    def __init__(self, handler: logging.StreamHandler[Any], *, forwards: bool) -> None:
        super().__init__()
        self._handler = handler
        self._forwards = forwards

    def filter(self, record: logging.LogRecord) -> bool:
        if self._forwards and getattr(self._handler.stream, "enabled", True):  # mlflow silences itself so
            forward(record)
        return False


def intercept() -> Undo:
    """Forward records and warnings from now on; the returned function puts everything back."""
    bridge = Bridge()
    diversions: list[tuple[logging.Handler, _Diversion]] = []
    diverted: set[logging.Handler] = set()
    root = logging.getLogger()

    def keep_in_place(logger: logging.Logger) -> None:
        last: logging.Logger | None = logger
        while last is not None and last.propagate:
            last = last.parent
        if last is None and bridge not in root.handlers:  # somebody has configured logging anew
            root.addHandler(bridge)
        for handler in (last or root).handlers:
            if handler not in diverted and _is_on_console(handler):
                # On the root logger the bridge has forwarded the record already.
                diversion = _Diversion(handler, forwards=last is not None)  # type: ignore[arg-type]  # it has a stream
                diverted.add(handler)
                diversions.append((handler, diversion))
                handler.addFilter(diversion)

    def keeping_in_place(previous: Hook, is_active: Callable[[], bool]) -> Hook:
        def call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
            if is_active():
                keep_in_place(self)
            previous(self, record)

        return call_handlers

    def without_bridge(previous: Hook, is_active: Callable[[], bool]) -> Hook:
        @functools.wraps(previous)
        def configure(**options: Any) -> None:
            """Do what the job asks for, as if the bridge, for which it would do nothing, were not there."""
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
        replace(logging.Logger, "callHandlers", keeping_in_place),  # as others do, sentry for one
        replace(warnings, "showwarning", _forward_warnings),
    ]

    def undo() -> None:
        for give_back in replaced:
            give_back()
        for handler, diversion in diversions:
            handler.removeFilter(diversion)
        root.removeHandler(bridge)

    return undo


def _is_on_console(handler: logging.Handler) -> bool:
    if not isinstance(handler, logging.StreamHandler) or isinstance(handler, logging.FileHandler):
        return False
    stream = handler.stream
    # mlflow's own stream passes on to whatever sys.stderr is.
    if type(stream).__name__ == "MlflowLoggingStream" or stream in (
        sys.stderr,
        sys.stdout,
        sys.__stderr__,
        sys.__stdout__,
    ):
        return True
    try:
        return stream.fileno() in (1, 2)
    except Exception:  # no file at all, or closed
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
    """Forwards unless everything is forwarded."""

    def handle(self, record: logging.LogRecord) -> bool:
        if any(isinstance(handler, Bridge) for handler in logging.getLogger().handlers):
            return True
        return super().handle(record)


def forward_asyncio() -> Undo:
    """Forward what asyncio says about tasks that failed with nobody looking, even if nothing else is forwarded."""
    logger = logging.getLogger("asyncio")
    bridge = _TasksOnly(logging.ERROR)
    logger.addHandler(bridge)
    return lambda: logger.removeHandler(bridge)


__all__ = ["Bridge", "forward", "forward_asyncio", "intercept", "is_forwarding"]
