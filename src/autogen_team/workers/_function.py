"""Plain functions, for engines that accept nothing else."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any


def function_of(bound: Callable[..., Any], fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a plain function that calls `bound` and has the name and docstring of `fn`.

    `GlobalContext.bind` returns an object, because the standard library cannot pickle a nested function. Engines that
    require a function use cloudpickle, which can.
    """
    if inspect.isgeneratorfunction(fn):

        @functools.wraps(fn)
        def iterate(*arguments: Any, **fields: Any) -> Iterator[Any]:
            yield from bound(*arguments, **fields)

        return iterate

    @functools.wraps(fn)
    def call(*arguments: Any, **fields: Any) -> Any:
        return bound(*arguments, **fields)

    return call
