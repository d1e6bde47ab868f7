"""Logs a message unchanged if it cannot be formatted, instead of raising an error in the job.

`logger.info('{"a": 1} {}', 5)` raises a KeyError inside loguru before it calls any handler. So no handler or
patcher can help. JSON in messages makes this the most reported crash of loguru.

While logging runs, we replace the methods of `loguru.Logger`. Ours do what loguru's do, at the same stack depth and the
same cost. They step in only when the formatting of a message has failed. `logger` stays the object that every module
has imported.
"""

from __future__ import annotations

import linecache
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import loguru

from autogen_team._logs import loguru_names
from autogen_team._logs.passing import notice, under_way
from autogen_team._process.patches import Hook, replace

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from autogen_team._process import Undo

_logger_class: Any = type(loguru.logger)
_METHODS = ("trace", "debug", "info", "success", "warning", "error", "critical")
_FORMATTING = ("message.format(", "str(message)", "Colorizer.prepare_")
"""Fragments of the lines of `Logger._log` that format the message."""


def tolerate_bad_braces() -> Undo:
    """Log messages that cannot be formatted unchanged; return a function that restores loguru's methods."""
    if not loguru_names.MESSAGES.works():
        return lambda: None
    ours: dict[str, Callable[..., None]] = {name: _method(name.upper()) for name in _METHODS}
    ours |= {"exception": _exception, "log": _log}
    with ExitStack() as undo:
        for name, method in ours.items():
            undo.callback(replace(_logger_class, name, partial(_named, method)))
        return undo.pop_all().close


def _named(method: Hook, plain: Hook, _is_active: Callable[[], bool]) -> Hook:
    method.__name__, method.__doc__ = plain.__name__, plain.__doc__
    return method


def _method(level: str) -> Callable[..., None]:
    def method(self: Any, message: Any, /, *args: Any, **kwargs: Any) -> None:
        if under_way:
            notice(message, args)
        try:
            self._log(level, False, self._options, message, args, kwargs)
        except Exception as error:
            if not _is_about_the_message(error.__traceback__):
                raise
            _log_as_it_is(self, level, self._options, message, args, kwargs, error)

    return method


def _exception(self: Any, message: Any, /, *args: Any, **kwargs: Any) -> None:
    options = (True, *self._options[1:])
    if under_way:
        notice(message, args)
    try:
        self._log("ERROR", False, options, message, args, kwargs)
    except Exception as error:
        if not _is_about_the_message(error.__traceback__):
            raise
        _log_as_it_is(self, "ERROR", options, message, args, kwargs, error)


def _log(self: Any, level: str | int, message: Any, /, *args: Any, **kwargs: Any) -> None:
    if under_way:
        notice(message, args)
    try:
        self._log(level, False, self._options, message, args, kwargs)
    except Exception as error:
        if not _is_about_the_message(error.__traceback__):
            raise
        _log_as_it_is(self, level, self._options, message, args, kwargs, error)


def _is_about_the_message(trace: TracebackType | None) -> bool:
    """Return whether `Logger._log`, one frame down, failed while it formatted the message."""
    inner = trace.tb_next if trace is not None else None
    if inner is None or inner.tb_frame.f_code is not _logger_class._log.__code__:  # noqa: SLF001 - see `loguru_names`
        return False
    source = linecache.getline(inner.tb_frame.f_code.co_filename, inner.tb_lineno)
    return any(word in source for word in _FORMATTING)


def _log_as_it_is(
    logger: Any, level: str | int, options: tuple[Any, ...], message: Any, args: Any, kwargs: Any, error: Exception
) -> None:
    exception, depth, record, lazy, _, raw, capture, patchers, extra = options
    if exception and not isinstance(exception, (BaseException, tuple)):
        # The exception that the job is handling, not the formatting error.
        exception = error.__context__ or False
    if record:
        kwargs.pop("record", None)  # loguru's `_log` has put it there
    if lazy:
        args = [_safely(_call, arg) for arg in args]
        kwargs = {name: _safely(_call, value) for name, value in kwargs.items()}
    # Keyword arguments become fields of the line, as usual; positional arguments follow the message.
    text = _safely(str, message)
    if args:
        text = f"{text} [{', '.join(_safely(repr, arg) for arg in args)}]"
    options = (exception, depth + 1, False, False, False, raw, capture, patchers, extra)
    logger._log(level, False, options, text.replace("{", "{{").replace("}", "}}"), ("",), kwargs)  # noqa: SLF001 - see `loguru_names`


def _call(function: Callable[[], Any]) -> Any:
    return function()


def _safely(convert: Callable[[Any], Any], value: Any) -> Any:
    try:
        return convert(value)
    except Exception as error:
        return f"<{type(value).__name__}: {type(error).__name__} when shown>"
