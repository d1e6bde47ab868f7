"""Logging as a service."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from autogen_team._process.folders import state_folder
from autogen_team._services.base import Service
from autogen_team._services.fields import Place
from autogen_team._services.state import StateFolder

if TYPE_CHECKING:
    from types import TracebackType

    import loguru


__all__ = ["LoggerService"]


class LoggerService(Service):
    """Logging through loguru: the logs of the job and its libraries in one place and one format.

    >>> service = LoggerService(sink="stdout", level="info", format="{level}: {message}")
    >>> service.start()
    >>> service.logger().warning("disk {}% full", 91)
    WARNING: disk 91% full
    >>> service.logger().debug("below the level, so not shown")
    >>> service.stop()
    """

    variable_prefix: ClassVar[str] = "AUTOGEN_TEAM_LOGGER_"

    sink: Place = "stderr"
    """`stderr`, `stdout` or the path of a file; missing folders are created, and `~` is the home folder."""
    level: str = "INFO"
    """Minimum level of log lines: TRACE, DEBUG, INFO, SUCCESS, WARNING, ERROR or CRITICAL."""
    format: str = (
        "<green>{time:YYYY-MM-DD HH:mm:ss.SSS}</green> | <level>{level: <8}</level> | "
        "<cyan>{name}</cyan>:<cyan>{function}</cyan>:<cyan>{line}</cyan> - <level>{message}</level>"
    )
    """Format of a text line, in loguru's markup; `{extra[run_id]}` and similar fields are empty outside a run."""
    colorize: bool = True
    """Use colours on a terminal, never in a file. NO_COLOR and FORCE_COLOR take precedence."""
    serialize: bool = False
    """Write one flat JSON object per line instead of text."""
    backtrace: bool = True
    """Show the whole stack of an exception, not only the part below the place that caught it."""
    diagnose: bool = False
    """Show the values of variables in tracebacks. They may contain secrets or personal data."""
    catch: bool = True
    """Report sink errors and continue; if false, the logging call raises them."""
    rotation: str | int | None = None
    """When to start a new file, as in loguru: `100 MB`, `1 week`, `00:00`. Safe with many processes."""
    retention: str | int | None = None
    """Which old files to keep, as in loguru: a number of files, or an age such as `10 days`."""
    compression: str | None = None
    """Compression of old files: `gz`, `zip`, `xz` or another format that loguru supports."""
    intercept: bool = True
    """Include records of the standard library's logging, which most libraries use, and warnings."""
    redact: bool = True
    """Mask secrets: values of environment variables, tokens, keys, passwords in URLs; see `redact_patterns`."""
    uncaught: bool = True
    """Log uncaught exceptions of the main thread, threads, finalizers and asyncio tasks."""
    otlp: bool = False
    """Send log lines to the OpenTelemetry collector of the `OTEL_EXPORTER_OTLP_...` variables; needs extra `otel`."""
    run_log: bool = True
    """Upload the lines logged during a run to that run, as its artifact `logs/<host>-<pid>.log`."""

    def start(self) -> None:
        """Send log lines to the sink.

        loguru's default handler is removed until `stop`. Handlers that the job added stay.

        Raises:
            ConfigurationError: the sink, level, format, rotation, retention or compression is invalid, or `otlp` lacks
                a collector or the extra `otel`.

        """
        from autogen_team._logs import pipeline

        with self._lock:
            if not self.is_started:
                state = state_folder(StateFolder().state_dir) if self.otlp else None
                self._on_stop(pipeline.start(self, state))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.log_failure(error)
        super().__exit__(kind, error, traceback)

    def log_failure(self, error: BaseException | None) -> None:
        """Log the exception that ends the job, unless the sink is stderr as text, where Python prints it anyway."""
        is_shown = self.sink.lower() == "stderr" and not self.serialize
        if self.is_started and self.uncaught and isinstance(error, Exception) and not is_shown:
            from autogen_team._logs import uncaught

            uncaught.log_failure(error)

    def logger(self) -> loguru.Logger:
        """Return loguru's logger, the same object as `from loguru import logger`."""
        import loguru

        return loguru.logger
