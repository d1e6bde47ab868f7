"""The operations of a store that shipping needs, for every kind of store; nothing here loads MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

OPENED_BY = "autogen_team.opened_by"
"""Tag that identifies a run whose id was not recorded."""


class Unreachable(Exception):  # noqa: N818 - what happened, not whose fault it is
    """The store could not be reached or could not answer; the same request may succeed later."""


class Blocked(Unreachable):
    """A proxy or firewall in front of the store answered instead, perhaps because of the content."""


class Refused(Exception):  # noqa: N818 - the same
    """The store rejects the request for good."""


class RefusedOnTheWay(Refused):
    """A proxy or firewall in front of the store blocks this request, but not others."""


@dataclass(slots=True)
class Batch:
    """Metrics, parameters and tags of one run that are logged in one request."""

    run_id: str
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """Each has `key`, `value`, `timestamp`, `step`, and optionally `model_id`, `dataset_name`, `dataset_digest`."""
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.metrics) + len(self.params) + len(self.tags)

    def singles(self) -> list[Batch]:
        """Return each item as a separate batch."""
        return [
            *(Batch(self.run_id, metrics=[metric]) for metric in self.metrics),
            *(Batch(self.run_id, params={key: value}) for key, value in self.params.items()),
            *(Batch(self.run_id, tags={key: value}) for key, value in self.tags.items()),
        ]


@dataclass(frozen=True, slots=True)
class RunState:
    """What a store knows about a run."""

    status: str
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)


class Backend(Protocol):
    """A store to which journals are shipped. Each method sends its request once, because the caller retries.

    Every method raises `Unreachable` if the store could not be reached, and all but `takes_others` raise `Refused` if
    the store rejects the request.
    """

    @property
    def ahead(self) -> float:
        """Seconds by which the store's clock is ahead of this machine's; 0 if unknown."""
        ...

    def create(self, entry: Mapping[str, Any]) -> str:
        """Create the run that an entry describes, unless it exists already, and return its id."""
        ...

    def log(self, batch: Batch) -> None:
        """Log metrics, parameters and tags; an empty batch only checks whether the run accepts any."""

    def takes_others(self, run_id: str) -> bool:
        """Return whether the store itself answers a request about this run without content."""
        ...

    def look(self, run_id: str) -> RunState:
        """Return status, tags and parameters of a run, by one request."""
        ...

    def update(self, run_id: str, status: str | None, end_time: int | None, name: str | None) -> None:
        """Change status, end (milliseconds since 1970) and name of a run."""

    def remove_tag(self, run_id: str, key: str) -> None:
        """Remove a tag; a tag that does not exist counts as removed."""

    def log_inputs(self, run_id: str, datasets: Sequence[Mapping[str, Any]], models: Sequence[str]) -> None:
        """Log the inputs of a run: datasets as MLflow's REST API writes them, and ids of models."""

    def log_spans(
        self, experiment_id: str, spans: Sequence[Mapping[str, Any]], resource: Mapping[str, Any] | None
    ) -> None:
        """Log spans as `Span.to_dict` of MLflow writes them; a span that the store has is replaced.

        `resource` has the attributes of OpenTelemetry's resource.
        """

    def log_traces(self, infos: Sequence[Mapping[str, Any]]) -> None:
        """Log the infos of traces that have ended, as MLflow's REST API writes them; the store may have some already.

        If the store refuses one info, the others may not be logged.
        """

    def tag_trace(self, trace_id: str, key: str, value: str) -> None:
        """Set a tag of a trace."""

    def link_prompts(self, trace_id: str, prompts: Sequence[Mapping[str, Any]]) -> None:
        """Link versions of prompts, each with `name` and `version`, to a trace; do nothing if the store cannot."""
