"""Test tools for code that logs or sends alerts: captured lines and alerts, and loguru in pytest's `caplog`.

`capture_logs` and `capture_alerts` need no setup. This import in a `conftest.py` replaces pytest's own `caplog`:

    from autogen_team.testing import caplog
"""

from __future__ import annotations

import logging
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loguru import logger

from autogen_team._alerts.channel import Alert, RecordingChannel
from autogen_team._logs import bridge

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from autogen_team.io.services import AlertsService

__all__ = ["Alert", "Line", "RecordingChannel", "capture_alerts", "capture_logs"]


@dataclass(frozen=True, slots=True)
class Line:
    """A log line."""

    level: str
    message: str
    logger: str
    """The name of the module or of the `logging` logger."""
    function: str
    line: int
    extra: Mapping[str, Any]
    """Bound values and keyword arguments."""
    exception: BaseException | None


@contextmanager
def capture_logs(level: str = "TRACE") -> Iterator[list[Line]]:
    """Collect the lines logged inside the block at `level` or above; other handlers receive them too.

    Records of the standard library are included while a LoggerService with `intercept` runs.

    >>> with capture_logs() as lines:
    ...     logger.bind(step=3).warning("loss is {}", "nan")
    >>> lines[0].level, lines[0].message, lines[0].extra
    ('WARNING', 'loss is nan', {'step': 3})
    """
    lines: list[Line] = []

    def take(message: Any) -> None:
        record = message.record
        error = record["exception"]
        lines.append(
            Line(
                level=record["level"].name,
                message=record["message"],
                logger=record["name"],
                function=record["function"],
                line=record["line"],
                extra=dict(record["extra"]),
                exception=error.value if error else None,
            )
        )

    handler = logger.add(take, level=level, format="{message}")
    try:
        yield lines
    finally:
        with suppress(ValueError):  # the tested code removed all handlers
            logger.remove(handler)


@contextmanager
def capture_alerts(service: AlertsService, *, fail_with: str | None = None) -> Iterator[list[Alert]]:
    """Collect the alerts that the service sends inside the block, instead of sending them.

    With `fail_with`, delivery fails for that reason, so the service prints the alerts as it would without a desktop.

    >>> from autogen_team import AlertsService
    >>> service = AlertsService()
    >>> with capture_alerts(service) as alerts:
    ...     service.notify("done", "model trained", level="success")
    >>> alerts
    [Alert(title='done', message='model trained', level='success')]
    """
    channel = RecordingChannel(fail_with=fail_with)
    with service.delivering_to(channel):
        yield channel.alerts


@contextmanager
def _forwarded_to(handler: logging.Handler) -> Iterator[None]:
    def take(message: Any) -> None:
        if bridge.is_passed_on():  # from the standard library: the handler already has this record
            return
        made = message.record
        error = made["exception"]
        record = logging.LogRecord(
            made["name"] or "",
            made["level"].no,
            made["file"].path,
            made["line"],
            made["message"],
            None,
            (error.type, error.value, error.traceback) if error and error.value else None,
            made["function"],
        )
        record.levelname = made["level"].name
        record.extra = dict(made["extra"])
        if record.levelno >= handler.level:
            handler.handle(record)

    number = logger.add(take, level=0, format="{message}")
    try:
        yield
    finally:
        with suppress(ValueError):
            logger.remove(number)


try:
    import pytest
except ImportError:  # `capture_logs` does not need pytest
    pass
else:

    @pytest.fixture
    def caplog(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
        """Make pytest's `caplog` capture lines logged through loguru."""
        with _forwarded_to(caplog.handler):
            yield caplog

    __all__ += ["caplog"]
