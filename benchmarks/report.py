"""One table for all benchmarks: ours, the peer, their ratio, and what we promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One comparison; both figures come from the same run."""

    what: str
    ours: float
    peer: float
    peer_name: str
    unit: str
    at_most: float
    """The ratio that we promise not to exceed."""

    @property
    def ratio(self) -> float:
        """Ours over the peer's."""
        return self.ours / self.peer


def show(rows: Sequence[Row]) -> None:
    """Print the rows."""
    widths = max(len(row.what) for row in rows), max(len(row.peer_name) for row in rows)
    for row in rows:
        kept = "ok" if row.ratio <= row.at_most else "NOT KEPT"
        print(
            f"{row.what:<{widths[0]}}  {row.ours:10.3f} {row.unit:<2}  "
            f"{row.peer_name:<{widths[1]}}  {row.peer:10.3f} {row.unit:<2}  "
            f"ratio {row.ratio:7.3f}  at most {row.at_most:6.3f}  {kept}"
        )
