"""The context in the workers of Ray; needs `ray` (extra `ray`)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray

from autogen_team._redact import mask
from autogen_team._services.state import STATE_DIR
from autogen_team.errors import ConfigurationError
from autogen_team.workers._function import function_of

if TYPE_CHECKING:
    from autogen_team.context import GlobalContext
    from autogen_team.io.services import MlflowService

__all__ = ["remote", "runtime_env"]

_HOOK = "worker_process_setup_hook"

_report = logging.getLogger("autogen_team")


def runtime_env(context: GlobalContext, **own: Any) -> dict[str, Any]:
    """Return the `runtime_env` for `ray.init` that puts every worker process of the job inside the context.

    Plain tasks and actors are then inside, in all threads. They log to the run that is open at this call, or else at
    `ray.init`. `GlobalContext.bind` describes how a worker behaves, with one difference: a call does not wait for the
    store, and its data is delivered later. Ray kills its workers at `ray.shutdown()`. The rest of their data is
    delivered from their journals, some seconds later. A worker that cannot enter the context reports this, and runs its
    tasks without it.

    `own` holds other entries for Ray, such as `env_vars`, `pip` or `working_dir`. The packages of the workers must
    include this one.

    >>> from autogen_team import GlobalContext
    >>> with GlobalContext() as context, context.run("train"):
    ...     environment = runtime_env(context, pip=["tqdm"])  # for ray.init(runtime_env=environment)
    >>> sorted(environment)
    ['env_vars', 'pip', 'worker_process_setup_hook']

    Raises:
        NotStartedError: the context is not running.
        ConfigurationError: `own` has a `worker_process_setup_hook` (Ray accepts only one), or another state folder.

    """
    if own.get(_HOOK) is not None:
        raise ConfigurationError(
            f"{_HOOK} is {own[_HOOK]!r}, but Ray accepts only one hook, which this library needs: call yours "
            "in the tasks, or bind each task with autogen_team.workers.ray.remote(context, fn)"
        )
    variables = dict(own.get("env_vars") or {})
    folder = context.environment().get(STATE_DIR)  # Ray may already be running with another environment
    if folder is not None and variables.setdefault(STATE_DIR, folder) != folder:
        raise ConfigurationError(
            f"{STATE_DIR} is {variables[STATE_DIR]!r} in env_vars, but {folder!r} in this process: set it there, "
            "before you create the context"
        )
    return {**own, "env_vars": variables, _HOOK: _Hook(context.initializer())}


def remote(
    context: GlobalContext,
    fn: Callable[..., Any],
    *,
    nested: bool | str | MlflowService.RunConfig = False,
    **options: Any,
) -> Any:
    """Return a Ray task like `ray.remote(**options)(context.bind(fn, nested=nested))`, which Ray itself rejects.

    Ray rejects it because `bind` does not return a function. Each task is inside the context, and returns when the
    store has everything that the task logged. With `nested`, each task has its own child run, and so has each retry by
    Ray. No `runtime_env` is needed.

    >>> from autogen_team import GlobalContext
    >>> def fold(number):
    ...     mlflow.log_metric("accuracy", 0.9, step=number)
    >>> with GlobalContext() as context, context.run("train"):
    ...     train = remote(context, fold, nested=True, num_cpus=0.5)  # for train.remote(1)

    Raises:
        NotStartedError: the context is not running.

    """
    task = function_of(context.bind(fn, nested=nested), fn)
    return ray.remote(**options)(task) if options else ray.remote(task)


class _Hook:
    """The callable that Ray calls in a worker before its first task; if it raises, Ray ends the worker."""

    __name__ = "autogen_team"
    """The name that Ray shows."""

    def __init__(self, enter: Callable[[], None]) -> None:
        self._enter = enter

    def __call__(self) -> None:
        try:
            self._enter()
        except Exception as error:
            _report.error("worker process %d could not join the job's context: %s", os.getpid(), mask(str(error)))
