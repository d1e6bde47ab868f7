"""All uses of loguru's internals; `loguru_names` lists them, and the features that are lost without each."""

from __future__ import annotations

import copy
import functools
import io
import logging
import os
import pickle  # only to ask whether a handler can be pickled; nothing is loaded  # nosec B403
import re
import sys
import threading
import weakref
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import current_process
from string import Formatter
from time import monotonic
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import loguru

from autogen_team._logs import loguru_names
from autogen_team._process.patches import Hook, replace
from autogen_team._process.private_names import find

if TYPE_CHECKING:
    from collections.abc import Callable

    from autogen_team._process import Undo

_DEFAULT_HANDLER = 0
_NAMED_LEVELS = {10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR", 50: "CRITICAL"}
_MARKUP = re.compile(r"</?[A-Za-z][\w ,#-]*>")
_UNREACHABLE = sys.maxsize
"""A level above all others. Not infinity, because `repr(logger)` formats levels as integers."""

# None of these is typed.
_colorizer: Any = find("loguru._colorizer:Colorizer")
_file_sink: Any = find("loguru._file_sink:")
_sinks: Any = find("loguru._simple_sinks:")
_loguru: Any = find("loguru._logger:")
_record: Any = find("loguru._recattrs:")
_datetime: Any = find("loguru._datetime:datetime", datetime)
_logger: Any = type(loguru.logger)
_of_this_process: weakref.WeakSet[Any] = weakref.WeakSet()
"""Handlers left out of copies of a logger: those of our sinks, and loguru's own while it is silenced."""
_kept: weakref.WeakSet[Any] = weakref.WeakSet()
"""Handlers that `logger.remove()` leaves in place."""


def _core() -> Any:
    return loguru.logger._core  # type: ignore[attr-defined]  # noqa: SLF001 - the purpose of this module


def set_default_handler_aside() -> Undo:
    """Silence the handler that loguru adds on import; return a function that restores it.

    The handler stays registered, because scripts that begin with `logger.remove(0)` must not fail.
    """
    if not loguru_names.HANDLERS.works():
        return lambda: None
    core = _core()
    with core.lock:
        handler = core.handlers.get(_DEFAULT_HANDLER) if find("loguru._defaults:LOGURU_AUTOINIT") else None
        if handler is None:
            return lambda: None
        level = handler.levelno
        handler._levelno = _UNREACHABLE  # noqa: SLF001 - see `loguru_names`
        _of_this_process.add(handler)
        _find_least_level(core)

    def give_back() -> None:
        with core.lock:
            handler._levelno = level  # noqa: SLF001 - see `loguru_names`
            _of_this_process.discard(handler)
            _find_least_level(core)

    return give_back


def _find_least_level(core: Any) -> None:
    core.min_level = min((handler.levelno for handler in core.handlers.values()), default=float("inf"))


def adopt(handler_id: int) -> threading.local:
    """Keep the handler out of copies of the logger, and in place when a script calls `logger.remove()`.

    Returns:
        The handler's thread-local state; its attribute `acquired` says whether the thread is inside the sink.

    """
    if not loguru_names.HANDLERS.works():
        return threading.local()
    handler = _core().handlers[handler_id]
    _of_this_process.add(handler)
    _kept.add(handler)
    if not loguru_names.SINKS.works():
        return threading.local()
    found: threading.local = handler._lock_acquired  # noqa: SLF001 - see `loguru_names`
    return found


def keep_on_removal(removed: Callable[[], None]) -> Undo:
    """Make `logger.remove()` leave adopted handlers in place; return a function that undoes it.

    Args:
        removed: called after each `logger.remove()` that left an adopted handler in place.

    """
    if not loguru_names.HANDLERS.works():
        return lambda: None

    def make(previous: Hook, is_active: Callable[[], bool]) -> Hook:
        @functools.wraps(previous)
        def remove(self: Any, handler_id: int | None = None) -> None:
            core = self._core
            if handler_id is not None or core is not _core() or not is_active():
                previous(self, handler_id)
                return
            for number, handler in list(core.handlers.items()):
                if handler not in _kept and number in core.handlers:
                    previous(self, number)
            if core.handlers:
                removed()

        return remove

    return replace(_logger, "remove", make)


def is_inside_a_sink() -> bool:
    """Return whether a loguru sink runs the calling code, directly or indirectly.

    Inside a sink, loguru would refuse another message, or call the same sink again and again. Three kinds of sinks
    count: called directly, with a queue and a thread (`enqueue=True`), and coroutines.
    """
    if not (loguru_names.HANDLERS.works() and loguru_names.SINKS.works()):
        return False
    thread = threading.get_ident()
    for handler in _core().handlers.values():
        if getattr(handler._lock_acquired, "acquired", False):  # noqa: SLF001 - see `loguru_names`
            return True
        writer = handler._thread  # noqa: SLF001 - see `loguru_names`
        if writer is not None and writer.ident == thread:
            return True
        sink = handler._sink  # noqa: SLF001 - see `loguru_names`
        if type(sink) is _sinks.AsyncSink and _current_task() in sink._tasks:  # noqa: SLF001 - see `loguru_names`
            return True
    return False


def _current_task() -> object:
    import asyncio

    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop is running
        return None


def comes_from_a_sink(error: Any) -> bool:
    """Return whether a coroutine sink raised the exception, a tuple as returned by `sys.exc_info`."""
    file = getattr(_sinks, "__file__", None)
    trace = error[2]
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            return True
        trace = trace.tb_next
    return False


def logging_sinks() -> tuple[logging.Handler, ...]:
    """Return the handlers of the standard library that are sinks of loguru."""
    global _logging_sinks
    if not (loguru_names.HANDLERS.works() and loguru_names.SINKS.works()):
        return ()
    handlers = _core().handlers  # loguru replaces this dict whenever a handler is added or removed
    if handlers is not _logging_sinks[0]:
        sinks = (handler._sink for handler in handlers.values())  # noqa: SLF001 - see `loguru_names`
        found = tuple(sink._handler for sink in sinks if type(sink) is _sinks.StandardSink)  # noqa: SLF001 - as above
        _logging_sinks = handlers, found
    return _logging_sinks[1]


_logging_sinks: tuple[Any, tuple[logging.Handler, ...]] = (None, ())


def has_other_handlers() -> bool:
    """Return whether the job has its own loguru handlers."""
    if not loguru_names.HANDLERS.works():
        return False
    return any(handler not in _of_this_process for handler in _core().handlers.values())


def least_level() -> float:
    """Return the lowest level that any handler accepts."""
    if not loguru_names.HANDLERS.works():
        return 0.0
    found: float = _core().min_level
    return found


def takes_anything() -> bool:
    """Return whether any handler is left, apart from loguru's own while it is silenced."""
    return least_level() < _UNREACHABLE


RAW = "raw"
"""The key that marks a record of `opt(raw=True)`, while `mark_raw` is active."""


def mark_raw() -> Undo:
    """Mark records of `opt(raw=True)`, which handlers cannot recognize; return a function that stops it."""
    return replace(_logger, "opt", _marking)


def _marking(previous: Hook, is_active: Callable[[], bool]) -> Hook:
    @functools.wraps(previous)
    def opt(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = previous(self, *args, **kwargs)
        return made.patch(_mark) if kwargs.get("raw") and is_active() else made

    return opt


def _mark(record: Any) -> None:
    record[RAW] = True


def let_travel() -> Undo:
    """Make loggers picklable and copyable despite our handlers; return a function that undoes it.

    loguru copies and pickles all handlers, which fails for ours.

    - A deep copy has all handlers except ours, as in loguru's recipe for independent loggers.
    - A process that is being spawned gets the handlers that can be pickled, mainly those with `enqueue=True`.
    - Any other pickle has the bound values and no handlers. It writes to the handlers of the process that loads it.
      Such pickles are common: functions of `__main__` include the global `logger` when joblib, Dask or Ray send them
      to a worker.
    """
    if not (loguru_names.HANDLERS.works() and loguru_names.MESSAGES.works()):
        return lambda: None
    undo = [
        replace(_logger, "__reduce__", lambda _previous, _is_active: _reduced),
        replace(_logger, "__deepcopy__", lambda _previous, _is_active: _deep_copy),
    ]

    def undo_all() -> None:
        for one in undo:
            one()

    return undo_all


def _reduced(logger: Any) -> tuple[Any, ...]:
    spawned = sys.modules.get("multiprocessing.context")
    if spawned is not None and spawned.get_spawning_popen() is not None:
        core = _without_ours(logger._core, _can_be_pickled)  # noqa: SLF001 - see `loguru_names`
        if core.handlers:
            return _logger, (core, *logger._options)  # noqa: SLF001 - see `loguru_names`
    return _with_local_handlers, (logger._options,)  # noqa: SLF001 - see `loguru_names`


def _with_local_handlers(options: tuple[Any, ...]) -> Any:
    return _logger(_core(), *options)


def _deep_copy(logger: Any, memo: dict[int, Any]) -> Any:
    core = logger._core  # noqa: SLF001 - see `loguru_names`
    if id(core) not in memo:
        memo[id(core)] = copy.deepcopy(_without_ours(core, lambda _: True), memo)
    return _logger(memo[id(core)], *copy.deepcopy(logger._options, memo))  # noqa: SLF001 - see `loguru_names`


def _without_ours(core: Any, wanted: Callable[[Any], bool]) -> Any:
    made = copy.copy(core)
    made.handlers = {
        number: handler
        for number, handler in core.handlers.items()
        if handler not in _of_this_process and wanted(handler)
    }
    _find_least_level(made)
    return made


def _can_be_pickled(handler: Any) -> bool:
    """Return whether the handler can be pickled, apart from its queue, which only a spawned process can receive."""
    try:
        _WithoutQueues(io.BytesIO()).dump(handler)
    except Exception:
        return False
    return True


class _WithoutQueues(pickle.Pickler):
    """Pickler that leaves out queues and locks, which a process receives when it is spawned."""

    def reducer_override(self, obj: Any) -> Any:
        return (object, ()) if type(obj).__module__ in _GIVEN_WHEN_SPAWNED else NotImplemented


_GIVEN_WHEN_SPAWNED = ("multiprocessing.queues", "multiprocessing.synchronize", "multiprocessing.connection")


def without_markup(template: str) -> str:
    """Return the template as text without colours.

    Raises:
        ValueError: the markup or the braces are not well formed; the message says what is wrong.

    """
    if not loguru_names.COLOURS.works():
        list(Formatter().parse(template))  # raises a ValueError for malformed braces
        return _MARKUP.sub("", template)
    stripped: str = _colorizer.prepare_format(template).strip()
    return stripped


def with_colours(template: str, level_colour: str) -> str:
    """Return the template with escape sequences in place of its markup; `<level>` becomes `level_colour`."""
    if not loguru_names.COLOURS.works():
        return _MARKUP.sub("", template)
    coloured: str = _colorizer.prepare_format(template).colorize(_colorizer.ansify(level_colour))
    return coloured


def level_colour(name: str) -> str:
    """Return the colour markup of a level from `logger.level`; an empty string if it does not know the level."""
    try:
        return loguru.logger.level(name).color
    except ValueError:
        return ""


def time_formatter(spec: str) -> Callable[[Any], str]:
    """Return a function that formats the time of a record by loguru's tokens, such as `YYYY-MM-DD`."""
    return lambda time: format(time, spec)


def make_record(level: str, message: str, *, name: str, exception: BaseException | None = None) -> dict[str, Any]:
    """Return a record like loguru's, with the current time and thread."""
    found = loguru.logger.level(level)
    thread = threading.current_thread()
    now = _datetime.now(UTC).astimezone()
    return {
        "elapsed": now - now,
        "exception": exception and _part("Exception", type(exception), exception, exception.__traceback__),
        "extra": {},
        "file": record_file("<unknown>", "<unknown>"),
        "function": "<unknown>",
        "level": _part("Level", found.name, found.no, found.icon),
        "line": 0,
        "message": message,
        "module": "<unknown>",
        "name": name,
        "process": record_process(os.getpid(), "MainProcess"),
        "thread": record_thread(thread.ident or 0, thread.name),
        "time": now,
    }


class _Plain:
    """Part of a record, if loguru's own class is missing."""

    def __init__(self, names: tuple[str, ...], values: tuple[Any, ...], shown: int) -> None:
        self.__dict__.update(zip(names, values, strict=True))
        self._shown = str(values[shown])

    def __format__(self, spec: str) -> str:
        return format(self._shown, spec)

    def __str__(self) -> str:
        return self._shown


_FIELDS = {
    "Exception": (("type", "value", "traceback"), 1),
    "File": (("name", "path"), 0),
    "Level": (("name", "no", "icon"), 0),
    "Process": (("id", "name"), 0),
    "Thread": (("id", "name"), 0),
}
"""The fields of each part of a record, and the index of the field that a line shows."""


def _part(kind: str, *values: Any) -> Any:
    if loguru_names.RECORDS.works():
        return getattr(_record, f"Record{kind}")(*values)
    names, shown = _FIELDS[kind]
    return _Plain(names, values, shown)


def log(source: logging.LogRecord, message: str, fields: dict[str, Any], error: Any) -> None:
    """Log a record of the standard library, with its own name, place, time, thread and process.

    `logger.patch(...).log(...)` takes twice as long, because loguru first determines the place and time of the call.

    Args:
        source: the record.
        message: the text of the record.
        fields: fields to add to the bound values.
        error: the exception, a tuple as returned by `sys.exc_info`, or None.

    """
    if not _is_direct():
        _log_publicly(source, message, fields, error)
        return
    core = _core()
    if core.activation_list and not _is_enabled(core, source.name):
        return
    level = _NAMED_LEVELS.get(source.levelno, source.levelno)
    level_id, _, number, icon = core.levels_lookup.get(level) or (None, "", source.levelno, " ")
    time = record_time(source.created, _recently())
    record = {
        "elapsed": time - _loguru.start_time,
        "exception": error and _record.RecordException(*error),
        "extra": {**core.extra, **_loguru.context.get(), **fields},
        "file": record_file(source.filename, source.pathname),
        "function": source.funcName,
        "level": _record.RecordLevel(source.levelname, number, icon),
        "line": source.lineno,
        "message": message,
        "module": source.module,
        "name": source.name,
        # `logging.logProcesses`, `logMultiprocessing` and `logThreads` may be off.
        "process": record_process(source.process or os.getpid(), source.processName or current_process().name),
        "thread": record_thread(
            source.thread or threading.get_ident(), source.threadName or threading.current_thread().name
        ),
        "time": time,
    }
    if core.patcher:
        core.patcher(record)
    for handler in core.handlers.values():
        handler.emit(record, level_id, False, False, None)


def _is_direct() -> bool:
    return loguru_names.HANDLERS.works() and loguru_names.RECORDS.works() and loguru_names.DIRECT.works()


def _log_publicly(source: logging.LogRecord, message: str, fields: dict[str, Any], error: Any) -> None:
    def place(record: Any) -> None:
        record.update(name=source.name, function=source.funcName, line=source.lineno, module=source.module)
        record["extra"].update(fields)

    level = _NAMED_LEVELS.get(source.levelno, source.levelno)
    loguru.logger.opt(exception=error).patch(place).log(level, "{}", message)


def _recently() -> Any:
    """Return a local time at most a second old, for its time zone; to ask the system for the time zone is slow."""
    global _last_look
    looked, found = _last_look
    now = monotonic()
    if now - looked > 1:
        found = _loguru.aware_now()
        _last_look = now, found  # in one step, because threads share it
    return found


_last_look: tuple[float, Any] = (float("-inf"), None)


def _is_enabled(core: Any, name: str) -> bool:
    """Return whether the name is enabled, not silenced by `logger.disable`."""
    return next((status for parent, status in core.activation_list if f"{name}.".startswith(parent)), True)


def record_thread(number: int, name: str | None) -> Any:
    """Return the thread part of a record."""
    return _part("Thread", number, name)


def record_process(number: int, name: str | None) -> Any:
    """Return the process part of a record."""
    return _part("Process", number, name)


def record_time(timestamp: float, like: Any) -> Any:
    """Return the time part of a record, in the time zone of `like`."""
    return _datetime.fromtimestamp(timestamp, like.tzinfo)


def record_file(name: str, path: str) -> Any:
    """Return the file part of a record."""
    return _part("File", name, path)


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings `rotation`, `retention` and `compression`, as loguru interprets them."""

    new_due: Callable[[], Callable[[Any, int, str], bool]] | None
    """Makes the check for a new file: `due(time, size with the next line, path)` returns whether the file is full."""
    compress: Callable[[str], None] | None
    retain: Callable[[list[str]], None] | None
    patterns: list[str]
    """Globs that match the file and its rotated predecessors."""


def rules(path: str, rotation: str | int | None, retention: str | int | None, compression: str | None) -> Rules:
    """Return these settings as loguru interprets them.

    Raises:
        ValueError: loguru does not know one of the values.

    """
    if not loguru_names.FILES.works():
        return Rules(None, None, None, [path])
    make_rotation = _file_sink.FileSink._make_rotation_function  # noqa: SLF001 - see `loguru_names`
    make_rotation(rotation)
    return Rules(
        new_due=None if rotation is None else lambda: _due(make_rotation(rotation)),
        compress=_file_sink.FileSink._make_compression_function(compression),  # noqa: SLF001 - see `loguru_names`
        retain=_file_sink.FileSink._make_retention_function(retention),  # noqa: SLF001 - see `loguru_names`
        patterns=_file_sink.FileSink._make_glob_patterns(path),  # noqa: SLF001 - see `loguru_names`
    )


def _due(rotation: Any) -> Callable[[Any, int, str], bool]:
    limit = getattr(rotation, "keywords", {}).get("size_limit")
    if limit is not None:
        return lambda time, size, path: size > limit  # noqa: ARG005 - the other kind of rotation needs them
    return lambda time, size, path: rotation(  # noqa: ARG005 - as above
        SimpleNamespace(record={"time": time}), SimpleNamespace(name=path)
    )


def path_now(template: str) -> str:
    """Return the absolute path of a log file whose name may contain `{time}`.

    Raises:
        KeyError, ValueError, IndexError: the name contains other braces.

    """
    time = (
        _file_sink.FileDateFormatter()
        if loguru_names.FILES.works()
        else f"{datetime.now(UTC).astimezone():%Y-%m-%d_%H-%M-%S}"
    )
    return os.path.abspath(template.format_map({"time": time}))  # noqa: PTH100 - links stay as they are


def set_aside_name(path: str) -> str:
    """Return the new name of a full log file."""
    stem, extension = os.path.splitext(path)  # noqa: PTH122 - as loguru does
    name: str = _file_sink.generate_rename_path(stem, extension, _file_sink.get_ctime(path))
    return name


def note_birth(path: str) -> None:
    """Store the creation time on the new file: Linux does not report it, and rotation by time needs it."""
    import time

    _file_sink.set_ctime(path, time.time())
