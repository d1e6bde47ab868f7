"""Turns entries of a journal into requests, and brings these to a store in the order of each run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import orjson
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.validation import MAX_ENTITIES_PER_BATCH, MAX_METRICS_PER_BATCH, MAX_PARAMS_TAGS_PER_BATCH

from autogen_team.io._redact import mask
from autogen_team.io._tracking import entries
from autogen_team.io._tracking.destinations import Batch, Destination, Refused
from autogen_team.io._tracking.entries import NOTES, Entry

Attach: TypeAlias = Callable[[Entry], None]
"""Brings a file that waits beside a journal to where its entry says."""

_EXTRAS = (("model_id", "model"), ("dataset_name", "dataset"), ("dataset_digest", "digest"))
_PLAIN = len(("crc", "n", "op", "run", "t", "step", "values"))
REFUSED_FILE = "refused.jsonl"

_report = logging.getLogger("autogen_team")


class Delivery:
    """Brings entries to one destination."""

    def __init__(self, destination: Destination, attach: Attach, state: Path) -> None:
        """Note what the destination refuses in a file below `state`."""
        self.ids: dict[str, str] = {}
        """The ids of runs that were begun without the store, and what it calls them."""
        self.on_created: Callable[[str, str], None] = lambda _local, _real: None
        """Called when the store has made such a run."""
        self._destination = destination
        self._attach = attach
        self._state = state
        self.refused = 0
        """Items that the store does not take, at all."""

    def deliver(self, found: Iterable[Entry]) -> None:
        """Bring the entries to the store; what it refuses is noted, and does not hold up the rest.

        Raises:
            Unreachable: the store could not be asked. Some entries may have arrived; bringing them again does no harm.

        """
        for request in _requests(found):
            if isinstance(request, Batch):
                self._log(self._as_known_there(request))
            else:
                self._do(request)

    def _log(self, batch: Batch) -> None:
        try:
            self._destination.log(batch)
        except Refused as refusal:
            singles = batch.singles()
            if len(singles) == 1 or self._takes_nothing(batch.run_id):
                self._note({"run": batch.run_id, "items": _plain(batch)}, refusal, len(singles))
                return
            # Some of them are at fault: by halves, a single one among a thousand costs ten requests, not a thousand.
            middle = len(singles) // 2
            for half in (singles[:middle], singles[middle:]):
                self._log(_joined(half))

    def _takes_nothing(self, run_id: str) -> bool:
        """Tell whether it is the run that the store refuses: one that was deleted meanwhile, say."""
        try:
            self._destination.log(Batch(run_id))
        except Refused:
            return True
        return False

    def _do(self, entry: Entry) -> None:
        destination = self._destination
        run_id: str = entry.get("run", "")
        run_id = self.ids.get(run_id, run_id)
        try:
            match entry["op"]:
                case "create":
                    self._create(entry)
                case "info":
                    destination.update(run_id, entry.get("status"), entry.get("end"), entry.get("name"))
                case "untag":
                    destination.remove_tag(run_id, entry["key"])
                case "inputs":
                    destination.log_inputs(run_id, entry.get("datasets", ()), entry.get("models", ()))
                case "artifact":
                    self._attach({**entry, "run": run_id} if run_id else entry)
        except Refused as refusal:
            self._note(entry, refusal)

    def _create(self, entry: Entry) -> None:
        local = entry["run"]
        if local not in self.ids:
            self.ids[local] = self._destination.create({**entry, "tags": self._with_parent(entry["tags"])})
            self.on_created(local, self.ids[local])

    def _as_known_there(self, batch: Batch) -> Batch:
        if not self.ids:
            return batch
        run_id = self.ids.get(batch.run_id, batch.run_id)
        return replace(batch, run_id=run_id, tags=self._with_parent(batch.tags))

    def _with_parent(self, tags: dict[str, str]) -> dict[str, str]:
        parent = self.ids.get(tags.get(MLFLOW_PARENT_RUN_ID, ""))
        return tags if parent is None else {**tags, MLFLOW_PARENT_RUN_ID: parent}

    def _note(self, what: Entry, refusal: Refused, count: int = 1) -> None:
        reason = mask(str(refusal))
        is_first = not self.refused
        self.refused += count
        path = self._state / REFUSED_FILE
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
            try:
                os.write(descriptor, orjson.dumps({**what, "reason": reason}) + b"\n")
            finally:
                os.close(descriptor)
        except OSError as error:
            reason = f"{reason} (which could not be noted: {error.strerror})"
        if is_first:
            _report.error("the MLflow store refuses an item of run %s: %s; see %s", what.get("run"), reason, path)


def _requests(found: Iterable[Entry]) -> Iterator[Batch | Entry]:
    """Gather what can go in one request; whatever else concerns a run comes after what was said of it before."""
    batches: dict[str, Batch] = {}
    for entry in found:
        operation = entry["op"]
        if operation in NOTES:
            continue
        run_id = entry.get("run", "")
        batch = batches.get(run_id)
        if operation not in ("metrics", "params", "tags"):
            if batch is not None:
                yield batches.pop(run_id)
            yield entry
            continue
        if batch is not None and operation == "metrics" and len(batch) + len(entry["values"]) <= MAX_METRICS_PER_BATCH:
            batch.metrics += _metrics(entry)  # what nearly all entries are, without a detour
            continue
        for part in _parts(entry):
            if batch is not None and not _fits(batch, part):
                yield batch
                batch = None
            if batch is None:
                batch = batches[run_id] = Batch(run_id)
            batch.metrics += part.metrics
            batch.params |= part.params
            batch.tags |= part.tags
    yield from batches.values()


def _parts(entry: Entry) -> Iterator[Batch]:
    run_id = entry["run"]
    if entry["op"] == "metrics":
        metrics = _metrics(entry)
        for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
            yield Batch(run_id, metrics=metrics[start : start + MAX_METRICS_PER_BATCH])
        return
    items = list(entry["values"].items())
    for start in range(0, len(items), MAX_PARAMS_TAGS_PER_BATCH):
        some = dict(items[start : start + MAX_PARAMS_TAGS_PER_BATCH])
        yield Batch(run_id, params=some) if entry["op"] == "params" else Batch(run_id, tags=some)


def _metrics(entry: Entry) -> list[dict[str, object]]:
    timestamp, step = entry["t"], entry["step"]
    found: list[dict[str, object]] = [
        {"key": key, "value": value, "timestamp": timestamp, "step": step} for key, value in entries.values_of(entry)
    ]
    for name, short in _EXTRAS if len(entry) > _PLAIN else ():
        if short in entry:
            for metric in found:
                metric[name] = entry[short]
    return found


def _fits(batch: Batch, part: Batch) -> bool:
    return (
        len(batch) + len(part) <= MAX_ENTITIES_PER_BATCH
        and len(batch.params) + len(part.params) <= MAX_PARAMS_TAGS_PER_BATCH
        and len(batch.tags) + len(part.tags) <= MAX_PARAMS_TAGS_PER_BATCH
        and not part.params.keys() & batch.params.keys()  # the same parameter twice would be refused as a whole
    )


def _joined(singles: list[Batch]) -> Batch:
    whole = Batch(singles[0].run_id)
    for single in singles:
        whole.metrics += single.metrics
        whole.params |= single.params
        whole.tags |= single.tags
    return whole


def _plain(batch: Batch) -> list[dict[str, object]]:
    texts = [*batch.params.items(), *batch.tags.items()]
    return [*batch.metrics, *({"key": key, "value": value} for key, value in texts)]
