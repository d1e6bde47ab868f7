"""The context in the Python workers of Spark; needs `pyspark` (extra `spark`)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from autogen_team.workers._function import function_of

if TYPE_CHECKING:
    from autogen_team.context import GlobalContext
    from autogen_team.io.services import MlflowService

__all__ = ["partitions"]


def partitions(
    context: GlobalContext,
    fn: Callable[..., Iterable[Any]],
    *,
    nested: bool | str | MlflowService.RunConfig = False,
) -> Callable[..., Iterator[Any]]:
    """Wrap `fn` for `DataFrame.mapInPandas`, `mapInArrow` or `RDD.mapPartitions`: each partition inside the context.

    `fn` takes an iterator and returns one. A worker is inside as long as Spark reads from the iterator, and the
    partition is done when the store has everything that was logged. `GlobalContext.bind` describes how a worker
    behaves. With `nested`, each partition has one child run. Partitions log to the run that is open at this call, even
    if Spark computes later.

    >>> from autogen_team import GlobalContext
    >>> def count(rows):
    ...     number = sum(1 for row in rows)
    ...     mlflow.log_metric("rows", number)
    ...     yield number
    >>> with GlobalContext() as context, context.run("train"):
    ...     counted = partitions(context, count)  # for rdd.mapPartitions(counted)
    ...     list(counted(iter("abc")))
    [3]

    Raises:
        NotStartedError: the context is not running.

    """

    @functools.wraps(fn)
    def consume(*arguments: Any) -> Iterator[Any]:
        yield from fn(*arguments)  # so a function that returns an iterator stays inside, too

    return function_of(context.bind(consume, nested=nested), consume)
