"""Writes entries to the journal, or directly to the store if the disk is full or read-only."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from autogen_team._process import activity
from autogen_team._ship.shipper import Shipper
from autogen_team._spool.journal import Journal, JournalError

_report = logging.getLogger("autogen_team")


class Writer:
    """Writes for one store; reports once when it bypasses the journal, and once when it is back."""

    def __init__(self, journal: Journal, shipper: Shipper) -> None:
        self._journal = journal
        self._shipper = shipper
        self._past = 0
        """Entries that could not be written since the journal last took one."""

    def write(self, body: str) -> None:
        """Write an entry to the journal; if that fails, deliver it to the store directly."""
        try:
            self._journal.append(body)
            activity.note_entry(body)
        except JournalError as error:
            self._go_past(error)
            self._shipper.deliver_now(body)
        else:
            if self._past:
                _report.warning("the journal is writable again; %d entries bypassed it", self._past)
                self._past = 0

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Ignore a journal that cannot be written, in a block that only notes something for a recovery."""
        try:
            yield
        except JournalError as error:
            self._go_past(error)

    def _go_past(self, error: JournalError) -> None:
        self._past += 1
        if self._past == 1:
            _report.error("%s; logging goes directly to the store, and is lost if that fails", error)
