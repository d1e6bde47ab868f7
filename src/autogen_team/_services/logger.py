"""Logging as a service."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from autogen_team._services.base import Service
from autogen_team._services.fields import Place

if TYPE_CHECKING:
    from types import TracebackType

    import loguru


__all__ = ["LoggerService"]


class LoggerService(Service):
    """Logs of the job and of its libraries, in one place and one format, through loguru.

    >>> service = LoggerService(sink="stdout", level="info", format="{level}: {message}")
    >>> service.start()
    >>> service.logger().warning("disk {}% full", 91)
    WARNING: disk 91% full
    >>> service.logger().debug("below the level, so not shown")
    >>> service.stop()
    """

    variable_prefix: ClassVar[str] = "AUTOGEN_TEAM_LOGGER_"

    sink: Place = "stderr"
    """Where lines go: `stderr`, `stdout`, or the path of a file (folders are made, `~` is the home folder)."""
    level: str = "INFO"
    """The least severe level that is shown: TRACE, DEBUG, INFO, SUCCESS, WARNING, ERROR or CRITICAL."""
    format: str = (
        "<green>{time:YYYY-MM-DD HH:mm:ss.SSS}</green> | <level>{level: <8}</level> | "
        "<cyan>{name}</cyan>:<cyan>{function}</cyan>:<cyan>{line}</cyan> - <level>{message}</level>"
    )
    """How a line of text looks, in loguru's markup; `{extra[run_id]}` and its like are empty outside a run."""
    colorize: bool = True
    """Colour on a terminal; never in a file. NO_COLOR and FORCE_COLOR are obeyed."""
    serialize: bool = False
    """One flat JSON object per line instead of text."""
    backtrace: bool = True
    """Show the whole stack of an exception, not only up to where it was caught."""
    diagnose: bool = False
    """Show the values of variables in tracebacks; they may hold secrets and data of people."""
    catch: bool = True
    """Report a fault of the sink and go on; otherwise it is raised where the line was logged."""
    rotation: str | int | None = None
    """When a new file is begun, in loguru's words: `100 MB`, `1 week`, `00:00`; safe with many processes."""
    retention: str | int | None = None
    """Which old files are kept, in loguru's words: a number of them, or an age such as `10 days`."""
    compression: str | None = None
    """How old files are packed: `gz`, `zip`, `xz` and the others that loguru knows."""
    intercept: bool = True
    """Take in the records of the standard library's logging, so of every library, and warnings."""
    redact: bool = True
    """Mask secrets: known values of the environment, tokens, keys, passwords in URLs; see `redact_patterns`."""
    uncaught: bool = True
    """Log what nobody caught: in the main thread, threads, finalizers and asyncio tasks."""
    run_log: bool = True
    """Keep the lines logged while a run is active with the run, as its artifact `logs/<host>-<pid>.log`."""

    def start(self) -> None:
        """Direct log lines to the sink.

        Handlers that the job has added to loguru stay. loguru's own first one is set aside until `stop`.

        Raises:
            ConfigurationError: the sink, the level, the format or the rotation cannot be used.

        """
        from autogen_team._logs import pipeline

        with self._lock:
            if not self.is_started:
                self._on_stop(pipeline.start(self))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.log_failure(error)
        super().__exit__(kind, error, traceback)

    def log_failure(self, error: BaseException | None) -> None:
        """Log the exception that ends the job; not as text on stderr, where Python itself shows it."""
        is_shown = self.sink.lower() == "stderr" and not self.serialize
        if self.is_started and self.uncaught and isinstance(error, Exception) and not is_shown:
            from autogen_team._logs import uncaught

            uncaught.log_failure(error)

    def logger(self) -> loguru.Logger:
        """Return loguru's logger, the same one as `from loguru import logger` gives."""
        import loguru

        return loguru.logger
