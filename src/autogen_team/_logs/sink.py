"""The loguru sink: renders, masks and delivers messages, and keeps its faults away from the job.

The filter of the handler delivers the line and then rejects the record. So loguru skips its next steps: rendering the
line in its own way, and taking a lock that could deadlock with a signal handler. This saves a quarter of the time of a
line. Records that only loguru can render take all steps: exceptions, messages with markup, raw messages.
"""

from __future__ import annotations

import secrets
import threading
import traceback
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from autogen_team._logs import loguru_internals
from autogen_team._logs.console import Console
from autogen_team._logs.faults import Faults
from autogen_team._logs.jsonl import JsonLines
from autogen_team._logs.text import Extra, Record, Template, make_safe, without_colour
from autogen_team._process import activity, run_events
from autogen_team._process.forking import start_afresh_after_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from autogen_team._logs.file import File
    from autogen_team._logs.runlog import RunLogs

    Redact = Callable[[str], str]

_WARNING = 30
_END = f"\x1e{secrets.token_hex(4)}\x1e"
"""Separates loguru's renderings of the message and of the exception. Raw messages lack it; data cannot guess it."""

_SPACE = frozenset(" \t\n")


class Sink:
    """One destination of log lines; one of the sinks also feeds the logs of the active runs."""

    encoding = "utf8"  # loguru reads this before it draws the arrows of its tracebacks

    def __init__(
        self,
        destination: Console | File,
        *,
        name: str,
        template: Template | None,
        redact: Redact | None,
        catch: bool,
        rank: int | None,
        worker: str | None = None,
    ) -> None:
        """Create a sink; without `template` its lines are JSON."""
        self._destination = destination
        self._name = name
        self._console = destination if isinstance(destination, Console) else None
        self._template = template
        self._json = JsonLines(redact) if template is None else None
        self._redact = redact
        self._catch = catch
        self._process = {name: str(value) for name, value in (("rank", rank), ("worker", worker)) if value is not None}
        self._joined: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, self._process)
        # Rank 0 of a distributed job shows all lines on the console, the other ranks only warnings and errors.
        self._least_level = _WARNING if self._console is not None and rank else 0
        self._faults = Faults(name)
        self._interrupted: deque[tuple[bytes, Record]] = deque()
        self._loguru: threading.local | None = None
        self._is_stopped = False
        self.colours = template is not None and self._console is not None and self._console.is_coloured()
        """Whether loguru colours messages and tracebacks."""
        self.is_muted = False
        """Whether a sink started later has the same destination, or the job writes to the console itself."""
        self.has_left_console = False
        """Whether the job took over the console by calling `logger.remove()`."""
        self.runs: RunLogs | None = None
        """The logs of the active runs, if this sink feeds them."""
        self.otlp: Callable[[Record, Mapping[str, Any], str, str], None] | None = None
        """Sends a record, its run, its traceback and its masked message to a collector; None if this sink does not."""
        self._masked: tuple[Any, str] = (None, "")
        """The message of the last line, and the same masked, because masking takes longer than most other steps."""
        self.line: Callable[[Record, str], bytes] = self._text_line if self._json is None else self._json_line
        """Renders a record and its traceback as a line, without colours and with secrets masked."""
        self.after_fork()
        start_afresh_after_fork(self)

    def after_fork(self) -> None:
        """Create a new lock, because a thread of the parent may hold the old one; reentrant for signal handlers."""
        self._lock = threading.RLock()
        self._destination.after_fork()

    @property
    def lines(self) -> int:
        """Number of lines shown on the console; 0 for a file."""
        return self._console.lines if self._console is not None else 0

    def handlers_removed(self) -> str:
        """Leave the console to the job after `logger.remove()`; return a message about the destination."""
        if self._console is None:
            return f"{self._name} still gets each line"
        self.has_left_console = True
        return f"{self._name} shows what the job's own handlers write, secrets unmasked"

    @property
    def format(self) -> str:
        """The format for loguru; it includes the message only if messages may contain markup."""
        return "{message}" + _END if self.colours else _END

    def added(self, handler_id: int) -> None:
        """Adopt the handler that loguru made for this sink."""
        self._loguru = loguru_internals.adopt(handler_id)

    def accepts(self, record: Record) -> bool:
        """Deliver the record, or return True if loguru must render it first."""
        if self.is_muted and self.otlp is None and (self.runs is None or not self.runs.has_any):
            return False
        error = record["exception"]
        if error is None and not self.colours and loguru_internals.RAW not in record:
            self._deliver(record)
            return False
        if getattr(self._loguru, "acquired", False):
            # A signal handler or a finalizer logs while this thread is in `write`; loguru would refuse the message.
            self._deliver(record, "".join(traceback.format_exception(*error)) if error else "")
            return False
        return True

    def write(self, message: Any) -> None:
        """Deliver a message rendered by loguru."""
        text, end, trace = message.partition(_END)
        record = message.record
        if end:
            self._deliver(record, trace[1:], text)
        elif self._json is not None:
            self._deliver(record)
        else:
            self._deliver_raw(record, text)

    def stop(self) -> None:
        """Close the destination; loguru calls it when the handler is removed."""
        with self._lock:
            with suppress(Exception):  # it raises with `catch=False`, but the destination must still be closed
                for _ in range(len(self._interrupted)):
                    self._put(*self._interrupted.popleft())
            self._is_stopped = True
            try:
                self._destination.close()
            except Exception as error:
                self._faults.count(error)
        self._faults.close()

    def _deliver(self, record: Record, trace: str = "", message: str = "") -> None:
        activity.note()
        line = b""
        if not self.is_muted and record["level"].no >= self._least_level:
            if self.colours and self._console is not None and self._console.is_coloured():
                self._put(self._coloured_line(record, message or record["message"], trace), record)
            else:
                line = self.line(record, trace)
                self._put(line, record)
        if self.runs is not None and self.runs.has_any:
            self.runs.write(line or self.line(record, trace))
        if self.otlp is not None:
            known, masked = self._masked if self._json is None else self._json.masked
            if known is not record["message"] or known is None:
                masked = self._masked_message(record["message"])
            self.otlp(record, self._facts(), trace, masked)

    def _deliver_raw(self, record: Record, text: str) -> None:
        activity.note()
        if self._redact is not None:
            text = masked_colours(text, self._redact)
        plain = _encoded(without_colour(text))
        if not self.is_muted and record["level"].no >= self._least_level:
            is_coloured = self._console is not None and self._console.is_coloured()
            self._put(_encoded(text) if is_coloured else plain, record)
        if self.runs is not None and self.runs.has_any:
            self.runs.write(plain)

    def _put(self, line: bytes, record: Record) -> None:
        with self._lock:
            if self._is_stopped:
                return
            try:
                self._destination.write(line, record["time"])
            except Exception as error:
                if isinstance(error, RuntimeError) and "reentrant call" in str(error):
                    # A signal handler logs in the middle of a write to the stream, which Python refuses.
                    self._interrupted.append((line, record))
                    return
                if not self._catch:
                    raise
                is_first = self._faults.count(error)
            else:
                is_first = False
                if self._faults.lost:
                    gap = loguru_internals.make_record("WARNING", self._faults.over(), name="autogen_team")
                    self._put(self.line(gap, ""), gap)
                if self._interrupted:
                    self._put(*self._interrupted.popleft())
        if is_first:
            self._faults.report()

    def _text_line(self, record: Record, trace: str) -> bytes:
        template: Template = self._template  # type: ignore[assignment]  # None only for JSON
        try:
            text = template.plain(record, self._extra(record), without_colour(trace))
        except Exception as error:
            text = _fallback_text(error, record, trace)
        if self._redact is not None:
            shown, text = text, self._redact(text)
            if self.otlp is not None and text == shown:
                message = record["message"]
                if type(message) is str and text.endswith(message) and text[-len(message) - 1 :][:1] in _SPACE:
                    # A line without secrets has none in its last words, so the message need not be masked again.
                    self._masked = message, message
        return _encoded(make_safe(text) + "\n")

    def _masked_message(self, message: Any) -> str:
        text = message if type(message) is str else str(message)
        return text if self._redact is None else self._redact(text)

    def _coloured_line(self, record: Record, message: str, trace: str) -> bytes:
        template: Template = self._template  # type: ignore[assignment]  # as above
        redact = self._redact
        if redact is not None:  # before colour codes separate a name from its value
            message, trace = masked_colours(message, redact), masked_colours(trace, redact)
        try:
            text = template.coloured(record, self._extra(record), message, trace)
        except Exception as error:
            text = _fallback_text(error, record, trace)
        if redact is not None:
            text = redact(text)
        return _encoded(template.paint(make_safe(text)) + "\n")

    def _json_line(self, record: Record, trace: str) -> bytes:
        render: JsonLines = self._json  # type: ignore[assignment]  # as above
        return render(record, self._facts(), without_colour(trace) if trace else "")

    def _extra(self, record: Record) -> Mapping[str, Any] | None:
        template: Template = self._template  # type: ignore[assignment]  # as above
        return Extra({**self._facts(), **record["extra"]}) if template.wants_extra else None

    def _facts(self) -> Mapping[str, Any]:
        try:
            facts = run_events.facts()
        except Exception:  # a fault in the run fields must not lose the line
            return self._process
        if not self._process:
            return facts
        if facts is not self._joined[0]:
            self._joined = facts, {**self._process, **facts}
        return self._joined[1]


def _fallback_text(error: Exception, record: Record, trace: str) -> str:
    """Return a line for a record that does not fit the format, because a value fails or a patch removed it."""
    parts = [f"{record.get(name)!s}" for name in ("time", "level", "name", "message")]
    text = " | ".join([*parts, f"(the format could not be filled: {type(error).__name__}: {error})"])
    return f"{text}\n{trace}" if trace else text


def masked_colours(text: str, redact: Redact) -> str:
    """Return the text, with secrets masked as if it had no colours; lines without secrets keep their colours."""
    if "\x1b" not in text:
        return redact(text) if text else text
    plain = without_colour(text)
    masked = redact(plain)
    if masked == plain:
        return text
    lines = text.split("\n")
    shown = zip(lines, plain.split("\n"), masked.split("\n"), strict=False)
    if plain.count("\n") != masked.count("\n"):  # a secret that spans lines
        return masked
    return "\n".join(line if before == after else after for line, before, after in shown)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
