"""Wait limits: nearly the time limit of the test, so that a test can still report what it waits for."""

from __future__ import annotations

import pytest

_SHARE = 0.85
_seconds = 100.0


def suit(item: pytest.Item) -> None:
    """Derive the wait limit from the time limit of this test."""
    global _seconds
    marker = item.get_closest_marker("timeout")
    limit = float(marker.args[0] if marker and marker.args else item.config.getini("timeout") or 0)
    _seconds = _SHARE * limit if limit else 100.0


def seconds() -> float:
    """Return the seconds for which the current test may wait."""
    return _seconds
