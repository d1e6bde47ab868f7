"""Durations in readable text."""

from __future__ import annotations

import pytest

from autogen_team._process.durations import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.2 s"), (9.99, "10.0 s"), (59.7, "1 min 0 s"), (42, "42 s"), (7380, "2 h 3 min"), (180_000, "2 d 2 h")],
)
def test_durations_read_as_people_say_them(seconds, text):
    """A duration is shown with its two largest units."""
    assert duration(seconds) == text
