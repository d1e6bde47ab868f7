"""Log lines on their way to an OpenTelemetry collector.

Each line is in a journal of its own kind when the logging call returns. The agent ships this journal; see
`line_routes`. A thread of the job only follows the agent's messages; if there is no agent, it ships the journal.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

from autogen_team._process import grace
from autogen_team._process.forking import start_afresh_after_fork
from autogen_team._process.threads import spawn
from autogen_team._redact import mask, mask_url
from autogen_team._ship import collector
from autogen_team._ship.agent_link import AgentLink, Message
from autogen_team._ship.backend import Unreachable
from autogen_team._ship.drain import Drain
from autogen_team._ship.error_text import with_kind
from autogen_team._spool import journal, reader
from autogen_team._spool.journal import Journal
from autogen_team._spool.records import Entry

MOST = 64 * 2**20
"""Maximum size in bytes of the lines of a process that wait for the collector; beyond it, the oldest are dropped."""
LAST = 15 * 60.0
"""Seconds for which the agent tries to send the remaining lines of a job that has ended."""
_PATIENCE = 5.0
"""Maximum seconds to wait for the start of the agent, and for the collector at the end of the job."""
_POLL = 0.1
"""Seconds between attempts to reach an agent that is starting."""
_LARGER = 4
"""A request takes so many times more bytes of lines than one of metrics, because a collector decodes them faster."""
_RETRYABLE = frozenset({429, 502, 503, 504})
"""Status codes after which the same request may be sent again, by the specification of OTLP."""
_SUPPRESS = "suppress_instrumentation"
"""Key of OpenTelemetry's context that keeps instrumented HTTP clients from tracing these requests."""

_report = logging.getLogger("autogen_team")

OnLost = Callable[[Iterable[Entry], int, str], None]
"""Called with lines, with the number of them that the collector has rejected for good, and with its reason."""


class Source:
    """A journal of lines as `Drain` reads it; each line knows its source."""

    def __init__(self, folder: Callable[[], Path | None], after: int) -> None:
        """Start after entry number `after`; `folder` returns None until the journal's folder exists."""
        self._folder = folder
        self.begin(after)
        self.resource: Mapping[str, Any] = {}
        """The attributes of the process in the sense of OpenTelemetry."""

    def begin(self, after: int) -> None:
        """Start again after entry number `after`."""
        self._follower = reader.Follower(self._folder, after)

    @property
    def number(self) -> int:
        """The number of the last entry that was read."""
        return self._follower.number

    @property
    def is_behind(self) -> bool:
        """Whether the last read left entries for the next one."""
        return self._follower.is_behind

    def read(self, limit: int) -> list[Entry]:
        """Return the next entries, with this source in the field `source`."""
        entries = self._follower.read(_LARGER * limit)
        folder = self._folder()
        if entries and not self.resource and folder is not None:
            self.resource = (reader.header(folder) or {}).get("resource", {})
        for entry in entries:
            entry["source"] = self
        return entries

    def kept(self, entries: list[Entry]) -> list[Entry]:
        """Return all entries: lines do not belong to a run that another process may have taken."""
        return entries

    def taken(self, number: int) -> None:
        """Record that the collector has answered for every entry up to `number`."""

    def close(self) -> None:
        """Close the file."""
        self._follower.close()


