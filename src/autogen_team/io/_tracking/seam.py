"""Everything that we touch of MLflow and that MLflow does not promise; nothing else in this library does.

Each touch is named here, held by a contract test (`tests/io/tracking/test_seam.py`), and undone when the service stops:

- ``mlflow.tracking.fluent._active_experiment_id``: `mlflow.set_experiment` can set it, nothing can unset it;
- ``mlflow.tracking._model_registry.utils._registry_uri``: the same for `mlflow.set_registry_uri`;
- ``mlflow.utils.autologging_utils.AUTOLOGGING_INTEGRATIONS``, ``revert_patches`` in ``safety`` beside it, and
  ``mlflow.utils.import_hooks._post_import_hooks``: what `mlflow.autolog` has switched on, and will when a library is
  imported;
- ``mlflow.tracking.fluent._active_run_stack``: the open runs of this thread, of which MLflow shows only the topmost;
- ``mlflow.start_run``, replaced while a supervised job runs, so that the job's own first run joins the supervisor's;
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


def keep_environment(*names: str) -> Undo:
    """Remember these variables; the returned function gives them back."""
    before = {name: os.environ.get(name) for name in names}

    def restore() -> None:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    return restore


def keep_uris() -> Undo:
    """Remember the tracking URI, the registry URI and the experiment; the returned function gives them back."""
    environment = keep_environment(
        "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"
    )
    tracking_uri = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    registry_uri = registry._registry_uri
    experiment_id = fluent._active_experiment_id

    def restore() -> None:
        mlflow.set_tracking_uri(tracking_uri)  # type: ignore[arg-type]  # None unsets it, as MLflow's own tests do
        registry._registry_uri = registry_uri
        fluent._active_experiment_id = experiment_id
        environment()

    return restore


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

    def restore() -> None:
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

    return restore


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

    What asks for something else, a nested run or one by its id, gets that.
    """
    original = mlflow.start_run
    joined = False

    def start_run(*args: Any, **fields: Any) -> mlflow.ActiveRun:
        nonlocal joined
        asks_for_more = args or fields.get("run_id") or fields.get("nested")
        if asks_for_more or open_run_ids()[-1:] != [host.info.run_id]:
            return original(*args, **fields)
        if joined:
            return original(**{**fields, "nested": True})
        joined = True
        _describe(host.info.run_id, fields)
        return JoinedRun(host)

    mlflow.start_run = fluent.start_run = start_run

    def restore() -> None:
        mlflow.start_run = fluent.start_run = original

    return restore


def _describe(run_id: str, fields: dict[str, Any]) -> None:
    """Give the host the tags and the description that the joining run would have had; it keeps its own name."""
    tags = dict(fields.get("tags") or {})
    if fields.get("description"):
        tags["mlflow.note.content"] = fields["description"]
    for key, value in tags.items():
        mlflow.MlflowClient().set_tag(run_id, key, value)
