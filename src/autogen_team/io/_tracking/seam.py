"""Everything that we touch of MLflow and that MLflow does not promise; nothing else in this library does.

Each touch is named here, held by a contract test (`tests/io/tracking/test_seam.py`), and undone when the service stops:

- ``mlflow.tracking.fluent._active_experiment_id`` and ``_get_experiment_id``: `mlflow.set_experiment` can set it,
  nothing can unset it;
- ``mlflow.tracking._model_registry.utils._registry_uri``: the same for `mlflow.set_registry_uri`;
- ``mlflow.utils.autologging_utils.AUTOLOGGING_INTEGRATIONS``, ``revert_patches`` in ``safety`` beside it, and
  ``mlflow.utils.import_hooks._post_import_hooks``: what `mlflow.autolog` has switched on, and will switch on when a
  library is imported;
- ``mlflow.tracking.fluent._active_run_stack`` and ``_last_active_run_id``: the open runs of each thread, of which
  MLflow shows only the topmost of the calling one, and ends no other;
- ``mlflow.start_run`` and ``mlflow.end_run``, replaced while a supervised job runs, so that the job's own first run
  joins the supervisor's;
- ``mlflow.store.db.utils.MAX_RETRY_COUNT``: a database that refuses is asked ten times in 100 seconds;
- ``mlflow.tracking.fluent.run_id_to_system_metrics_monitor``: the threads that MLflow forgets when it cannot end a run.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import mlflow
from mlflow.tracking import fluent
from mlflow.tracking._model_registry import utils as registry
from mlflow.utils import autologging_utils, import_hooks
from mlflow.utils.autologging_utils import safety

Undo: TypeAlias = Callable[[], None]

_ALL_FLAVORS = "mlflow"  # the name under which `mlflow.autolog` stores its own arguments


class _Holders:
    """Those who change the same state, in order, each with what it found.

    Whoever leaves out of order hands what it found down to the next: the last one to leave gives back the first.
    """

    def __init__(self, apply: Callable[[Any], None]) -> None:
        self._apply = apply
        self._found: list[list[Any]] = []

    def hold(self, found: Any) -> Undo:
        """Note what was found; the returned function gives it back."""
        mine = [found]
        self._found.append(mine)

        def leave() -> None:
            place = next(number for number, other in enumerate(self._found) if other is mine)
            del self._found[place]
            if place == len(self._found):
                self._apply(mine[0])
            else:
                self._found[place][0] = mine[0]

        return leave


def keep_environment(*names: str) -> Undo:
    """Remember these variables; the returned function gives them back."""
    return _environments.hold({name: os.environ.get(name) for name in names})


def _restore_environment(before: dict[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


_environments = _Holders(_restore_environment)


def keep_uris() -> Undo:
    """Remember the tracking URI, the registry URI and the experiment; the returned function gives them back."""
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")
    tracking_uri = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    environment = {name: os.environ.get(name) for name in names}
    return _uris.hold((tracking_uri, registry._registry_uri, fluent._active_experiment_id, environment))


def _restore_uris(found: tuple[str | None, str | None, str | None, dict[str, str | None]]) -> None:
    tracking_uri, registry_uri, experiment_id, environment = found
    mlflow.set_tracking_uri(tracking_uri)  # type: ignore[arg-type]  # None unsets it, as MLflow's own tests do
    registry._registry_uri = registry_uri  # type: ignore[assignment]  # it begins as None, and is given no type
    fluent._active_experiment_id = experiment_id  # type: ignore[assignment]  # the same
    _restore_environment(environment)


_uris = _Holders(_restore_uris)


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Let this logger and those below it speak of nothing less than a warning inside the block."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def keep_autolog() -> Undo:
    """Remember what autologging is switched on, now and for later imports; the returned function gives it back."""
    integrations = copy.deepcopy(autologging_utils.AUTOLOGGING_INTEGRATIONS)
    hooks = {name: list(pending) for name, pending in import_hooks._post_import_hooks.items()}
    return _autolog.hold((integrations, hooks))


def _restore_autolog(found: tuple[dict[str, Any], dict[str, list[Any]]]) -> None:
    integrations, hooks = found
    for name in [name for name in autologging_utils.AUTOLOGGING_INTEGRATIONS if not integrations.get(name)]:
        safety.revert_patches(name)
    autologging_utils.AUTOLOGGING_INTEGRATIONS.clear()
    autologging_utils.AUTOLOGGING_INTEGRATIONS.update(integrations)
    with import_hooks._post_import_hooks_lock:
        import_hooks._post_import_hooks.clear()
        import_hooks._post_import_hooks.update(hooks)
    if integrations.get(_ALL_FLAVORS):
        # Libraries imported since then get the configuration that they would have got, without a word about it.
        with quiet("mlflow.tracking.fluent"):
            mlflow.autolog(**integrations[_ALL_FLAVORS])


_autolog = _Holders(_restore_autolog)


def ask_databases_once() -> Undo:
    """Let a database that refuses fail at once; the returned function gives MLflow its patience back."""
    from mlflow.store.db import utils

    before, utils.MAX_RETRY_COUNT = utils.MAX_RETRY_COUNT, 0

    def restore() -> None:
        utils.MAX_RETRY_COUNT = before

    return restore


def open_run_ids() -> list[str]:
    """Return the ids of this thread's open runs, the innermost last."""
    return [run.info.run_id for run in fluent._active_run_stack.get()]


