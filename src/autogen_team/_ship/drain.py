"""The loop that ships journals: read entries, deliver them, acknowledge them, and wait while the store is down.

A thread of the job runs it for the job's own journal until the agent takes over. The agent runs it for the journals of
all jobs that log to one store.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from autogen_team._redact import mask
from autogen_team._ship import trace_entries
from autogen_team._ship.backend import Unreachable
from autogen_team._ship.error_text import with_kind
from autogen_team._spool.records import Entry
from autogen_team._spool.wakeup import Wakeup

GATHER = 0.25
"""Seconds between the first entry of a batch and its delivery, for a fast store."""
_SHARE, _LONGEST_GATHER = 4.0, 4.0
"""Entries are gathered for `_SHARE` times as long as the last delivery took, at most `_LONGEST_GATHER` seconds. So a
store that serves many processes gets larger batches instead of more batches. The maximum is below the 5 s of silence
after which uvicorn closes a connection, because a request sent at that moment is lost."""
_CHUNK = 128 * 2**10
"""Bytes of a journal that are delivered and acknowledged together; about a thousand metrics."""
_STEP = 16 * 2**10
"""Bytes of a further read, if a chunk ends between the spans of a trace and its info; at most `_CHUNK` bytes in all."""
_MOST = 8000
"""Maximum number of entries of all journals in one round."""
_FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0
"""Seconds between attempts while the store is unreachable; the pause doubles from the first value to the second."""
_SPREAD = 0.5, 1.5
"""Range of the random factor of a pause. Without it, many workers that lost their server at the same moment would all
retry at the same moment, and overload the server again."""

_report = logging.getLogger("autogen_team")


class Delivery(Protocol):
    """The way to a store."""

    def deliver(self, entries: list[Entry], /) -> None:
        """Deliver the entries.

        Raises:
            Unreachable: not all of them could be delivered; the next call has the same entries.

        """


class Source(Protocol):
    """A journal to ship."""

    @property
    def number(self) -> int:
        """The number of the last entry that was read."""
        ...

    @property
    def is_behind(self) -> bool:
        """Whether the last read left entries for the next one."""
        ...

    def read(self, limit: int) -> list[Entry]:
        """Return the next entries, about `limit` bytes of them; an empty list if there are none."""
        ...

    def kept(self, entries: list[Entry]) -> list[Entry]:
        """Return the entries that may be delivered, without those of runs that belong to others by now.

        Raises:
            Unreachable: the store had to be asked, and does not answer.

        """
        ...

    def taken(self, number: int) -> None:
        """Record that the store has accepted every entry up to `number`, or that they may not be delivered."""


class Drain:
    """Ships the entries of some journals to one store."""

    def __init__(
        self,
        delivery: Delivery,
        sources: Callable[[], Iterable[Source]],
        *,
        on_failed: Callable[[str], None],
        on_taken: Callable[[], None],
    ) -> None:
        """Ship the journals of `sources`; call `on_taken` after a delivery, `on_failed` after a failure."""
        self._delivery = delivery
        self._sources = sources
        self._on_failed = on_failed
        self._on_taken = on_taken
        self._read: list[tuple[Source, int, list[Entry]]] = []
        """Sources with entries that are read but not delivered, each with the number of the last entry."""
        self._is_behind = False
        self.urgent = Wakeup()
        """Ends a pause early."""
        self.delivering = threading.Lock()
        """Held during a request to the store."""
        self.gather = GATHER
        """Seconds for which the next entries are gathered."""
        self.is_stopped = False

    def ship(self) -> None:
        """Deliver the journals' current entries; if the store is down, retry until it is back, or until `stop`."""
        began = time.monotonic()
        pause = _FIRST_PAUSE
        while not self.is_stopped and self._has_entries():
            if self._attempt():
                pause = _FIRST_PAUSE
                self._read = []
                if not self._is_behind:
                    break
                continue
            self.urgent.wait(pause * random.uniform(*_SPREAD))  # noqa: S311 - not a secret  # nosec B311
            pause = min(2 * pause, LONGEST_PAUSE)
        self.gather = min(max(GATHER, _SHARE * (time.monotonic() - began)), _LONGEST_GATHER)

    def stop(self) -> None:
        """End `ship` after the current request."""
        self.is_stopped = True
        self.urgent.set()

    def _has_entries(self) -> bool:
        sources = tuple(self._sources())
        # Drop entries that another process ships now: a later delivery here would give a tag an old value.
        self._read = [one for one in self._read if one[0] in sources]
        if not self._read:
            count = 0
            for source in sources:
                entries = _read(source) if count < _MOST else []
                if entries:
                    self._read.append((source, source.number, entries))
                    count += len(entries)
            self._is_behind = count >= _MOST or any(source.is_behind for source, _, _ in self._read)
        return bool(self._read)

    def _attempt(self) -> bool:
        self.urgent.clear()  # a flush after this line triggers another attempt at once
        read = self._read
        try:
            with self.delivering:
                self._delivery.deliver([entry for source, _, entries in read for entry in source.kept(entries)])
        except Unreachable as error:
            self._on_failed(str(error))
            return False
        except Exception as error:
            self._on_failed(mask(with_kind(error)))
            _report.debug("a delivery failed", exc_info=True)
            return False
        for source, number, _ in read:
            source.taken(number)
        self._on_taken()
        return True


def _read(source: Source) -> list[Entry]:
    """Return the next entries, with the infos of the traces whose spans are among them.

    MLflow writes 64 spans, and then the infos of their traces. A server takes twice as long for a trace whose spans
    arrive in an earlier delivery.
    """
    entries = source.read(_CHUNK)
    for _ in range(_CHUNK // _STEP):
        if not source.is_behind or not trace_entries.lacks_infos(entries):
            break
        entries += source.read(_STEP)
    return entries
