"""Turn journal entries into requests to a store; the entries of a run keep their order."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from autogen_team._redact import mask
from autogen_team._ship import refused, trace_entries
from autogen_team._ship.backend import Backend, Batch, Blocked, Refused, RefusedOnTheWay
from autogen_team._spool import records
from autogen_team._spool.records import NOTES, Entry

Attach: TypeAlias = Callable[[Entry], None]
"""Uploads the file of a trace, or of an entry `artifact` that a version before 0.1.0 has written."""

MAX_METRICS, MAX_PARAMS_OR_TAGS, MAX_ITEMS = 1000, 100, 1000
"""Maximum numbers of items in a request, as in `mlflow.utils.validation`."""
PARENT_TAG = "mlflow.parentRunId"
_EXTRAS = (("model_id", "model"), ("dataset_name", "dataset"), ("dataset_digest", "digest"))
_PLAIN = len(("crc", "n", "op", "run", "t", "step", "values"))
_OURS = "autogen_team."
_ATTEMPTS = 3
"""Number of blocked attempts before we check whether the content of the request is the cause."""
_PAUSES = (0.2, 0.5)
"""Seconds between these attempts in `insist`; callers of `deliver` pause themselves."""

_report = logging.getLogger("autogen_team")


def _not_here(entry: Entry) -> None:
    raise AssertionError(f"only the recovery of a journal carries out {entry['op']}")


class Delivery:
    """Delivers entries to one backend."""

    def __init__(
        self,
        backend: Backend,
        state: Path,
        *,
        attach: Attach = _not_here,
        report: Callable[[str, str], object] | None = None,
    ) -> None:
        """Write the items that the backend refuses to a file in the folder `state`.

        `report` is called with the id of a run and the text of an error about it. By default, the error is logged.
        """
        self.ids: dict[str, str] = {}
        """The store's ids of runs that were started without it, by local id."""
        self.on_created: Callable[[str, str], None] = lambda _local, _real: None
        """Called with both ids when the store has created such a run."""
        self._backend = backend
        self._attach = attach
        self._state = state
        self._report = report or (lambda _run_id, text: _report.error("%s", text))
        self.refused = 0
        """Number of items that the store has rejected for good."""
        self._told: set[type[Refused]] = set()
        """Kinds of refusals that were already reported."""
        self._blocked = 0
        """Number of times that the current delivery was blocked."""

    def insist(self, found: Sequence[Entry]) -> None:
        """Deliver the entries; if a proxy blocks them, check at once whether one of the items is the cause.

        Raises:
            Unreachable: see `deliver`.

        """
        for pause in _PAUSES:
            try:
                self.deliver(found)
            except Blocked:
                time.sleep(pause)
            else:
                return
        self.deliver(found)

    def deliver(self, found: Iterable[Entry]) -> None:
        """Deliver the entries to the store; rejected items are recorded, and do not block the rest.

        Raises:
            Unreachable: the store could not be reached. Some entries may have arrived; repeating them is harmless.

        """
        for request in _requests(found):
            if isinstance(request, Batch):
                self._log(self._with_store_ids(request))
            else:
                self._do(request)
        self._blocked = 0

    def _log(self, batch: Batch) -> None:
        try:
            self._backend.log(batch)
        except Refused as refusal:
            self._log_parts(batch, refusal)
        except Blocked as blocked:
            refusal_on_the_way = self._judged(blocked, batch.run_id)
            if len(batch) > 1 or self._is_blocked(batch):
                self._log_parts(batch, refusal_on_the_way)

    def _log_parts(self, batch: Batch, refusal: Refused) -> None:
        """Log the items of a refused batch that the store accepts, and record the others."""
        singles = batch.singles()
        is_on_the_way = isinstance(refusal, RefusedOnTheWay)
        if len(singles) == 1 or (not is_on_the_way and self._rejects_run(batch.run_id)):
            self._note({"run": batch.run_id, "items": _plain(batch)}, refusal, len(singles))
            return
        # Bisect the batch: one bad item among a thousand takes ten halvings, not a thousand requests.
        middle = len(singles) // 2
        for half in (singles[:middle], singles[middle:]):
            self._log(_joined(half))

    def _judged(self, blocked: Blocked, run_id: str) -> RefusedOnTheWay:
        """Return `blocked` as a refusal if other requests reach the store; otherwise raise it again.

        A proxy that has lost its server blocks every request, and a user without rights is always rejected. So this
        checks whether the store itself answers a request about the same run without any content.
        """
        self._blocked += 1
        if self._blocked < _ATTEMPTS or not self._backend.takes_others(run_id):
            raise blocked
        return RefusedOnTheWay(str(blocked))

    def _is_blocked(self, single: Batch) -> bool:
        """Try a single item again, now that other requests reach the store; return whether it is blocked."""
        try:
            self._backend.log(single)
        except Blocked:
            return True
        except Refused as refusal:
            self._log_parts(single, refusal)
        return False

    def _rejects_run(self, run_id: str) -> bool:
        """Return whether the store rejects the run itself, for example because it was deleted."""
        try:
            self._backend.log(Batch(run_id))
        except Refused:
            return True
        return False

    def _do(self, entry: Entry) -> None:
        run_id: str = entry.get("run", "")
        run_id = self.ids.get(run_id, run_id)
        try:
            self._carry_out(entry, run_id)
        except Refused as refusal:
            self._give_up(entry, run_id, refusal)
        except Blocked as blocked:
            self._give_up(entry, run_id, self._judged(blocked, run_id))

    def _carry_out(self, entry: Entry, run_id: str) -> None:
        backend = self._backend
        match entry["op"]:
            case "create":
                self._create(entry, entry["tags"], entry["name"])
            case "info":
                backend.update(run_id, entry.get("status"), entry.get("end"), entry.get("name"))
            case "untag":
                backend.remove_tag(run_id, entry["key"])
            case "inputs":
                backend.log_inputs(run_id, entry.get("datasets", ()), entry.get("models", ()))
            case "artifact":
                self._attach({**entry, "run": run_id} if run_id else entry)
            case "spans":
                backend.log_spans(entry["experiment"], entry["spans"], entry.get("resource"))
            case "trace":
                backend.log_traces([trace_entries.with_real_run(entry["info"], self.ids)])
            case "traces":
                backend.log_traces([trace_entries.with_real_run(one["info"], self.ids) for one in entry["entries"]])
            case "trace_tag":
                backend.tag_trace(entry["trace"], entry["key"], entry["value"])
            case "trace_prompts":
                backend.link_prompts(entry["trace"], entry["prompts"])
            case "trace_file":
                self._attach(entry)

    def _give_up(self, entry: Entry, run_id: str, refusal: Refused) -> None:
        """Record the rejected part of an entry; if a proxy blocked it, carry out the rest.

        A run is created without the tags and the name of the job, and these tags are logged afterwards. A run ends
        without its new name. Of several traces, the ones that the store accepts are logged.
        """
        parts = trace_entries.parts(entry)
        if parts:
            for part in parts:
                self._do(part)
            return
        if isinstance(refusal, RefusedOnTheWay) and entry["op"] == "create":
            needed = {key: value for key, value in entry["tags"].items() if key.startswith(_OURS)}
            real = self._create(entry, needed, f"run-{entry['run'][:8]}")
            rest = {key: value for key, value in entry["tags"].items() if key not in needed}
            self._log(self._with_store_ids(Batch(real, tags=rest)))
            return
        if isinstance(refusal, RefusedOnTheWay) and entry["op"] == "info" and entry.get("name"):
            self._note({"op": "info", "run": run_id, "name": entry["name"]}, refusal)
            if entry.get("status") or entry.get("end"):
                self._do({key: value for key, value in entry.items() if key != "name"})
            return
        self._note(entry, refusal)

    def _create(self, entry: Entry, tags: dict[str, str], name: str) -> str:
        local: str = entry["run"]
        if local not in self.ids:
            self.ids[local] = self._backend.create({**entry, "tags": self._with_parent(tags), "name": name})
            self.on_created(local, self.ids[local])
        return self.ids[local]

    def _with_store_ids(self, batch: Batch) -> Batch:
        if not self.ids:
            return batch
        run_id = self.ids.get(batch.run_id, batch.run_id)
        return replace(batch, run_id=run_id, tags=self._with_parent(batch.tags))

    def _with_parent(self, tags: dict[str, str]) -> dict[str, str]:
        parent = self.ids.get(tags.get(PARENT_TAG, ""))
        return tags if parent is None else {**tags, PARENT_TAG: parent}

    def _note(self, what: Entry, refusal: Refused, count: int = 1) -> None:
        reason = mask(str(refusal))
        is_first = type(refusal) not in self._told
        self._told.add(type(refusal))
        self.refused += count
        path = self._state / refused.FILE
        if fault := refused.note(self._state, {**what, "reason": reason}):
            reason = f"{reason} (which could not be recorded: {fault})"
        if is_first and isinstance(refusal, RefusedOnTheWay):
            text = (
                "a proxy or firewall in front of the MLflow store blocks an item of {}, but not "
                "others: {}. The item is recorded in {}, and the items after it are delivered"
            )
        else:
            text = "the MLflow store rejected an item of {}: {}; see {}"
        if is_first:
            owner = "a trace" if what.get("op") in trace_entries.OPS else f"run {what.get('run')}"
            self._report(str(what.get("run", "")), text.format(owner, reason, path))


