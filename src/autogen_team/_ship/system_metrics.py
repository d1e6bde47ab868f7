"""System metrics of runs, sampled and logged by the process that ships the job's journal, usually the agent.

They go directly to the store, not through the journal, because only the job writes to the journal.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from autogen_team._ship.backend import Backend, Batch, Refused, Unreachable
from autogen_team._ship.resources import Resources

PREFIX = "system/"
_KEPT = 360
"""Maximum number of samples that wait for an unreachable store, by default an hour's; then the oldest are dropped."""
_VARIABLES = ("CUDA_VISIBLE_DEVICES",)


@dataclass(frozen=True)
class Order:
    """Parameters for sampling a run."""

    run_id: str
    """The id that the job knows."""
    pid: int
    """The process whose container, network and GPUs are sampled."""
    every: float
    """Seconds between samples."""
    together: int
    """Number of samples whose mean is logged as one metric."""
    began: float
    """Time in seconds since 1970 from which the steps are counted, so they continue if another process takes over."""
    first_step: int
    prefix: str
    """Prefix of the names of the metrics."""
    environment: dict[str, str] = field(default_factory=dict)
    """The variables of the job that say which GPUs it may use."""


def variables_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of an environment that an order needs."""
    return {name: environment[name] for name in _VARIABLES if name in environment}


class _Sampled:
    """The samples of one order."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self._resources = Resources(order.pid, order.environment)
        self._taken: list[dict[str, float]] = []
        self._due = time.time() + order.every
        self._waiting: deque[list[dict[str, Any]]] = deque(maxlen=_KEPT)

    @property
    def left(self) -> float:
        return max(0.0, self._due - time.time())

    def take(self) -> None:
        """Take a sample if it is due."""
        now = time.time()
        if now < self._due:
            return
        order = self.order
        self._due = now + order.every
        self._taken.append(self._resources.sample())
        if len(self._taken) < order.together:
            return
        taken, self._taken = self._taken, []
        step = order.first_step + max(0, round((now - order.began) / (order.every * order.together)) - 1)
        means = {key: sum(one[key] for one in having) / len(having) for key, having in _by_key(taken).items()}
        self._waiting.append(
            [
                {"key": order.prefix + key, "value": value, "timestamp": round(now * 1000), "step": step}
                for key, value in means.items()
            ]
        )

    def log(self, backend: Backend, run_id: str) -> bool:
        """Log the waiting samples; return False if the store does not answer."""
        while self._waiting:
            try:
                backend.log(Batch(run_id, metrics=self._waiting[0]))
            except Refused:  # the run was deleted, or does not exist yet
                return True
            except Unreachable:
                return False
            self._waiting.popleft()
        return True


def _by_key(taken: list[dict[str, float]]) -> dict[str, list[dict[str, float]]]:
    return {key: [one for one in taken if key in one] for key in taken[-1]}


class SystemMetrics:
    """System metrics of the runs that one process has open."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._sampled: dict[str, _Sampled] = {}

    @property
    def orders(self) -> list[dict[str, Any]]:
        """The orders as messages, for another process that takes over."""
        return [asdict(one.order) for one in list(self._sampled.values())]

    @property
    def left(self) -> float | None:
        """Seconds until the next sample is due; None if there is none to take."""
        return min((one.left for one in list(self._sampled.values())), default=None)

    def begin(self, order: Mapping[str, Any]) -> None:
        """Start to sample for a run."""
        self._sampled[order["run_id"]] = _Sampled(Order(**order))

    def end(self, run_id: str) -> None:
        """Stop sampling for a run."""
        self._sampled.pop(run_id, None)

    def end_all(self) -> None:
        """Stop sampling for all runs."""
        self._sampled.clear()

    def log(self, ids: Mapping[str, str], *, is_cut: bool = False) -> None:
        """Take the samples that are due, and log them.

        `ids` are the store's ids of local runs. If the store does not answer (then `is_cut` is true), samples are kept.
        """
        for run_id, one in list(self._sampled.items()):
            one.take()
            is_cut = is_cut or not one.log(self._backend, ids.get(run_id, run_id))
