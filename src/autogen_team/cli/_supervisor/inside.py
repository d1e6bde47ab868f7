"""The child of the supervisor: the global context, one run, and the target inside it."""

from __future__ import annotations

import os
import runpy
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from autogen_team._capture import snapshots
from autogen_team._process import run_events, streams
from autogen_team._redact import mask, values
from autogen_team._services.settings import state_dir
from autogen_team._ship.uris import absolute
from autogen_team._snapshot import process
from autogen_team.cli import _context, _look, _summary
from autogen_team.cli._supervisor import exits, threads
from autogen_team.cli._supervisor import target as targets
from autogen_team.cli._supervisor.wire import ChildEnd, OpenRun, Order
from autogen_team.context import GlobalContext

if TYPE_CHECKING:
    import mlflow

_INTERRUPTED = 130


def main() -> NoReturn:
    """Execute the order of the supervisor; the first argument is the descriptor of the socket to it."""
    wire = ChildEnd(int(sys.argv[1]))
    execute(wire.order, wire)


def execute(order: Order, wire: ChildEnd) -> NoReturn:
    """Run the target of the order, and exit as it does."""
    target = targets.parse(order.command, is_command=order.is_command)
    os.environ[streams.SUPERVISED] = "1"
    overrides = order.overrides
    config = {
        "description": order.description,
        "tags": _context.assignments(order.tags, "--tag") or None,
        "log_system_metrics": order.system_metrics,
    }
    sys.excepthook = sys.__excepthook__  # Typer installs its own, which must not handle the target's exceptions
    with _look.plain_warnings(), _look.plain_errors(_look.NOT_STARTED):
        context = _context.build(overrides)
        if context.logger_service.source("backtrace") == "default":
            # The frames above the target are ours, and do not help the reader of the log.
            overrides = {**overrides, "logger.backtrace": "false"}
            logger_service = context.logger_service.model_copy(update={"backtrace": False})
            context = context.model_copy(update={"logger_service": logger_service})
        summary = _summary.Summary(_summary.Prompt.here())
    status = 0
    failure: BaseException | None = None

    def stop() -> None:
        with run_events.leaving_by(failure):
            context.stop()

    if context.mlflow_service.snapshot:
        words = ["autogen-team", *order.words]
        script = None if order.is_command else str(Path(target.arguments[0]).absolute())
        make = partial(_make_snapshot, wire)
        snapshots.begin(state_dir(), context.mlflow_service.stores(), words, script, make)
    with ExitStack() as undo:
        # Before the log of the run subscribes, so that the transcript is complete when the run's log is attached.
        undo.callback(run_events.subscribe(_Told(wire, context, summary.prompt)))
        undo.callback(values.listen(wire.hide))
        with _look.plain_errors(_look.NOT_STARTED):
            context.start()
        undo.callback(stop)
        try:
            with (
                _environment(_variables(overrides)),
                targets.as_main(target),
                _summary.printed(summary, context),
                context.run(order.name or target.name, host=True, **config) as active,
            ):
                summary.run_id = active.info.run_id
                shown = _summary.where(context.mlflow_service, active.info, summary.prompt)
                _look.say("run", f"{active.info.run_name} {shown}", "bold")
                with exits.called_early(), threads.awaited(), _reported():  # all of these still belong to the run
                    target.execute(_run_variables(active))
        except SystemExit as error:
            failure = error
            status = _status(error.code)
        except KeyboardInterrupt as error:
            failure = error
            status = _INTERRUPTED
        except Exception as error:
            failure = error
            if summary.run_id is None:  # else the error has been reported
                _look.fail(f"the run cannot be opened: {mask(str(error))}", _look.NOT_STARTED)
            status = 1
    raise SystemExit(status)


def _make_snapshot(wire: ChildEnd, order: process.Order) -> bool:
    return wire.make_snapshot(asdict(order), process.PATIENCE)


class _Told(run_events.Listener):
    """Listener that tells the supervisor about the run of the job."""

    def __init__(self, wire: ChildEnd, context: GlobalContext, prompt: _summary.Prompt) -> None:
        self._wire = wire
        self._context = context
        self._prompt = prompt
        self._run_id: str | None = None

    def run_started(self, run: run_events.Run) -> None:
        """Tell the supervisor about the first run, which is that of the whole job."""
        if self._run_id is not None:
            return
        self._run_id = run.run_id
        service, logger = self._context.mlflow_service, self._context.logger_service
        tracking_uri, registry_uri = service.stores()
        opened = OpenRun(
            run_id=run.run_id,
            name=run.name,
            experiment=run.experiment,
            link=run.link,
            parent_id=run.parent_id,
            tracking_uri=tracking_uri,
            registry_uri=registry_uri,
            state=str(state_dir()),
            started=time.time(),
            keeps_log=logger.run_log,
            masks=logger.redact,
            shown=run.link or _summary.command_to_look(service, self._prompt),
        )
        self._wire.opened(opened)

    def run_ending(self, run: run_events.Run, end: run_events.End) -> None:  # noqa: ARG002 - the listener's signature
        """Complete the transcript before the log of the run becomes an artifact."""
        if run.run_id == self._run_id:
            self._wire.flush()

    def run_ended(self, run: run_events.Run, end: run_events.End) -> None:  # noqa: ARG002 - the listener's signature
        """Tell the supervisor that the run is closed."""
        if run.run_id == self._run_id:
            self._wire.closed(run.run_id)


def _run_variables(active: mlflow.ActiveRun) -> dict[str, str]:
    """Return the variables by which any process with MLflow joins the run; MLflow itself has set the others."""
    return {"MLFLOW_RUN_ID": active.info.run_id, "MLFLOW_EXPERIMENT_ID": active.info.experiment_id}


def _variables(overrides: Mapping[str, str]) -> dict[str, str]:
    """Return the options of the command line as environment variables that mean the same in any folder."""
    found = _context.variables_of(overrides)
    return {name: absolute(value) if name.endswith("_URI") else value for name, value in found.items()}


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set the variables inside the block, so that a context that the target builds itself sees the options."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _reported() -> Iterator[None]:
    """Report an uncaught exception, without our own frames, while the run is open, so that its log has it."""
    try:
        yield
    except Exception as error:
        error.__traceback__ = _from_target(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        raise


def _from_target(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and traceback.tb_frame.f_code.co_filename in _OURS:
        traceback = traceback.tb_next
    return traceback


_OURS = {__file__, targets.__file__, runpy.__file__, "<frozen runpy>"}


def _status(code: object) -> int:
    """Return the status with which Python would exit for the code of a `SystemExit`."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code
    print(code, file=sys.stderr)  # noqa: T201 - as Python does
    return 1
