"""The table of all benchmarks: our figure, that of the peer, their ratio, and what we promise."""

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
    """The ratio that we promise not to exceed."""
    at_least: float | None = None
    """How many times as fast as the peer we promise to be."""

    def verdict(self) -> str:
        """Return the ratio in words, and whether our promise is kept."""
        if self.ours is None or self.peer is None:
            return "not measured: it is not installed"
        if self.at_least is not None:
            return _kept(
                f"times {self.peer / self.ours:8.1f}  at least {self.at_least:5g}",
                self.ours * self.at_least <= self.peer,
            )
        ratio = f"ratio {self.ours / self.peer:8.3f}"
        return (
            ratio
            if self.at_most is None
            else _kept(f"{ratio}  at most {self.at_most:6.3f}", self.ours <= self.at_most * self.peer)
        )


def _kept(what: str, is_kept: bool) -> str:
    return f"{what}  {'ok' if is_kept else 'NOT KEPT'}"


def show(rows: Sequence[Row]) -> None:
    """Print the rows as a table."""
    widths = max(len(row.what) for row in rows), max(len(row.peer_name) for row in rows)
    for row in rows:
        ours, peer = ("-" if figure is None else f"{figure:.3f}" for figure in (row.ours, row.peer))
        print(
            f"{row.what:<{widths[0]}}  {ours:>10} {row.unit:<2}  "
            f"{row.peer_name:<{widths[1]}}  {peer:>10} {row.unit:<2}  {row.verdict()}"
        )