def leave_runs(run_id: str) -> list[str]:
    """Take the run, and what is open inside of it, off the stack of whichever thread has it open.

    Returns their ids, the innermost first; none if the run is not open any more.
    """
    for stack in fluent._active_run_stack.get_all_thread_values().values():
        ids = [run.info.run_id for run in stack]
        if run_id in ids:
            place = ids.index(run_id)
            del stack[place:]
            os.environ.pop("MLFLOW_RUN_ID", None)
            fluent._last_active_run_id.set(run_id)
            return list(reversed(ids[place:]))
    return []


def stop_system_metrics(run_id: str) -> None:
    """Stop the thread that samples the machine for this run, if there is one."""
    monitor = fluent.run_id_to_system_metrics_monitor.pop(run_id, None)
    if monitor is not None:
        monitor.finish()


class JoinedRun(mlflow.ActiveRun):
    """Somebody else's run, which stays open when its block ends."""

    def __exit__(self, *_: object) -> Literal[False]:
        return False


def let_join(host: mlflow.ActiveRun) -> Undo:
    """Let the next `mlflow.start_run` of this thread join `host`, and those after it become its children.

    What asks for something else - a nested run, one by its id, another store - gets that; one of another experiment
    becomes a child. `mlflow.end_run` ends what the job has opened, never the host.
    """
    original_start, original_end = mlflow.start_run, mlflow.end_run
    host_uri = mlflow.get_tracking_uri()
    joined = False

    def is_innermost() -> bool:
        return open_run_ids()[-1:] == [host.info.run_id] and mlflow.get_tracking_uri() == host_uri

    def start_run(*args: Any, **fields: Any) -> mlflow.ActiveRun:
        nonlocal joined
        if args or fields.get("run_id") or fields.get("nested") or not is_innermost():
            return original_start(*args, **fields)
        experiment = fields.get("experiment_id") or fluent._get_experiment_id()
        if joined or experiment != host.info.experiment_id:
            return original_start(**{**fields, "nested": True})
        joined = True
        _describe(host.info.run_id, fields)
        return JoinedRun(host)

    def end_run(*args: Any, **fields: Any) -> None:
        if open_run_ids()[-1:] != [host.info.run_id]:
            original_end(*args, **fields)

    mlflow.start_run = fluent.start_run = start_run
    mlflow.end_run = fluent.end_run = end_run

    def restore() -> None:
        mlflow.start_run = fluent.start_run = original_start
        mlflow.end_run = fluent.end_run = original_end

    return restore


def _describe(run_id: str, fields: dict[str, Any]) -> None:
    """Give the host the tags and the description that the joining run would have had; it keeps its own name."""
    tags = dict(fields.get("tags") or {})
    if fields.get("description"):
        tags["mlflow.note.content"] = fields["description"]
    for key, value in tags.items():
        mlflow.MlflowClient().set_tag(run_id, key, value)
