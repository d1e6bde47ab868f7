"""`autogen-team notify`: one alert through each channel."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from typing import Any

from autogen_team.cli import _context, _look

__all__ = ["send"]

_NONE_DELIVERED = 1


def send(title: str, message: str, level: Any, overrides: Mapping[str, str], *, as_json: bool) -> None:
    """Send the alert, print the result of each channel, and exit with 1 if no channel delivered it."""
    # If alerts are disabled, the alert is printed instead; on stdout it would break the JSON.
    place = redirect_stdout(sys.stderr) if as_json else nullcontext()
    with _look.plain_warnings(), _look.plain_errors(), place:
        outcomes = _context.build(overrides).alerts_service.deliver_now(title, message, level=level)
    if as_json:
        _look.as_json([asdict(outcome) for outcome in outcomes])
    else:
        rows = [
            (outcome.channel, "yes" if outcome.delivered else "no", f"{outcome.milliseconds:.1f}", outcome.reason)
            for outcome in outcomes
        ]
        _look.table(("channel", "delivered", "ms", "why not"), rows)
    if not any(outcome.delivered for outcome in outcomes):
        raise SystemExit(_NONE_DELIVERED)
