"""A function for engines that take nothing else."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any


def function_of(bound: Callable[..., Any], fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function, as `inspect` knows them, that does what `bound` does, and is described like `fn`.

    What `GlobalContext.bind` returns is an object, because only so can it be pickled by the standard library. Engines
    that look for a function pickle by cloudpickle, which can.
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
