"""`autogen-team config`: the current settings and their sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from autogen_team.cli import _context, _look

__all__ = ["show"]


def show(overrides: Mapping[str, str], *, as_json: bool) -> None:
    """Print all settings of the context that a job would get now, with these overrides."""
    with _look.plain_warnings(), _look.plain_errors():
        settings = _context.build(overrides).settings()
    if as_json:
        _look.as_json([asdict(setting) for setting in settings])
        return
    rows = [(setting.name, setting.value, setting.source, setting.variable) for setting in settings]
    _look.table(("setting", "value", "from", "variable"), rows)
