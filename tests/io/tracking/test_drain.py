"""The loop that ships journals to one store."""

from __future__ import annotations

from autogen_team._ship import trace_entries
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

    def kept(self, entries: list[dict]) -> list[dict]:
        """Return all entries: no run of theirs belongs to another process."""
        return entries

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


class TracesSource(Source):
    """A journal whose reads return one entry each: the spans of two traces, and then their infos."""

    def __init__(self) -> None:
        super().__init__()
        ids = ["00" * 15 + "01", "00" * 15 + "02"]
        roots = [{"trace_id": trace_entries.id_of_spans(f"tr-{one}"), "span_id": "a"} for one in ids]
        self._left = [
            {"n": 1, "op": "spans", "value": "spans", "spans": roots},
            *(
                {"n": 2 + at, "op": "trace", "value": one, "info": {"trace_id": f"tr-{one}"}}
                for at, one in enumerate(ids)
            ),
            {"n": 4, "op": "tag", "value": "later"},
        ]

    @property
    def is_behind(self) -> bool:
        return bool(self._left)

    def read(self, _limit: int) -> list[dict]:
        """Return the next entry."""
        found = [self._left.pop(0)] if self._left else []
        self.number = found[-1]["n"] if found else self.number
        return found


def test_spans_are_delivered_with_the_infos_of_their_traces():
    """A delivery does not end between the spans of a trace and its info, which would double a server's work."""
    source = TracesSource()
    deliveries: list[list[int]] = []

    class Recording(Delivery):
        def deliver(self, entries: list[dict]) -> None:
            deliveries.append([entry["n"] for entry in entries])
            super().deliver(entries)

    drain_of(Recording(0, lambda: None), [source]).ship()

    assert deliveries == [[1, 2, 3], [4]]
    assert source.acked == 4
