"""The process that keeps the run of a supervised job: it opens the run while the job starts, and closes it.

The keeper loads MLflow, so that the job and the supervisor do not have to. It outlives both: if the supervisor is
killed, the keeper ends the job and closes the run.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autogen_team._capture import snapshots
from autogen_team._process import activity, grace, identity, run_events, stopping, streams
from autogen_team._process.deadline import within
from autogen_team._process.folders import state_folder
from autogen_team._redact import mask, mask_url, values
from autogen_team._services import worker_runs
from autogen_team._services.state import STATE_DIR
from autogen_team._ship import lean_mlflow, server_probe, uris, watched
from autogen_team._snapshot import process
from autogen_team._spool import index, journal
from autogen_team.cli import _context, _look, _summary
from autogen_team.cli._supervisor import asking, ending, target, wire
from autogen_team.cli._supervisor.wire import End, Joining, OpenRun, Order, Ready
from autogen_team.context import GlobalContext
from autogen_team.errors import AutogenTeamWarning
from autogen_team.io.services import MlflowService

if TYPE_CHECKING:
    import mlflow

    from autogen_team._spool.index import Found

_PATIENCE = 60.0
"""Timeout in seconds to deliver the job's remaining data; if the server is down for longer, the agent takes over."""
_GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL for a job whose supervisor was killed."""
_POLL = 0.1
"""Polling interval in seconds."""
_CRASHES = set(signal.valid_signals()) - {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def main() -> None:
    """Keep the run of the supervisor's order; the first argument is the descriptor of the socket to the supervisor."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    heard = wire.lines(connection)
    said = next(heard, None)
    if said is None:  # the command line is invalid
        return
    os.environ["MLFLOW_LOGGING_LEVEL"] = "WARNING"  # MLflow's information belongs in the job's log, not here
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns at each retry; the final error says it all
    warnings.resetwarnings()  # the filters of the environment are for the job
    warnings.simplefilter("ignore")
    warnings.simplefilter("default", AutogenTeamWarning)
    send = partial(_send, connection)
    supervisor = int(sys.argv[2].rpartition("-")[2])
    Keeper(Order(**said["order"]), heard, send, supervisor, needs_run=said["needs_run"]).keep()


def _send(connection: socket.socket, **what: Any) -> None:
    with suppress(OSError):  # the supervisor has ended
        connection.sendall(wire.line(what))


