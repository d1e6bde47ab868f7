"""Exit handlers of the target, called while its run is still open because what they log belongs to the run."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from autogen_team._capture.signals import Terminated

_ALSO_OURS = {"autogen_team", "mlflow"}
"""Packages whose handlers are still needed when the run is closed."""


class _Handler:
    """Stand-in for a registered function, which calls it only once: at the end of the block, or when Python exits."""

    def __init__(self, function: Callable[..., object], arguments: tuple[Any, ...], fields: dict[str, Any]) -> None:
        self.function = function
        self._arguments, self._fields = arguments, fields
        self.is_left = True

    def __call__(self) -> None:
        """Call the function, unless it has been called before."""
        if self.is_left:
            self.is_left = False
            self.function(*self._arguments, **self._fields)


@contextmanager
def called_early() -> Iterator[None]:
    """At the end of the block, call the exit handlers that were registered inside it, latest first, as Python would.

    Handlers that the standard library, MLflow or this library register wait until the process exits, because closing
    the run needs what they end. In a process that is forked inside the block, all handlers wait until then.
    """
    handlers: list[_Handler] = []
    register, unregister, owner = atexit.register, atexit.unregister, os.getpid()

    def register_early(func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        registrar = sys._getframe(1).f_globals.get("__name__")  # noqa: SLF001 - `func` may be from another module
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

    setattr(atexit, "register", register_early)  # noqa: B010 - mypy forbids assigning to functions of a module
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
    except BaseException as error:  # a handler that fails does not end the job, as in Python
        text = f"Exception ignored in atexit callback: {handler.function!r}"
        print(text, file=sys.stderr)  # noqa: T201 - as Python does
        traceback.print_exception(error)
