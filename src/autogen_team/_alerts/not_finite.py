"""Alerts about the first metric of a run that is NaN or infinite."""

from __future__ import annotations

from collections.abc import Callable

from autogen_team._process import run_events


class NotFiniteReporter(run_events.Listener):
    """Sends one alert for each run of this process that logs NaN or an infinity; later values are ignored."""

    def __init__(self, notify: Callable[..., None]) -> None:
        self._notify = notify
        self._reported: set[str] = set()

    def not_finite(self, run_id: str, key: str, value: float, step: float) -> None:
        """Send an alert, if this is the first such metric of its run."""
        if run_id not in self._reported:
            self._reported.add(run_id)
            self._notify(f"{key} is {value}", f"metric {key}, step {step:g}, run {run_id}", level="warning")
