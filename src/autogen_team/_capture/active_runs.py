"""Make `mlflow.start_run` and `mlflow.end_run` respect a run that other code has open in the calling thread.

The first run of a job joins the run of its host (`allow_join`). A worker has the run of another process open
(`hold_open`). Neither ends that run; other runs become children of it.

`mlflow_names` lists the replaced parts of MLflow, and `tests/io/tracking/test_guests.py` tests the replacements.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import mlflow
from mlflow.entities import Run, RunStatus
from mlflow.tracking import fluent
from mlflow.utils import autologging_utils

from autogen_team._capture import mlflow_internals, run_stacks, signals
from autogen_team._process import Undo, run_events
from autogen_team._process.patches import Hook, replace
from autogen_team._process.refcount import RefCount
from autogen_team._ship import mlflow_names

_REPLACED = ("start_run", "end_run", "active_run", "_get_or_start_run", "_get_latest_active_run")
_PARAMETERS = tuple(inspect.signature(mlflow.start_run).parameters)


class JoinedRun(mlflow.ActiveRun):
    """A run that other code has opened; it stays open when the `with` block ends."""

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> Literal[False]:
        note_end(self, *signals.verdict(error))
        return False


def allow_join(host: mlflow.ActiveRun) -> Undo:
    """Make the next `mlflow.start_run` of this thread join `host`, and later ones open children of it.

    A call for a nested run, for a run by its id, or for a child of another run gets exactly that run. A run in another
    experiment becomes a child. `mlflow.end_run` ends runs that the job has opened, never the host; a failure reported
    for the host is kept for `reported_status`. While MLflow points to another store, the host is hidden: the job sees
    only the runs that it opens there. The returned function restores MLflow's behaviour.
    """
    host_id = host.info.run_id
    _reported.setdefault(host_id, None)
    home = mlflow_internals.identity(mlflow.get_tracking_uri())
    plain: dict[str, Callable[..., Any]] = {name: vars(fluent)[name] for name in _REPLACED if name in vars(fluent)}
    original_start, original_end = plain["start_run"], plain["end_run"]
    # A host that was opened by its id may not be in the default experiment.
    experiments = {host.info.experiment_id, mlflow_internals.experiment_id()}
    joined = False

    def is_innermost() -> bool:
        return mlflow_internals.open_run_ids()[-1:] == [host_id]

    def is_home() -> bool:
        return mlflow_internals.identity(mlflow.get_tracking_uri()) == home

    def in_sight(run: mlflow.ActiveRun | None) -> mlflow.ActiveRun | None:
        return None if run is not None and run.info.run_id == host_id and not is_home() else run

    def start_run(*args: Any, **fields: Any) -> mlflow.ActiveRun:
        nonlocal joined
        fields |= zip(_PARAMETERS, args, strict=False)
        is_particular = fields.get("run_id") or fields.get("parent_run_id")
        if not is_innermost():
            if not mlflow_internals.open_run_ids() and is_home() and not is_particular:
                fields["parent_run_id"] = host_id  # a thread of the job without a run of its own
            return original_start(**fields)  # type: ignore[no-any-return]  # MLflow's function has the type
        if not is_home():
            return _start_outside(original_start, fields)
        if fields.get("nested"):
            return original_start(**fields)  # type: ignore[no-any-return]  # the same
        experiment = fields.get("experiment_id") or mlflow_internals.experiment_id()
        if joined or is_particular or str(experiment) not in experiments:
            return _start_inside(host, original_start, fields)
        joined = True
        _describe(host_id, fields)
        return JoinedRun(host)

    def end_run(status: str = "FINISHED") -> None:
        if not is_innermost():
            original_end(status)
        elif is_home():
            RunStatus.from_string(status)  # raises MLflow's error for an unknown status
            _note(host_id, as_failure(status))

    def active_run() -> mlflow.ActiveRun | None:
        return in_sight(plain["active_run"]())

    def get_or_start_run() -> Any:
        run = plain["active_run"]() or run_stacks.job_run()
        return plain["_get_or_start_run"]() if in_sight(run) is run else mlflow.start_run()

    def get_latest_active_run() -> mlflow.ActiveRun | None:
        return in_sight(plain["_get_latest_active_run"]())

    ours = (start_run, end_run, active_run, get_or_start_run, get_latest_active_run)
    named = zip(_REPLACED, ours, strict=True)
    return run_stacks.replace({name: (plain[name], one) for name, one in named if name in plain})


def note_end(run: mlflow.ActiveRun, status: run_events.Status, reason: str | None) -> None:
    """Record the failure of a block that joined a run, for the code that closes the run; ignore a success."""
    _note(run.info.run_id, None if reason is None or status == "FINISHED" else (status, reason))


def reported_status(run_id: str) -> tuple[run_events.Status, str] | None:
    """Return and forget the failure that the job reported for the run that it joined; None if it reported none."""
    return _reported.pop(run_id, None)


def as_failure(status: str) -> tuple[run_events.Status, str] | None:
    """Return a failure status and its reason, the exception being handled; None if the status is not a failure."""
    if status not in ("FAILED", "KILLED"):
        return None
    handled = sys.exc_info()[1]
    reason = None if handled is None else signals.verdict(handled)[1]
    return "FAILED" if status == "FAILED" else "KILLED", reason or f"the job has ended its run as {status}"


_reported: dict[str, tuple[run_events.Status, str] | None] = {}
"""Last reported failure of each run that can be joined, by run id; None if there is none."""


def _note(run_id: str, failure: tuple[run_events.Status, str] | None) -> None:
    if failure is not None and run_id in _reported:
        _reported[run_id] = failure


def hold_open(run: Run) -> tuple[mlflow.ActiveRun, Callable[[], list[str]]]:
    """Open another process's or thread's run in this thread, without a request to its store.

    The returned function removes the run again, and returns the ids of the runs left open inside it, the innermost
    first. While such a run is the innermost one, `mlflow.start_run` opens a child of it, and `mlflow.end_run` does
    nothing. Autologging is off for such a run: several workers would log contradictory parameters, which cannot be
    changed.
    """
    if not mlflow_names.ACTIVE_RUNS.works():
        return mlflow.start_run(run_id=run.info.run_id), _end_innermost
    joined = JoinedRun(run)
    undo = _joined.take()
    fluent._active_run_stack.get().append(joined)

    def leave() -> list[str]:
        left = [inner.info.run_id for inner in run_stacks.leave(joined)]
        undo()
        return left

    return joined, leave


def _end_innermost() -> list[str]:
    mlflow.end_run()
    return []


def opened_elsewhere(run: Run) -> mlflow.ActiveRun:
    """Put the run on the stack of this thread, as if the thread had opened it, without a request to its store."""
    if not mlflow_names.ACTIVE_RUNS.works():
        return mlflow.start_run(run_id=run.info.run_id)
    active = mlflow.ActiveRun(run)
    fluent._active_run_stack.get().append(active)
    return active


def has_own_run_around(active: mlflow.ActiveRun) -> bool:
    """Return whether this thread had a run of its own open, not a joined one, when it opened this run."""
    if not mlflow_names.ACTIVE_RUNS.works():
        return False
    around = [run for run in fluent._active_run_stack.get() if run is not active]
    # The runs around a joined run are inherited from the process or thread that opened the joined run.
    return bool(around) and not isinstance(around[-1], JoinedRun)


def _let_children() -> Undo:
    plain_start, plain_end = mlflow.start_run, mlflow.end_run

    @functools.wraps(plain_start)
    def start_run(*args: Any, **fields: Any) -> mlflow.ActiveRun:
        fields |= zip(_PARAMETERS, args, strict=False)
        if fields.get("nested") or not _innermost_is_joined():
            return plain_start(**fields)
        return _start_inside(fluent._active_run_stack.get()[-1], plain_start, fields)

    @functools.wraps(plain_end)
    def end_run(*args: Any, **fields: Any) -> None:
        if not _innermost_is_joined():
            plain_end(*args, **fields)

    with ExitStack() as undo:
        for module in (mlflow, fluent):
            undo.callback(replace(module, "start_run", lambda _plain, _is_active: start_run))
            undo.callback(replace(module, "end_run", lambda _plain, _is_active: end_run))
        if mlflow_names.SHARED_AUTOLOG.works():
            undo.callback(_hold_autologging())
        return undo.pop_all().close


def _hold_autologging() -> Undo:
    """Switch autologging off while the caller's run is shared with other code."""
    is_disabled = autologging_utils.autologging_is_disabled.__code__

    def make(plain: Hook, is_active: Callable[[], bool]) -> Hook:
        @functools.wraps(plain)
        def get_autologging_config(flavor: str, key: str, default: Any = None) -> Any:
            # Autologging's setup asks too, perhaps at the first import of a library, and gets MLflow's own answer.
            asks_whether_to_log = sys._getframe(1).f_code is is_disabled and key == "disable" and is_active()
            is_shared = asks_whether_to_log and isinstance(run_stacks.job_run(), JoinedRun)
            return True if is_shared else plain(flavor, key, default)

        return get_autologging_config

    return replace(autologging_utils, "get_autologging_config", make)


