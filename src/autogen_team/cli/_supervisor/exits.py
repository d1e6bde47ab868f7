"""Exit handlers of the target: called while its run is still open, as what they log belongs to it."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from autogen_team.io._tracking.ending import Terminated

_ALSO_OURS = {"autogen_team", "mlflow"}
"""Packages whose handlers are still needed when the run is closed."""


class _Handler:
    """What is registered in place of a function: calls it once, whoever comes first."""

    def __init__(self, function: Callable[..., object], arguments: tuple[Any, ...], fields: dict[str, Any]) -> None:
        self.function = function
        self._arguments, self._fields = arguments, fields
        self.is_left = True

    def __call__(self) -> None:
        """Call the function, unless it has been called."""
        if self.is_left:
            self.is_left = False
            self.function(*self._arguments, **self._fields)


@contextmanager
def called_early() -> Iterator[None]:
    """Call the exit handlers that are registered inside the block when it ends, the latest first, as Python would.

    Those that the standard library, MLflow or this library register are left to the end of the process: closing the run
    needs what they end. In a process that is forked inside the block, all of them are.
    """
    handlers: list[_Handler] = []
    register, unregister, owner = atexit.register, atexit.unregister, os.getpid()

    def register_early(func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        registrar = sys._getframe(1).f_globals.get("__name__")  # noqa: SLF001 - the function may be of another module
        if _is_needed_later(registrar) or not callable(func):
            return register(func, *args, **kwargs)
        handler = _Handler(func, args, kwargs)
        handlers.append(handler)
        register(handler)
        return func

    def unregister_early(func: Callable[..., object], /) -> None:
        for handler in [one for one in handlers if one.function == func]:
            handlers.remove(handler)
            unregister(handler)
        unregister(func)

    setattr(atexit, "register", register_early)  # noqa: B010 - mypy forbids to assign functions of a module
    setattr(atexit, "unregister", unregister_early)  # noqa: B010 - the same
    try:
        yield
    finally:
        try:
            while handlers and os.getpid() == owner:
                _call(handlers.pop())
        finally:
            setattr(atexit, "register", register)  # noqa: B010 - the same
            setattr(atexit, "unregister", unregister)  # noqa: B010 - the same


def _is_needed_later(module: str | None) -> bool:
    package = (module or "").partition(".")[0]
    return package in _ALSO_OURS or package in sys.stdlib_module_names


def _call(handler: _Handler) -> None:
    try:
        handler()
    except (KeyboardInterrupt, Terminated):
        raise
    except BaseException as error:  # its end is not the job's, as in Python
        text = f"Exception ignored in atexit callback: {handler.function!r}"
        print(text, file=sys.stderr)  # noqa: T201 - as Python does
        traceback.print_exception(error)
