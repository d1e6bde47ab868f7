"""Base class of services. A service is its configuration; `stop` restores what `start` changed."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from autogen_team._process import run_events
from autogen_team._process.forking import call_in_child
from autogen_team._process.reports import guard
from autogen_team._services.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

_locks: dict[type, threading.RLock] = {}
call_in_child(_locks.clear)  # no thread of the child would release a lock that another thread held


class Service(ABC, Settings):
    """A part of a job that starts before its work and stops after it.

    A service is a value: it equals a service with the same fields, and is pickled, copied and sent to a worker as its
    fields. Its running state is not part of the value, so a copy of a running service is not running. A second `start`
    does nothing. Neither does `stop` if the service is not running. `stop` undoes exactly what `start` did. A failed
    `start` leaves the process as it was.

    >>> from autogen_team.io.services import LoggerService
    >>> with LoggerService(sink="stdout", format="{level} {message}") as service:
    ...     service.logger().info("ready")
    INFO ready
    """

    __slots__ = ("_undo",)

    @abstractmethod
    def start(self) -> None:
        """Make the service available to the job."""

    def stop(self) -> None:
        """Undo what `start` did; an error is reported, never raised."""
        with self._lock:
            undo: Callable[[], None] | None = getattr(self, "_undo", None)
            self._on_stop(None)
        if undo is not None:
            with guard("%s did not stop cleanly", type(self).__name__):
                undo()

    @classmethod
    def variables(cls) -> dict[str, str]:
        """Return the variable of each field that has one.

        Without a `variable_prefix`, only fields with a `Variable` annotation have one. Otherwise the field `path` of a
        user's service would be read from PATH.
        """
        found = super().variables()
        return found if cls.variable_prefix else {name: one for name, one in found.items() if one != name.upper()}

    @property
    def is_started(self) -> bool:
        """Whether the service is running."""
        return getattr(self, "_undo", None) is not None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with run_events.leaving_by(error):
            self.stop()

    @property
    def _lock(self) -> threading.RLock:
        # One lock per class of services, so that an alert does not wait while tracking waits for a server.
        return _locks.setdefault(type(self), threading.RLock())

    def _on_stop(self, undo: Callable[[], None] | None) -> None:
        """Set the function that `stop` calls; the service counts as started while one is set."""
        object.__setattr__(self, "_undo", undo)
