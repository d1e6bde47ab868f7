"""Everything that we need of loguru and that it does not promise, in one place.

Each touch has a contract test (`tests/io/logs/test_seam.py`), so that a new loguru that breaks one is found by the
suite and not by a job. What is touched:

- `loguru.logger._core`: its handlers and the least level among them, to set loguru's own first handler aside and give
  it back, under its own id; and the locks of the handlers, to know whether this thread is inside one.
- `loguru._colorizer.Colorizer`: from markup such as `<green>` to escape sequences.
- `loguru._file_sink.FileSink`: what `rotation`, `retention` and `compression` mean, and how a rotated file is called.
- `loguru._recattrs`: the parts of a record.
- `loguru._logger.Logger`: `opt`, to know raw messages; `_log`, `_options` (see `braces`); its constructor and
  `__reduce__`, to pickle a logger without its handlers.
"""

from __future__ import annotations

import functools
import math
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import loguru
import loguru._colorizer
import loguru._file_sink
import loguru._recattrs
from loguru import _defaults
from loguru._datetime import datetime
from loguru._logger import Logger

from autogen_team.io._logs.hooks import Hook, replace

if TYPE_CHECKING:
    from collections.abc import Callable

    from autogen_team.io._job import Undo

_DEFAULT_HANDLER = 0

# None of them has types.
_colorizer: Any = loguru._colorizer.Colorizer  # noqa: SLF001 - what this module is for
_file_sink: Any = loguru._file_sink  # noqa: SLF001 - see the head of the module
_record: Any = loguru._recattrs  # noqa: SLF001 - see the head of the module
_logger: Any = Logger


def _core() -> Any:
    return loguru.logger._core  # type: ignore[attr-defined]  # noqa: SLF001 - what this module is for


def set_default_handler_aside() -> Undo:
    """Silence the handler that loguru adds to itself when it is imported; the returned function gives it back.

    It stays where it is, because scripts that begin with `logger.remove(0)` must not fail.
    """
    core = _core()
    with core.lock:
        handler = core.handlers.get(_DEFAULT_HANDLER) if _defaults.LOGURU_AUTOINIT else None
        if handler is None:
            return lambda: None
        level = handler.levelno
        handler._levelno = math.inf  # noqa: SLF001 - see the head of the module
        _find_least_level(core)

    def give_back() -> None:
        with core.lock:
            handler._levelno = level  # noqa: SLF001 - see the head of the module
            _find_least_level(core)

    return give_back


def _find_least_level(core: Any) -> None:
    core.min_level = min((handler.levelno for handler in core.handlers.values()), default=math.inf)


def handler_lock(handler_id: int) -> threading.local:
    """Return where the handler notes whether the calling thread is inside of its sink, as the attribute `acquired`."""
    found: threading.local = _core().handlers[handler_id]._lock_acquired  # noqa: SLF001 - see the head of the module
    return found


def is_inside_a_sink() -> bool:
    """Tell whether loguru called, perhaps by detours, the code that asks: another message would be refused."""
    return any(
        getattr(handler._lock_acquired, "acquired", False)  # noqa: SLF001 - see the head of the module
        for handler in _core().handlers.values()
    )


def least_level() -> float:
    """Return the level below which no handler takes anything."""
    found: float = _core().min_level
    return found


RAW = "raw"
"""The key of records that come from `opt(raw=True)`, while `mark_raw` is in force."""


def mark_raw() -> Undo:
    """Mark records of `opt(raw=True)`, which handlers cannot tell from others; the returned function stops it."""
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
    """Let a logger be pickled as what was bound to it; the returned function stops it.

    Where it arrives it writes to whatever the handlers there are. Loguru pickles the handlers too, which fails for
    most; and functions of `__main__` take the global `logger` along when joblib, Dask or Ray send them to a worker.
    """
    _logger.__reduce__ = lambda self: (_arrive, (self._options,))

    def undo() -> None:
        with suppress(AttributeError):
            del _logger.__reduce__

    return undo


def _arrive(options: tuple[Any, ...]) -> Any:
    return _logger(_core(), *options)


def without_markup(template: str) -> str:
    """Return the template as text without colours.

    Raises:
        ValueError: the markup or the braces are not well formed; the message says what is wrong.

    """
    stripped: str = _colorizer.prepare_format(template).strip()
    return stripped