class Keeper:
    """Opens the run of a job, waits for the end of the job, and closes it."""

    def __init__(
        self,
        order: Order,
        heard: Iterator[dict[str, Any]],
        say: Callable[..., None],
        supervisor: int,
        *,
        needs_run: bool,
    ) -> None:
        self._order = order
        self._supervisor = supervisor
        """The process to which a request to end the job is passed on."""
        self._needs_run = needs_run
        """Whether the job starts only when its run is open."""
        self._heard = heard
        self._say = say
        self._job: tuple[int, bool] | None = None
        """The process of the job, and whether it leads its own session."""
        self._begun: float | None = None
        """Start time of the job, in seconds since 1970."""
        self._folder = ""
        """The folder of the socket between the job and its supervisor."""
        self._left: list[tuple[Found, int | None]] = []
        """The journals that the job left behind, each with its lock; the lock is None if another process holds it."""

    def keep(self) -> None:
        """Keep the run; exit with a status if the settings are invalid or the run cannot be opened."""
        os.environ[streams.SUPERVISED] = "1"
        stopping.pass_to(self._supervisor, self._announce)
        watched.tell_no_stacks()
        order = self._order
        sys.argv = [_text(word) for word in target.arguments(order)]
        with _look.plain_warnings(), _look.plain_errors(_look.NOT_STARTED):
            context = _context.build(order.overrides)
            config = MlflowService.RunConfig(
                name=_text(order.name or target.name(order)),
                description=order.description,
                tags=_look.assignments(order.tags, "--tag") or None,
                log_system_metrics=order.system_metrics,
                job=order.job,
                stale=order.stale,
            )
            if order.job is not None:
                from autogen_team._capture import attempts

                attempts.named(order.job)  # raises if the name is invalid, or `auto` finds none
            context.logger_service.start()  # raises if the sink or the level is invalid
            self._probe(context)
        prompt = _summary.Prompt.here()
        summary = _summary.Summary(prompt)
        service = context.mlflow_service
        shown = None if _is_server(service.tracking_uri) else _summary.command_to_look(service, prompt)
        if service.snapshot:
            words = ["autogen-team", *(_text(word) for word in order.words)]
            snapshots.begin(
                state_folder(service.state_dir), service.stores(), words, target.script(order), process.make
            )
        self._say(ready=asdict(Ready(_variables(context, order), sorted(values.extra().values), shown)))
        failure: BaseException | None = None

        def stop() -> None:
            with run_events.leaving_by(failure):
                context.stop()
                context.logger_service.stop()

        with ExitStack() as undo:
            undo.callback(stop)
            with _look.plain_errors(_look.NOT_STARTED):
                lean_mlflow.load(service.tracking_uri)
                context.start()
            if not self._needs_run and not self._hear_job(next(self._heard, {})):
                return  # the supervisor ended without starting a job
            from autogen_team._capture import lifecycle

            try:
                with (
                    _summary.printed(summary, context),
                    lifecycle.open_run(**config.model_dump(), begun=self._begun) as active,
                ):
                    summary.run_id = active.info.run_id
                    self._say(run=asdict(self._opened(context, active)))
                    self._wait(context, active.info.run_id)
            except run_events.JobEnded as end:
                failure = end
            except Exception as error:
                failure = error
                if summary.run_id is None:  # otherwise the run was closed with this error
                    _look.fail(f"the run cannot be opened: {mask(str(error))}", _look.NOT_STARTED)

    def _announce(self, why: str) -> None:
        """Write why the job must end to the file that the job reads at SIGTERM."""
        if not self._folder:  # the job has not begun
            return
        with suppress(OSError):  # the job has ended
            path = Path(self._folder) / asking.STOP
            new = path.with_suffix(".new")
            new.write_text(why, "utf-8")
            new.replace(path)

    def _probe(self, context: GlobalContext) -> None:
        """Raise an error if the server does not answer, before the job starts."""
        service = context.mlflow_service
        if service.mode == "online":
            server_probe.check_all(
                (uris.absolute(service.tracking_uri), uris.absolute(service.registry_uri)), service.connect_timeout
            )

    def _opened(self, context: GlobalContext, active: mlflow.ActiveRun) -> OpenRun:
        from autogen_team._capture import shared_runs

        service, logger = context.mlflow_service, context.logger_service
        shared = worker_runs.shared_run(service)
        while shared is None:  # the store cannot be reached, and the run has no place in it yet
            time.sleep(_POLL)
            shared = worker_runs.shared_run(service)
        is_offline = service.stores()[0] != uris.absolute(service.tracking_uri)
        joining = Joining(
            shared.as_dict(),
            shared_runs.as_opened(active),
            _settings(context, self._order),
            sorted(values.extra().values),
            is_offline,
        )
        info = active.info
        return OpenRun(
            run_id=info.run_id,
            state=str(state_folder(service.state_dir)),
            keeps_log=logger.run_log,
            masks=logger.redact,
            attempt=shared.attempt,
            link=service.link(info.experiment_id, info.run_id),
            variables={"MLFLOW_RUN_ID": shared.run_id, "MLFLOW_EXPERIMENT_ID": shared.experiment_id},
            joining=asdict(joining),
            stall_after=context.stall_after,
        )

    def _wait(self, context: GlobalContext, run_id: str) -> None:
        """Wait for the end of the job, and raise a `JobEnded` unless the job succeeded."""
        end = self._hear_end(context)
        from autogen_team._capture import lifecycle

        lifecycle.work_has_ended(run_id, end.at)
        failure = ending.verdict(end)
        if failure is not None and -end.status in _CRASHES:
            _look.say("error", f"the job was killed by {failure.reason}", "bold red")
        try:
            within(_PATIENCE, partial(self._deliver, context, end, run_id), name="autogen-team-left-by-job")
        except Exception as error:
            hint = "if autogen-team status lists its journal, autogen-team recover closes the run"
            _look.say("error", f"the run could not be closed yet: {mask(str(error))}; {hint}", "bold red")
        if failure is not None:
            _close_left(end, failure)
            raise failure

    def _hear_job(self, said: Mapping[str, Any]) -> bool:
        """Store the facts about the job from a message; return whether the message has any."""
        match said:
            case {"job": int(pid), "at": float(at), "leads": bool(leads), "folder": str(folder)}:
                self._job = pid, leads
                identity.keep_for(pid)
                self._begun = at
                self._folder = folder
                return True
        return False

    def _hear_end(self, context: GlobalContext) -> End:
        for said in self._heard:
            self._hear_job(said)
            match said:
                case {"gone": int(pid)}:
                    activity.progress(math.inf)  # the job has ended: the silence of its run means nothing now
                    self._left = _take_over(context, pid)
                case {"asked": float(at)}:
                    grace.begin(at)
                case {"hide": list(secrets)}:
                    values.add(secrets)
                case {"end": dict(fields)}:
                    return End(**fields)
        return self._outlive()

    def _outlive(self) -> End:
        """End the job after its supervisor was killed, because the user's signals no longer reach the job."""
        if self._job is None:
            return End(0, -signal.SIGKILL, time.time())
        pid, leads = self._job
        shutil.rmtree(self._folder, ignore_errors=True)
        started = journal.started_at(pid)
        used = signal.SIGTERM
        for used in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                (os.killpg if leads else os.kill)(pid, used)
            give_up = time.monotonic() + _GRACE
            while _is_alive(pid, started) and time.monotonic() < give_up:
                time.sleep(_POLL)
            if not _is_alive(pid, started):
                break
        return End(pid, -used, time.time())

    def _deliver(self, context: GlobalContext, end: End, run_id: str) -> None:
        """Deliver the journals that the job left behind, and close their runs.

        If the job has ended without its exit handlers, log the sums of its traces, which it would have logged itself.
        """
        from autogen_team._ship import recovery

        failure = ending.verdict(end)
        if failure is None:
            how = recovery.Cause("", "FINISHED", end.at)
        else:
            how = recovery.Cause(failure.reason or "", failure.status, end.at)
        stores, state = context.mlflow_service.stores(), state_folder(context.mlflow_service.state_dir)
        for found, lock in self._left:
            result = recovery.recover(found, *stores, state, end=how, lock=lock)
            if result.problem:
                raise RuntimeError(result.problem)
        if self._left or end.status < 0 or not context.mlflow_service.durable:
            recovery.log_sums_of_traces(stores[0], run_id, end.at)