class Delivery:
    """Sends the lines of sources to a collector, those of one round as one request."""

    def __init__(self, target: collector.Target, on_lost: OnLost) -> None:
        from autogen_team._ship import otlp_request  # loads OpenTelemetry's protocol buffers

        self._request = otlp_request
        self._send = target.sender()
        self._on_lost = on_lost

    def deliver(self, entries: list[Entry]) -> None:
        """Send the lines.

        Raises:
            Unreachable: the collector does not answer, or asks for another attempt. If only its answer was lost, the
                next attempt sends lines that the collector has.

        """
        lines = [entry for entry in entries if entry["op"] == "line" and "sent" not in entry]
        if lines:
            self._deliver(lines)

    def _deliver(self, lines: list[Entry]) -> None:
        groups: dict[Source, list[Entry]] = {}
        for line in lines:
            groups.setdefault(line["source"], []).append(line)
        data = self._request.encode_lines((source.resource, some) for source, some in groups.items())
        try:
            status, reason, answer = self._send(data)
        except OSError as error:
            raise Unreachable(mask(with_kind(error))) from error
        if status in _RETRYABLE:
            raise Unreachable(f"it answers {status} {reason}")
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and len(lines) > 1:
            middle = len(lines) // 2
            self._deliver(lines[:middle])
            for line in lines[:middle]:
                line["sent"] = True  # the next attempt has the same entries
            self._deliver(lines[middle:])
        elif not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            self._on_lost(lines, len(lines), f"it answers {status} {reason}")
        else:
            count, text = self._request.rejected_lines(answer)
            if count:
                self._on_lost(lines, min(count, len(lines)), mask(f"it rejects lines: {text}"))


class _Own(Source):
    """The journal of this process."""

    def __init__(self, lines: Journal) -> None:
        super().__init__(lambda: lines.folder, lines.acked)
        self._lines = lines

    def taken(self, number: int) -> None:
        """Record that the collector has answered for every entry up to `number`."""
        self._lines.ack(number)


