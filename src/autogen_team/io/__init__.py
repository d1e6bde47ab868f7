"""Input and output of a job: the services and the engines behind them."""

from __future__ import annotations

from autogen_team.io import _reports as _reports  # each module below may report a fault
