"""Starts logging according to the settings, and restores the process afterwards."""

from __future__ import annotations

import contextlib
import os
import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import loguru

from autogen_team._logs import braces, bridge, faults, loguru_internals, uncaught, validation
from autogen_team._logs.file import File
from autogen_team._logs.runlog import RunLogs
from autogen_team._logs.sink import Sink
from autogen_team._process import Undo, identity, run_events
from autogen_team._process.forking import ForkSafeLock
from autogen_team._process.refcount import RefCount
from autogen_team._process.reports import guard
from autogen_team._redact import Redactor

if TYPE_CHECKING:
    from pathlib import Path

    from autogen_team._logs.otlp import Lines
    from autogen_team._services.logger import LoggerService

__all__ = ["start"]


@dataclass(frozen=True, slots=True)
class _Pipeline:
    """A started sink and its settings."""

    settings: LoggerService
    place: str
    """The destination, in its canonical spelling."""
    sink: Sink
    otlp: Lines | None
    """Sends lines to a collector, if the settings ask for it."""


_lock = ForkSafeLock()
_started: list[_Pipeline] = []
_run_logs: RunLogs | None = None
_has_told_of_removal = False


def start(settings: LoggerService, state: Path | None = None) -> Undo:
    """Start logging according to the settings; return a function that undoes the start and never raises.

    Lines for a collector need the state folder, because they wait there.

    If several pipelines have the same destination, the one started last owns it until it is stopped.

    Raises:
        ConfigurationError: the sink, level, format, rotation or collector cannot be used; nothing was changed.

    """
    level = validation.level(settings.level)
    template = None if settings.serialize else validation.template(settings.format)
    redact = Redactor(os.environ) if settings.redact else None
    with _lock, ExitStack() as undo:
        lines: Lines | None = None
        if settings.otlp and state is not None:
            from autogen_team._logs import otlp  # loads OpenTelemetry

            lines, stop_sending = otlp.start(redact, state)
            undo.callback(stop_sending)
        destination, place = validation.destination(settings)
        undo.callback(destination.close)
        sink = Sink(
            destination,
            name=destination.path if isinstance(destination, File) else place,
            template=template,
            redact=redact,
            catch=settings.catch,
            rank=identity.rank(),
            worker=identity.worker(),
        )
        handler = loguru.logger.add(
            sink,
            level=level,
            format=sink.format,
            filter=sink.accepts,  # type: ignore[arg-type]  # a record is a dict
            colorize=sink.colours,
            backtrace=settings.backtrace,
            diagnose=settings.diagnose,
            catch=settings.catch,
        )
        undo.callback(_remove, handler)
        sink.added(handler)
        for shared, wanted in (
            (_process, True),
            (_intercept, settings.intercept),
            (_uncaught, settings.uncaught),
            (_runs, settings.run_log),
        ):
            if wanted:
                undo.callback(shared.take())
        pipeline = _Pipeline(settings, place, sink, lines)
        _started.append(pipeline)
        undo.callback(_forget, pipeline)
        _assign()
        return _once(undo.pop_all().close)


def _once(undo: Undo) -> Undo:
    done = False

    def run() -> None:
        nonlocal done
        with _lock:
            if done:
                return
            done = True
            with guard("logging did not stop cleanly"):
                undo()

    return run


def _forget(pipeline: _Pipeline) -> None:
    _started[:] = [other for other in _started if other is not pipeline]
    _assign()


def _remove(handler: int) -> None:
    with contextlib.suppress(ValueError):  # the job removed it with all other handlers
        loguru.logger.remove(handler)


def _assign() -> None:
    """Assign each destination to one pipeline, and do the same for the logs of runs and the collector.

    - A destination goes to the pipeline started last. A console that the job has taken over goes to none.
    - The logs of runs go to the pipeline with the lowest level, preferably one that is not muted, then to the latest.
    - The collector goes to the last pipeline that has one.
    """
    owners = {pipeline.place: pipeline for pipeline in _started}
    bridge.consoles_left[:] = [pipeline.sink for pipeline in _started if pipeline.sink.has_left_console]
    for pipeline in _started:
        pipeline.sink.is_muted = owners[pipeline.place] is not pipeline or pipeline.sink.has_left_console
    willing = [pipeline for pipeline in reversed(_started) if pipeline.settings.run_log]
    feeder = min(willing, key=lambda it: (_number(it.settings.level), it.sink.is_muted), default=None)
    sender = next((pipeline for pipeline in reversed(_started) if pipeline.otlp is not None), None)
    for pipeline in _started:
        pipeline.sink.runs = _run_logs if pipeline is feeder else None
        pipeline.sink.otlp = pipeline.otlp.put if pipeline is sender and pipeline.otlp is not None else None


def _number(level: str) -> int:
    found = validation.level(level)
    return found if isinstance(found, int) else int(loguru.logger.level(found).no)


def _take_over() -> Undo:
    with ExitStack() as undo:
        undo.callback(loguru_internals.set_default_handler_aside())
        undo.callback(loguru_internals.mark_raw())
        undo.callback(braces.tolerate_bad_braces())
        undo.callback(loguru_internals.let_travel())
        undo.callback(loguru_internals.keep_on_removal(_handlers_removed))
        return undo.pop_all().close


def _handlers_removed() -> None:
    """Keep writing to files and logs of runs, leave the console to the job, and report this once."""
    global _has_told_of_removal
    with _lock:
        told = "; ".join(dict.fromkeys(pipeline.sink.handlers_removed() for pipeline in _started))
        _assign()
        is_first, _has_told_of_removal = not _has_told_of_removal, True
    if is_first and identity.worker() is None:
        faults.report("the job removed loguru's handlers (logger.remove()): %s", told)


def _watch() -> Undo:
    with ExitStack() as undo:
        undo.callback(uncaught.log_uncaught(_lines_on_stderr))
        undo.callback(bridge.forward_asyncio())
        return undo.pop_all().close


def _lines_on_stderr() -> int:
    return sum(pipeline.sink.lines for pipeline in _started if pipeline.place == "stderr")


def _keep_runs() -> Undo:
    global _run_logs
    logs = _run_logs = RunLogs(_render)
    unsubscribe = run_events.subscribe(logs)

    def undo() -> None:
        global _run_logs
        unsubscribe()
        logs.close()
        _run_logs = None

    return undo


def _render(level: str, message: str, exception: BaseException | None = None) -> bytes:
    trace = "" if exception is None else "".join(traceback.format_exception(exception))
    if isinstance(exception, run_events.JobEnded):
        trace, exception = exception.trace, None
    record = loguru_internals.make_record(level, message, name="autogen_team", exception=exception)
    for pipeline in reversed(_started):
        if pipeline.settings.run_log:
            return pipeline.sink.line(record, trace)
    return f"{level}: {message}\n".encode()  # the last pipeline is being stopped


_process = RefCount(_take_over)
_intercept = RefCount(bridge.intercept)
_uncaught = RefCount(_watch)
_runs = RefCount(_keep_runs)