def with_colours(template: str, level_colour: str) -> str:
    """Return the template with escape sequences in the place of its markup, `<level>` being `level_colour`."""
    coloured: str = _colorizer.prepare_format(template).colorize(_colorizer.ansify(level_colour))
    return coloured


def level_colour(name: str) -> str:
    """Return the markup of a level, as `logger.level` knows it; nothing for a level without a name."""
    try:
        return loguru.logger.level(name).color
    except ValueError:
        return ""


def time_formatter(spec: str) -> Callable[[Any], str]:
    """Return what formats the time of a record by loguru's tokens, such as `YYYY-MM-DD`."""
    return lambda time: format(time, spec)


def make_record(level: str, message: str, *, name: str, exception: BaseException | None = None) -> dict[str, Any]:
    """Return a record as loguru makes them, of this moment and this thread."""
    found = loguru.logger.level(level)
    thread = threading.current_thread()
    now = datetime.now(UTC).astimezone()
    return {
        "elapsed": now - now,
        "exception": exception and _record.RecordException(type(exception), exception, exception.__traceback__),
        "extra": {},
        "file": _record.RecordFile("<unknown>", "<unknown>"),
        "function": "<unknown>",
        "level": _record.RecordLevel(found.name, found.no, found.icon),
        "line": 0,
        "message": message,
        "module": "<unknown>",
        "name": name,
        "process": _record.RecordProcess(os.getpid(), "MainProcess"),
        "thread": _record.RecordThread(thread.ident, thread.name),
        "time": now,
    }


def record_level(name: str, no: int, icon: str) -> Any:
    """Return the level part of a record."""
    return _record.RecordLevel(name, no, icon)


def record_file(name: str, path: str) -> Any:
    """Return the file part of a record."""
    return _record.RecordFile(name, path)


@dataclass(frozen=True, slots=True)
class Rules:
    """What loguru makes of the words of `rotation`, `retention` and `compression`."""

    new_due: Callable[[], Callable[[Any, int, str], bool]] | None
    """Makes, for a new file, what tells whether it is full: `due(time, size it would have, path)`."""
    compress: Callable[[str], None] | None
    retain: Callable[[list[str]], None] | None
    patterns: list[str]
    """Globs that match the file and its rotated predecessors."""


def rules(path: str, rotation: str | int | None, retention: str | int | None, compression: str | None) -> Rules:
    """Return what loguru makes of these words.

    Raises:
        ValueError: one of them is none that it knows.

    """
    make_rotation = _file_sink.FileSink._make_rotation_function  # noqa: SLF001 - see the head of the module
    make_rotation(rotation)
    return Rules(
        new_due=None if rotation is None else lambda: _due(make_rotation(rotation)),
        compress=_file_sink.FileSink._make_compression_function(compression),  # noqa: SLF001 - see the head of the module
        retain=_file_sink.FileSink._make_retention_function(retention),  # noqa: SLF001 - see the head of the module
        patterns=_file_sink.FileSink._make_glob_patterns(path),  # noqa: SLF001 - see the head of the module
    )


def _due(rotation: Any) -> Callable[[Any, int, str], bool]:
    limit = getattr(rotation, "keywords", {}).get("size_limit")
    if limit is not None:
        return lambda time, size, path: size > limit  # noqa: ARG005 - the other kind of rotation needs them
    return lambda time, size, path: rotation(  # noqa: ARG005 - as above
        SimpleNamespace(record={"time": time}), SimpleNamespace(name=path)
    )


def path_now(template: str) -> str:
    """Return the path of a log file whose name may hold `{time}`.

    Raises:
        KeyError, ValueError, IndexError: it holds other braces.

    """
    return os.path.abspath(template.format_map({"time": _file_sink.FileDateFormatter()}))  # noqa: PTH100 - links stay as they are


def set_aside_name(path: str) -> str:
    """Return how a full log file is called from now on."""
    stem, extension = os.path.splitext(path)  # noqa: PTH122 - as loguru does
    name: str = _file_sink.generate_rename_path(stem, extension, _file_sink.get_ctime(path))
    return name


def note_birth(path: str) -> None:
    """Note on the new file when it was made, which Linux does not tell; rotation by time goes by that."""
    import time

    _file_sink.set_ctime(path, time.time())
