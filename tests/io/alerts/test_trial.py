"""Send one test alert through each channel, with one outcome per channel."""

import time

import pytest

from autogen_team._alerts.channel import Alert, RecordingChannel
from autogen_team._alerts.trial import deliver_now
from autogen_team.errors import ConfigurationError


def test_each_channel_has_its_outcome(settings, daemon, endpoint):
    """The desktop and each URL are tried in order; outcomes have the duration and no secrets."""
    running, good, bad = daemon(), endpoint(), endpoint(403)
    outcomes = deliver_now(settings(urls=(f"{good.url}/tok3n", f"{bad.url}/tok3n")), "hello", "world", "warning")
    assert [(outcome.channel, outcome.delivered) for outcome in outcomes] == [
        ("desktop", True),
        (f"json://127.0.0.1:{good.port}/…", True),
        (f"json://127.0.0.1:{bad.port}/…", False),
    ]
    assert [outcome.reason for outcome in outcomes[:2]] == ["", ""]
    assert "error=403" in outcomes[2].reason
    assert all(0 < outcome.milliseconds < 20_000 for outcome in outcomes)
    assert (running.calls[0]["title"], good.requests[0]["message"]) == ("hello", "world")


def test_a_machine_without_any_channel_has_one_outcome(settings):
    """On a server without a desktop, the outcome gives the reason."""
    [outcome] = deliver_now(settings(), "hello", "world")
    assert (outcome.channel, outcome.delivered) == ("desktop", False)
    assert "no session bus" in outcome.reason


def test_a_channel_that_does_not_answer_is_left_at_the_deadline(settings, gated):
    """A hanging channel delays neither the command nor the other channels."""
    hanging, quick = gated(), RecordingChannel()
    started = time.monotonic()
    outcomes = deliver_now(settings(), "hello", "world", timeout=0.2, channels=[hanging, quick])
    assert time.monotonic() - started < 15
    assert [outcome.delivered for outcome in outcomes] == [False, True]
    assert outcomes[0].reason == "no answer within 0.2 s"
    assert quick.alerts == [Alert("hello", "world")]


def test_an_unforeseen_error_is_a_reason(settings, gated):
    """A channel that raises has an outcome too."""
    broken = gated(error=ZeroDivisionError("of all things"))
    broken.gate.set()
    [outcome] = deliver_now(settings(), "hello", "world", channels=[broken])
    assert (outcome.delivered, outcome.reason) == (False, "ZeroDivisionError: of all things")


def test_a_channel_for_other_levels_is_skipped(settings, endpoint):
    """Tags limit the levels of a trial as well."""
    server = endpoint()
    outcomes = deliver_now(settings(urls=(f"error={server.url}",)), "hello", "world")
    assert outcomes[1].reason == "not tagged for info"
    assert server.requests == []


def test_disabled_alerts_are_printed(settings, endpoint, capfd):
    """If alerts are disabled, the console is the only channel."""
    server = endpoint()
    [outcome] = deliver_now(settings(enable=False, urls=(server.url,)), "hello", "world")
    assert (outcome.channel, outcome.delivered, outcome.reason) == ("console", True, "")
    assert capfd.readouterr() == ("[test] hello: world\n", "")
    assert server.requests == []


def test_an_unknown_level_is_refused(settings):
    """An unknown level is rejected."""
    with pytest.raises(ConfigurationError, match="use one of"):
        deliver_now(settings(), "hello", "world", "loud")
