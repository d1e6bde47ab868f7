"""The private parts of loguru that this package uses, and what a user loses if loguru lacks one.

`tests/io/logs/test_seam.py` has a contract test for each part, and `test_degraded.py` runs a job without each name.
"""

from __future__ import annotations

from autogen_team._process.private_names import Library

LOGURU = Library("loguru", "loguru", "0.7")

HANDLERS = LOGURU.part(
    "loguru._logger:Logger._core",
    "loguru._logger:Core.handlers",
    "loguru._logger:Core.min_level",
    "loguru._logger:Core.lock",
    "loguru._handler:Handler._levelno",
    "loguru._defaults:LOGURU_AUTOINIT",
    lost=(
        "loguru's own handler shows each line too, `logger.remove()` also ends the file and the log of the run, and a "
        "logger cannot be pickled"
    ),
)
"""The handlers and the lowest level among them: to silence loguru's default handler and restore it under its own id, to
keep ours when a script calls `logger.remove()`, and to leave ours out of copies of a logger."""

SINKS = LOGURU.part(
    "loguru._handler:Handler._lock_acquired",
    "loguru._handler:Handler._thread",
    "loguru._handler:Handler._sink",
    "loguru._simple_sinks:AsyncSink._tasks",
    "loguru._simple_sinks:StandardSink._handler",
    lost="a line that a sink or a signal handler logs in the middle of another may be refused, or logged twice",
)
"""To detect whether this thread is inside a sink, and which handlers of the standard library are sinks."""

MESSAGES = LOGURU.part(
    "loguru._logger:Logger._log",
    "loguru._logger:Logger._options",
    lost=(
        "a message whose braces do not fit its arguments is an error in the job, a record that a handler of the job "
        "passes on to loguru is logged twice, and a logger cannot be pickled"
    ),
)

RECORDS = LOGURU.part(
    "loguru._recattrs:RecordException",
    "loguru._recattrs:RecordFile",
    "loguru._recattrs:RecordLevel",
    "loguru._recattrs:RecordProcess",
    "loguru._recattrs:RecordThread",
    "loguru._datetime:datetime",
    lost="lines of `logging` cost twice as much, and show where they are forwarded as their file, thread and process",
)
"""The parts of a record."""

DIRECT = LOGURU.part(
    "loguru._logger:context",
    "loguru._logger:start_time",
    "loguru._logger:aware_now",
    "loguru._logger:Core.levels_lookup",
    "loguru._logger:Core.activation_list",
    "loguru._logger:Core.extra",
    "loguru._logger:Core.patcher",
    "loguru._handler:Handler.emit",
    lost="lines of `logging` cost twice as much, and show the thread and the time of their forwarding",
)
"""The steps of `Logger._log` after it has determined place and time, for records that already have both."""

COLOURS = LOGURU.part(
    "loguru._colorizer:Colorizer.prepare_format",
    "loguru._colorizer:Colorizer.ansify",
    lost="log lines have no colours",
)
"""Converts markup such as `<green>` to escape sequences."""

FILES = LOGURU.part(
    "loguru._file_sink:FileSink._make_rotation_function",
    "loguru._file_sink:FileSink._make_retention_function",
    "loguru._file_sink:FileSink._make_compression_function",
    "loguru._file_sink:FileSink._make_glob_patterns",
    "loguru._file_sink:FileDateFormatter",
    "loguru._file_sink:generate_rename_path",
    "loguru._file_sink:get_ctime",
    "loguru._file_sink:set_ctime",
    lost="log files are neither rotated, nor compressed, nor removed",
)
"""The meaning of `rotation`, `retention` and `compression`, and the name of a rotated file."""
