"""The loop that ships journals to one store."""

from __future__ import annotations

from autogen_team._ship.backend import Unreachable
from autogen_team._ship.drain import Drain


class Source:
    """A journal with these entries."""

    is_behind = False

    def __init__(self, *values: str) -> None:
        self._left = [{"n": number, "op": "tag", "value": value} for number, value in enumerate(values, 1)]
        self.number = self.acked = 0

    def read(self, _limit: int) -> list[dict]:
        """Return all remaining entries."""
        found, self._left = self._left, []
        self.number = found[-1]["n"] if found else self.number
        return found

    def taken(self, number: int) -> None:
        """Acknowledge entries up to this number."""
        self.acked = number


class Delivery:
    """A store that is unreachable for some attempts, each of which ends by calling `after`."""

    def __init__(self, attempts: int, after) -> None:
        self.delivered: list[str] = []
        self._attempts = attempts
        self._after = after

    def deliver(self, entries: list[dict]) -> None:
        """Accept the entries, or raise."""
        if self._attempts:
            self._attempts -= 1
            self._after()
            raise Unreachable("away")
        self.delivered += [entry["value"] for entry in entries]


def drain_of(delivery: Delivery, sources: list[Source]) -> Drain:
    """Return a drain without pauses."""

    def hurry(_reason: str) -> None:
        drain.urgent.set()

    drain = Drain(delivery, lambda: tuple(sources), on_failed=hurry, on_taken=lambda: None)
    return drain


def test_entries_are_delivered_when_the_store_is_back():
    """Entries are delivered in order, once, and acknowledged."""
    source = Source("a", "b")
    delivery = Delivery(3, lambda: None)

    drain_of(delivery, [source]).ship()

    assert (delivery.delivered, source.acked) == (["a", "b"], 2)


def test_entries_of_a_journal_that_another_process_ships_are_dropped():
    """Late delivery could overwrite a tag with an older value than the other process has shipped."""
    given_back, kept = Source("old"), Source("b")
    sources = [given_back, kept]
    delivery = Delivery(1, lambda: sources.remove(given_back))

    drain_of(delivery, sources).ship()

    assert (delivery.delivered, given_back.acked, kept.acked) == (["b"], 0, 1)
