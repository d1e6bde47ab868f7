"""The table of a benchmark: our figure, the peer's figure, their ratio, and our target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One comparison; both figures come from the same run."""

    what: str
    ours: float | None
    peer: float | None
    """The figure of the peer; a figure is None if it was not measured."""
    peer_name: str
    unit: str
    at_most: float | None = None
    """Our target: the highest ratio."""
    at_least: float | None = None
    """Our target: how many times as fast as the peer we are at least."""

    def verdict(self) -> str:
        """Return the ratio as text, and whether we meet our target."""
        if self.ours is None or self.peer is None:
            return "not measured: the peer is not installed"
        if self.at_least is not None:
            return _with_target(
                f"times {self.peer / self.ours:8.1f}  at least {self.at_least:5g}",
                self.ours * self.at_least <= self.peer,
            )
        ratio = f"ratio {self.ours / self.peer:8.3f}"
        return (
            ratio
            if self.at_most is None
            else _with_target(f"{ratio}  at most {self.at_most:6.3f}", self.ours <= self.at_most * self.peer)
        )


def _with_target(ratio: str, is_met: bool) -> str:
    return f"{ratio}  {'ok' if is_met else 'MISSED'}"


def show(rows: Sequence[Row]) -> None:
    """Print the rows as a table."""
    widths = max(len(row.what) for row in rows), max(len(row.peer_name) for row in rows)
    for row in rows:
        ours, peer = ("-" if figure is None else f"{figure:.3f}" for figure in (row.ours, row.peer))
        print(
            f"{row.what:<{widths[0]}}  {ours:>10} {row.unit:<2}  "
            f"{row.peer_name:<{widths[1]}}  {peer:>10} {row.unit:<2}  {row.verdict()}"
        )
