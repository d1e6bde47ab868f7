"""The context in the processes of joblib, and so of scikit-learn with `n_jobs`; needs `joblib`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from joblib import parallel_config, register_parallel_backend
from joblib.parallel import LokyBackend

from autogen_team._services import worker_runs

if TYPE_CHECKING:
    from autogen_team.context import GlobalContext
    from autogen_team.io.services import MlflowService

__all__ = ["workers"]

_NAME = "autogen_team.loky"


@contextmanager
def workers(
    context: GlobalContext, n_jobs: int = -1, *, nested: bool | str | MlflowService.RunConfig = False, **options: Any
) -> Iterator[None]:
    """Run every `joblib.Parallel` of the block, including scikit-learn's, in processes inside the context.

    This is `joblib.parallel_config` with the loky backend, and accepts its other `options`. The processes log to the
    run that is open when a Parallel begins; another run gets other processes. `GlobalContext.bind` describes how they
    behave. With `nested`, each process has one child run. For a child per task, call `context.bind(fn, nested=True)`
    in the tasks.

    After the block, its processes have delivered their data and exited. Work that joblib runs in this process instead,
    because of `n_jobs=1` or in threads, is always inside, without a child.

    >>> from autogen_team import GlobalContext
    >>> from joblib import Parallel, delayed
    >>> def fold(number):
    ...     mlflow.log_metric("accuracy", 0.9, step=number)
    >>> with GlobalContext() as context, context.run("train") as run, workers(context, 2):
    ...     _ = Parallel()(delayed(fold)(number) for number in range(3))
    >>> len(context.mlflow_service.client().get_metric_history(run.info.run_id, "accuracy"))
    3

    Raises:
        NotStartedError: the context is not running.

    """
    context.initializer()  # raises an error of the context early
    pools: list[Any] = []
    try:
        with parallel_config(_NAME, n_jobs=n_jobs, context=context, nested=nested, pools=pools, **options):
            yield
    finally:
        for pool in pools:
            pool.terminate()  # waits for the processes, which deliver their data before they exit


class _Backend(LokyBackend):  # type: ignore[misc]  # joblib has no types
    """Loky, with processes inside the context and the run that is open when a Parallel begins."""

    def __init__(
        self,
        *,
        context: GlobalContext,
        nested: bool | str | MlflowService.RunConfig,
        pools: list[Any],
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._context = context
        self._nested = nested
        self._pools = pools
        self._run_id: str | None = None
        self._initializer: Callable[[], None] | None = None

    def configure(self, *arguments: Any, **options: Any) -> int:
        """Start or reuse the processes; another run has another initializer, and therefore other processes."""
        run = worker_runs.shared_run(self._context.mlflow_service)
        run_id = None if run is None else run.run_id
        if self._initializer is None or run_id != self._run_id:
            self._run_id, self._initializer = run_id, self._context.initializer(nested=self._nested)
        n_jobs: int = super().configure(*arguments, **options, initializer=self._initializer)
        if self._workers not in self._pools:
            self._pools.append(self._workers)
        return n_jobs


register_parallel_backend(_NAME, _Backend)
