"""`autogen-team config`: the settings in force, and where each comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from autogen_team.cli import _context, _look

__all__ = ["show"]


def show(overrides: Mapping[str, str], *, as_json: bool) -> None:
    """Print every setting of the context that a job would have now, with these overrides."""
    with _look.plain_warnings(), _look.plain_errors():
        settings = _context.build(overrides).settings()
    if as_json:
        _look.as_json([asdict(setting) for setting in settings])
        return
    rows = [(setting.name, setting.value, setting.source, setting.variable) for setting in settings]
    _look.table(("setting", "value", "from", "variable"), rows)
