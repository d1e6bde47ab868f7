"""The global context inside the job; each part starts when the job needs it."""

from __future__ import annotations

import atexit
import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from autogen_team._process import on_demand, run_events, stopping
from autogen_team._redact import values
from autogen_team._services import worker_runs
from autogen_team.cli import _context, _look
from autogen_team.cli._supervisor import asking
from autogen_team.cli._supervisor.wire import Joining

if TYPE_CHECKING:
    from typing import Any


class Inside:
    """The context of the job, inside the run that the keeper opened."""

    def __init__(self, address: str) -> None:
        """Wait until the run is open, and create the context with the settings of the command.

        Raises:
            ConnectionError: the supervisor has ended, or has no run.

        """
        answer = asking.ask_for_run(address)
        if not answer:
            raise ConnectionError("its run could not be opened")
        joining = Joining(**answer)
        self._address = address
        self._pid = os.getpid()
        self._run: dict[str, Any] = joining.run
        self._opened = joining.opened
        self._undo = ExitStack()
        self._has_logging = self._has_tracking = False
        self._tracking_uri = ""
        self._told: dict[str, Any] = {}
        if joining.secrets:
            values.add(joining.secrets)
        more = {"mlflow.mode": "offline"} if joining.is_offline else {}
        with _look.plain_warnings():
            self._context = _context.build({**joining.overrides, **more})
        if self._context.grace is not None:  # the keeper needs the other half
            self._context = self._context.model_copy(update={"grace": self._context.grace / 2})
        self._undo.callback(values.listen(partial(asking.hide, address)))
        self._undo.callback(stopping.learn_from(partial(asking.reason_of_stop, address)))
        on_demand.start_when_asked(self.start_tracking)

    def start_logging(self) -> None:
        """Direct log lines to the sink and to the log of the run."""
        if self._has_logging:
            return
        self._has_logging = True
        logger, run = self._context.logger_service, self._run
        if not logger.is_started:
            logger.start()
        self._undo.callback(logger.stop)
        context = self._context
        if context.stall_after is not None:
            from autogen_team._services import stalls

            state, alerts = Path(run["state"]), context.alerts_service
            self._undo.callback(stalls.watch(alerts, state, context.stall_after, kills=context.stall_kill))
        facts = {"run_id": run["run_id"], "run_name": run["name"], "experiment": run["experiment"]}
        self._undo.callback(run_events.set_source(lambda: facts))
        folder = run_events.log_folder(Path(run["state"]), run["run_id"])
        joined = run_events.Run(
            run["run_id"],
            run["name"],
            run["experiment"],
            None,
            lambda *_: None,
            attempt=run["attempt"],
            log_folder=folder,
        )
        run_events.run_joined(joined, brings_log=False)  # the keeper uploads the log
        self._undo.callback(run_events.run_left, joined)

    def start_tracking(self) -> None:
        """Set MLflow up, with the run open in the job's main thread."""
        if self._has_tracking:
            return
        self.start_logging()
        self._has_tracking = True
        from autogen_team._capture import active_runs, shared_runs

        shared = shared_runs.Shared(**self._run)
        service = self._context.mlflow_service
        worker_runs.begin_work(service, shared)
        self._context.start()
        self._tracking_uri = service.stores()[0]
        self._undo.callback(self._context.stop)
        self._undo.callback(active_runs.allow_join(shared_runs.opened_elsewhere(shared, **self._opened)))
        atexit.register(self._note)  # MLflow registered earlier, so it ends its runs after this call

    def _note(self) -> None:
        """Record the state of the job's runs at its exit, and log the sums of the run's traces.

        The keeper, which closes the run, does not know the traces.
        """
        if os.getpid() != self._pid:
            return
        from autogen_team._capture import lifecycle, mlflow_internals, signals

        signum = signals.fatal_signal()
        run_id = self._run["run_id"]
        self._told = {
            "told": lifecycle.reported_end(run_id, self._tracking_uri),
            "signal": None if signum is None else stopping.reason() or signum.name,
            "left": {one: uri for one, uri in lifecycle.left_open().items() if one != run_id},
        }
        mlflow_internals.log_sums_of_traces(self._tracking_uri, run_id)

    def finish(self, error: BaseException | None) -> None:
        """Deliver the data that the job logged, and report to the supervisor how the job ends."""
        self._undo.close()
        asking.tell_end(self._address, error, **self._told)
