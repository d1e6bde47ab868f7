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
    """Writer for one store; reports once when it bypasses the journal, and once when the journal is writable again."""

    def __init__(self, journal: Journal, shipper: Shipper) -> None:
        self._journal = journal
        self._shipper = shipper
        self._bypassed = 0
        """Number of entries that bypassed the journal since it last accepted one."""

    def write(self, body: str) -> None:
        """Write an entry to the journal; if that fails, deliver it to the store directly."""
        try:
            self._journal.append(body)
            activity.note_entry(body)
        except JournalError as error:
            self._bypass(error)
            self._shipper.deliver_now(body)
        else:
            if self._bypassed:
                _report.warning("the journal is writable again; %d entries bypassed it", self._bypassed)
                self._bypassed = 0

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Ignore a journal that cannot be written in a block that only records facts for a recovery."""
        try:
            yield
        except JournalError as error:
            self._bypass(error)

    def _bypass(self, error: JournalError) -> None:
        self._bypassed += 1
        if self._bypassed == 1:
            _report.error("%s; logging goes directly to the store, and is lost if that fails", error)