def _take_over(context: GlobalContext, pid: int) -> list[tuple[Found, int | None]]:
    """Lock the journals that the job left behind, so that the agent, which knows less, does not recover them.

    Journals for stores other than that of the run are left to the agent, which has their URIs with passwords.
    """
    store = uris.identity(mask_url(context.mlflow_service.stores()[0]))
    state = state_folder(context.mlflow_service.state_dir)
    journals = journal.folder_of(state).glob(f"{identity.process_name(pid)}-*")
    found = [one for folder in journals if (one := index.look(folder)) and one.state == "dead"]
    found = [one for one in found if uris.identity(one.uri) == store]
    return [(one, journal.take_over(one.folder)) for one in found]


def _is_alive(pid: int, started: float | None) -> bool:
    return started is not None and journal.started_at(pid) == started


def _close_left(end: End, failure: run_events.JobEnded) -> None:
    """Close the runs that the job left open, including those of clients; call this only after a failure."""
    from autogen_team._capture import lifecycle

    how = run_events.End(failure.status, failure.reason, failure, 0.0)
    for run_id, uri in reversed(end.said.get("left", {}).items()):
        lifecycle.end_run(run_id, uri, how)


def _variables(context: GlobalContext, order: Order) -> dict[str, str]:
    """Return the options of the command line and the store as variables that are valid in any folder."""
    service = context.mlflow_service
    found = _context.variables_of(order.overrides)
    found["MLFLOW_TRACKING_URI"] = service.tracking_uri
    if "MLFLOW_EXPERIMENT_ID" not in os.environ:
        found["MLFLOW_EXPERIMENT_NAME"] = service.experiment_name
    if STATE_DIR in found and service.state_dir is not None:
        found[STATE_DIR] = service.state_dir
    return {name: uris.absolute(value) if name.endswith("_URI") else value for name, value in found.items()}


def _settings(context: GlobalContext, order: Order) -> dict[str, str]:
    """Return the settings that the job would miss in its environment, or in another folder."""
    found = {**_context.of_file(), **order.overrides}
    found["logger.sink"] = worker_runs.for_worker(context.logger_service).sink
    folder = context.mlflow_service.state_dir
    if "mlflow.state_dir" in found and folder is not None:
        found["mlflow.state_dir"] = folder
    return found


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _text(name: str) -> str:
    """Return a word of the command line as text; it may contain bytes that are not valid text."""
    return os.fsencode(name).decode("utf-8", "replace")