def _start_inside(
    innermost: mlflow.ActiveRun, start: Callable[..., mlflow.ActiveRun], fields: Mapping[str, Any]
) -> mlflow.ActiveRun:
    """Start a run inside `innermost`, which other code has opened, even if the caller does not know about it.

    A call with the id of `innermost` joins it. Any other call opens a nested run, or a child of the parent that the
    call names.
    """
    outer_id = innermost.info.run_id
    if fields.get("run_id") == outer_id:
        _describe(outer_id, fields)
        return JoinedRun(innermost)
    if fields.get("parent_run_id") in (None, outer_id):
        return start(**{**fields, "nested": True})
    return _start_outside(start, fields)  # otherwise MLflow insists on the innermost run as the parent


def _start_outside(start: Callable[..., mlflow.ActiveRun], fields: Mapping[str, Any]) -> mlflow.ActiveRun:
    """Start a run as if the caller had no open runs; start it as nested if they cannot be hidden."""
    if not mlflow_names.ACTIVE_RUNS.works():
        return start(**{**fields, "nested": True})
    with _hidden_runs():
        return start(**fields)


@contextmanager
def _hidden_runs() -> Iterator[None]:
    """Hide the caller's open runs inside the block; runs opened in the block end up on top of them."""
    stack = fluent._active_run_stack.get()
    around = stack[:]
    stack.clear()
    try:
        yield
    finally:
        stack[:0] = around
        fluent._active_run_stack.get()  # tasks created after this inherit all of them


def _innermost_is_joined() -> bool:
    innermost = fluent._active_run_stack.get()[-1:]
    return bool(innermost) and isinstance(innermost[0], JoinedRun)


_joined = RefCount(_let_children)


def _describe(run_id: str, fields: Mapping[str, Any]) -> None:
    """Set the tags and the description of a joining run on the host; the host keeps its name."""
    tags = dict(fields.get("tags") or {})
    if fields.get("description"):
        tags["mlflow.note.content"] = fields["description"]
    for key, value in tags.items():
        mlflow.MlflowClient().set_tag(run_id, key, value)
