"""Repeated alerts are counted, and the count is reported."""

import time

import pytest

from autogen_team._alerts.channel import Alert
from autogen_team._alerts.cooldown import Cooldown


@pytest.fixture
def clock(monkeypatch):
    """Return a function that advances the clock by seconds."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def advance(seconds):
        now[0] += seconds

    return advance


def test_without_a_cooldown_each_alert_passes():
    """By default, each alert is sent."""
    cooldown = Cooldown(0)
    alert = Alert("loss", "nan")
    assert [cooldown.admit(alert) for _ in range(3)] == [alert] * 3
    assert cooldown.drain() == []


def test_the_same_level_and_title_passes_once(clock):
    """The message is not compared, because repeated alerts usually differ in a number."""
    cooldown = Cooldown(60)
    assert cooldown.admit(Alert("loss", "0.1")) == Alert("loss", "0.1")
    assert cooldown.admit(Alert("loss", "0.2")) is None


@pytest.mark.parametrize("other", [Alert("loss", "0.1", "error"), Alert("accuracy", "0.1")])
def test_another_level_or_title_passes(clock, other):
    """An information does not suppress an error with the same title."""
    cooldown = Cooldown(60)
    cooldown.admit(Alert("loss", "0.1"))
    assert cooldown.admit(other) == other


def test_the_next_alert_after_the_cooldown_reports_the_count(clock):
    """The next alert contains the number of suppressed ones, once."""
    cooldown = Cooldown(60)
    for _ in range(4):
        cooldown.admit(Alert("loss", "nan"))
    clock(60)
    assert cooldown.admit(Alert("loss", "inf")) == Alert("loss", "inf (3 more)")
    clock(60)
    assert cooldown.admit(Alert("loss", "inf")) == Alert("loss", "inf")


def test_at_the_end_each_pending_count_is_reported(clock):
    """Each pending count is reported once; a title without suppressed alerts is not reported."""
    cooldown = Cooldown(60)
    for title in ("loss", "loss", "loss", "accuracy"):
        cooldown.admit(Alert(title, "low", "warning"))
    assert cooldown.drain() == [Alert("loss", "(2 more)", "warning")]
    assert cooldown.drain() == []


def test_a_title_for_each_epoch_does_not_fill_the_memory(clock):
    """Titles with an expired cooldown and no count are forgotten; titles with a count are kept."""
    cooldown = Cooldown(60)
    for _ in range(2):
        cooldown.admit(Alert("loss", "nan"))
    for epoch in range(2000):
        clock(1)
        cooldown.admit(Alert(f"epoch {epoch}", "done"))
    assert len(cooldown._entries) <= 256 + 60
    assert cooldown.drain() == [Alert("loss", "(1 more)")]