def _requests(found: Iterable[Entry]) -> Iterator[Batch | Entry]:
    """Group entries into batches, one request each; any other entry of a run follows the batch before it."""
    batches: dict[str, Batch] = {}
    of_traces: list[Entry] = []
    for entry in found:
        operation = entry["op"]
        if operation in NOTES:
            continue
        if operation in trace_entries.OPS:
            of_traces.append(entry)
            continue
        run_id = entry.get("run", "")
        batch = batches.get(run_id)
        if operation not in ("metrics", "params", "tags"):
            if batch is not None:
                yield batches.pop(run_id)
            yield entry
            continue
        if batch is not None and operation == "metrics" and len(batch) + len(entry["values"]) <= MAX_METRICS:
            batch.metrics += _metrics(entry)  # the fast path: nearly all entries are metrics
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
    yield from trace_entries.requests(of_traces)


def _parts(entry: Entry) -> Iterator[Batch]:
    run_id = entry["run"]
    if entry["op"] == "metrics":
        metrics = _metrics(entry)
        for start in range(0, len(metrics), MAX_METRICS):
            yield Batch(run_id, metrics=metrics[start : start + MAX_METRICS])
        return
    items = list(entry["values"].items())
    for start in range(0, len(items), MAX_PARAMS_OR_TAGS):
        some = dict(items[start : start + MAX_PARAMS_OR_TAGS])
        yield Batch(run_id, params=some) if entry["op"] == "params" else Batch(run_id, tags=some)


def _metrics(entry: Entry) -> list[dict[str, object]]:
    timestamp, step = entry["t"], entry["step"]
    found: list[dict[str, object]] = [
        {"key": key, "value": value, "timestamp": timestamp, "step": step} for key, value in records.values_of(entry)
    ]
    for name, short in _EXTRAS if len(entry) > _PLAIN else ():
        if short in entry:
            for metric in found:
                metric[name] = entry[short]
    return found


def _fits(batch: Batch, part: Batch) -> bool:
    return (
        len(batch) + len(part) <= MAX_ITEMS
        and len(batch.params) + len(part.params) <= MAX_PARAMS_OR_TAGS
        and len(batch.tags) + len(part.tags) <= MAX_PARAMS_OR_TAGS
        and not part.params.keys() & batch.params.keys()  # the store rejects a batch with a repeated parameter
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