class Lines:
    """The lines of this process. The collector may be down or silent; only `finish` waits for it."""

    def __init__(self, state: Path, resource: Callable[[], Mapping[str, Any]]) -> None:
        """Keep the lines below the state folder; `resource` returns the attributes of the process, without secrets."""
        self._place = mask_url(collector.endpoint("logs") or "")
        self._journal = Journal(
            state, uri=self._place, kind=journal.LINES, about=lambda: {"resource": resource()}, most=MOST
        )
        self.append = self._journal.append
        """Writes the body of an entry; raises JournalError if the disk is full."""
        self._agent = AgentLink(state, {})
        self._journal.on_begin = self._agent.watch
        self._begin()
        start_afresh_after_fork(self)

    def after_fork(self) -> None:
        """Leave the lines to the parent; those of the child are its own."""
        self._journal.after_fork()
        self._agent.after_fork()
        self._begin()

    def _begin(self) -> None:
        self.lost = 0
        """Number of lines that were not written, or that the collector has rejected."""
        self._lock = threading.Lock()
        self._progress = threading.Condition()
        self.thread: threading.Thread | None = None
        """Starts with `start`; it does not survive a fork."""
        self._own: _Own | None = None
        self._drain: Drain | None = None
        """Ships the journal while the agent does not."""
        self._agent_until = 0.0
        """Until when the thread waits for an agent that is starting, on the monotonic clock."""
        self._reported: set[str] = set()
        self._is_followed = False
        self._agent_cannot = False
        self._is_ending = self._is_over = False

    def lose(self, error: Exception) -> None:
        """Count a line that cannot be written, and report the first one."""
        self.lost += 1
        text = "log lines cannot be kept for the OpenTelemetry collector at %s: %s; the job continues without them"
        self._report_once(text, self._place, mask(with_kind(error)))

    def finish(self) -> None:
        """Wait a few seconds until the collector has the rest, and report what it does not have."""
        deadline = time.monotonic() + grace.bounded(_PATIENCE)
        until = self._journal.number
        self._is_ending = True
        self._hurry(until)
        with self._progress:
            self._progress.wait_for(
                lambda: self._journal.acked >= until or self.thread is None, max(0.0, deadline - time.monotonic())
            )
        self._is_over = True
        drain = self._drain
        if drain is not None:
            drain.stop()
        self._agent.end_wait()
        self._journal.wake()
        thread = self.thread
        if thread is not None:
            thread.join(grace.bounded(1.0))
        left = self._journal.waiting
        kept = self._journal.close()
        agent_has_them = self._agent.dismiss()
        if kept is not None:
            next_try = f"the agent tries for {LAST / 60:g} minutes" if agent_has_them else "the next job will try again"
            text = "%d log lines have not reached the OpenTelemetry collector at %s yet; %s"
            _report.warning(text, left, self._place, next_try)
        if self.lost + self._journal.dropped:
            text = "%d log lines did not reach the OpenTelemetry collector at %s"
            _report.warning(text, self.lost + self._journal.dropped, self._place)

    def start(self) -> None:
        """Start the thread, unless it is running."""
        with self._lock:
            if self.thread is None and not self._is_ending:
                self.thread = spawn(self._run, name="autogen_team-otlp-lines")

    def _hurry(self, until: int) -> None:
        if self._is_followed:
            self._agent.send({"op": "flush", "until": until})
        drain = self._drain
        if drain is not None:
            drain.urgent.set()
        self._journal.wake()

    def _run(self) -> None:
        with suppress(ImportError):
            from opentelemetry.context import attach, set_value

            attach(set_value(_SUPPRESS, True))
        self._expect_agent()
        while not self._is_over:
            self._journal.wait(None)
            try:
                self._work()
            except Exception as error:
                self._failed(mask(with_kind(error)))
                time.sleep(_POLL)
        self._close_own()

    def _work(self) -> None:
        """Leave the journal to the agent; ship it here if the agent cannot do so, or does not start in time."""
        while self._journal.acked < self._journal.number and not self._is_over:
            if not self._agent_cannot and self._agent.is_connected():
                self._follow()
                self._expect_agent()
            elif self._can_wait():
                time.sleep(_POLL)
            else:
                self._ship()

    def _expect_agent(self) -> None:
        self._agent_until = time.monotonic() + _PATIENCE

    def _can_wait(self) -> bool:
        is_due = self._agent_cannot or self._is_ending or time.monotonic() > self._agent_until
        return not is_due and os.name == "posix"  # the agent runs on POSIX only

    def _follow(self) -> None:
        """Follow the agent's messages until it ends or returns the journal."""
        self._close_own()
        self._is_followed = True
        if self._is_ending:
            self._hurry(self._journal.number)
        with suppress(OSError):  # the agent has ended
            while not self._is_over and not self._agent_cannot:
                for message in self._agent.messages(None):
                    self._hear(message)
        self._is_followed = False

    def _hear(self, message: Message) -> None:
        match message:
            case {"op": "acked", "number": int(number)}:
                self._journal.ack(number)
                self._taken()
            case {"op": "failed", "reason": str(reason)}:
                self._failed(reason)
            case {"op": "lost", "count": int(count), "reason": str(reason)}:
                self._lost((), count, reason)
            case {"op": "yours"}:
                self._agent_cannot = True

    def _ship(self) -> None:
        if self._drain is None:
            own = self._own = _Own(self._journal)
            delivery = Delivery(collector.Target.of("logs"), self._lost)
            self._drain = Drain(delivery, lambda: (own,), on_failed=self._failed, on_taken=self._taken)
        if not self._is_ending:
            self._drain.urgent.wait(self._drain.gather)
        self._drain.is_stopped = self._is_over
        self._drain.ship()

    def _close_own(self) -> None:
        own, self._own, self._drain = self._own, None, None
        if own is not None:
            own.close()

    def _taken(self) -> None:
        with self._progress:
            self._progress.notify_all()

    def _failed(self, reason: str) -> None:
        text = "log lines cannot be sent to the OpenTelemetry collector at %s: %s; they wait on disk"
        self._report_once(text, self._place, reason)

    def _lost(self, _: Iterable[Entry], count: int, reason: str) -> None:
        self.lost += count
        text = "log lines cannot be sent to the OpenTelemetry collector at %s: %s; the job continues without them"
        self._report_once(text, self._place, reason)

    def _report_once(self, text: str, *values: str) -> None:
        if text not in self._reported:
            self._reported.add(text)  # first, because the report is another line
            _report.warning(text, *values)
