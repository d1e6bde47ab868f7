"""Copy the content of runs from one MLflow store to another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Iterator
from functools import partial
from typing import Any, Literal

from mlflow.entities import DatasetInput, LoggedModelInput, LoggedModelOutput, Metric, Param, Run, RunTag
from mlflow.tracing.constant import TraceTagKey
from mlflow.utils import mlflow_tags, validation

from autogen_team._ship import mlflow_backend, sql_bulk
from autogen_team._sync.files import Findings, Store, Tell, count_files, describe_files, send_files
from autogen_team._sync.models import COPIED_CONTENT, COPIED_FROM, Models, Owner, Point, as_point, links
from autogen_team._sync.outcomes import Counts
from autogen_team._sync.traces import Traces

COPIED = "autogen_team.copied"
"""Tag of a complete copy: the end of the run in the source, in milliseconds since the epoch, or `unknown`."""

_SET_BY_COPY = frozenset(
    {COPIED_FROM, COPIED, COPIED_CONTENT, mlflow_tags.MLFLOW_PARENT_RUN_ID, mlflow_tags.MLFLOW_RUN_NAME}
)
"""Tags that a copy sets when it begins or ends. If the source is the target of another copy, it has its own values."""
_LARGEST_REQUEST = int(0.9 * validation.MAX_BATCH_LOG_REQUEST_SIZE)


class Contents:
    """Counts, digests and sends the content of the source's runs."""

    def __init__(
        self,
        source: Store,
        target: Store,
        models: Models,
        traces: Traces,
        *,
        relink: Callable[[str], str],
        owner: Owner,
        runs: Container[str | None],
        begun: Container[str],
    ) -> None:
        self._source = source
        self._target = target
        self._models = models
        self._traces = traces
        self._relink = relink
        """The method `Registry.relink`."""
        self._owner = owner
        self._runs = runs
        """Ids of all runs to copy."""
        self._begun = begun
        """Ids of the copies that this pass has created; they are empty, so they are not read."""
        self._counted: dict[str, int] | None = None
        """Number of metric points by run id, if the source is a database."""
        self._has_counted = False

    def count(self, run: Run, findings: Findings) -> Counts:
        """Return the counts of a run's content."""
        client, run_id = self._source.client, run.info.run_id
        models = self._models.made_by(run_id)
        places = [run.info.artifact_uri or "", *(model.artifact_location for model in models)]
        return Counts(
            metrics=sum(len(client.get_metric_history(run_id, key)) for key in run.data.metrics),
            params=len(run.data.params),
            tags=len(run.data.tags),
            datasets=len(_datasets(run)),
            artifacts=sum(count_files(self._source.files(place), findings) for place in places),
            models=len(models),
            traces=len(self._traces.made_by(run_id)),
        )

    def _describe_files(self, place: str) -> object:
        try:
            return describe_files(self._source.files(place))
        except Exception:  # reported when the files are copied, after the rest of the run
            return "the files cannot be listed"

    def digest(self, run: Run) -> str:
        """Return a digest that changes when anything is added to a run, without reading whole metrics or files.

        On a server, only the latest value of each metric counts, because each history would take a request.
        """
        run_id = run.info.run_id
        models = sorted(self._models.made_by(run_id), key=lambda model: model.model_id)
        places = [run.info.artifact_uri or "", *(model.artifact_location for model in models)]
        found = (
            sorted(run.data.params.items()),
            sorted(run.data.tags.items()),
            sorted((key, repr(value)) for key, value in run.data.metrics.items()),
            self._points(run),
            sorted((used.dataset.name, used.dataset.digest) for used in _datasets(run)),
            sorted((type(link).__name__, link.model_id) for link in links(run)),
            [
                (
                    model.model_id,
                    str(model.status),
                    sorted(model.params.items()),
                    sorted(model.tags.items()),
                    len(model.metrics or []),
                )
                for model in models
            ],
            [self._describe_files(place) for place in places],
            *self._traces.describe(run),
        )
        return hashlib.sha256(repr(found).encode(errors="surrogatepass")).hexdigest()[:16]

    def _points(self, run: Run) -> int:
        """Return the number of metric points of a run; 0 if the source is a server, because a count takes requests."""
        if self._source.folder is None:
            return 0
        if not self._has_counted:
            self._has_counted = True
            self._counted = sql_bulk.count_points(mlflow_backend.plain_store(self._source.uri))
        if self._counted is not None:
            return self._counted.get(run.info.run_id, 0)
        history = self._source.client.get_metric_history
        return sum(len(history(run.info.run_id, key)) for key in run.data.metrics)

    def send(self, run: Run, copy: Run, findings: Findings, tell: Tell) -> Counts:
        """Send the content that the copy lacks, and return its counts."""
        copy_id, there = copy.info.run_id, copy.data
        send = partial(self._send, copy_id, findings)
        params = send("params", (Param(*item) for item in run.data.params.items() if item[0] not in there.params))
        tags = send("tags", (RunTag(*item) for item in self._tags(run, copy_id) if there.tags.get(item[0]) != item[1]))
        datasets = self._send_datasets(run, copy, findings)
        tell("metrics")
        metrics = send("metrics", self._metrics(run, copy_id, findings))
        artifacts = self._send_files(run, copy, findings, tell) + self._send_models(run, findings, tell)
        self._link_models(run, copy, findings)
        traces = self._traces.send_of(run, copy, self._owner, findings, tell)
        return Counts(metrics, params, tags, datasets, artifacts, len(self._models.made_by(run.info.run_id)), traces)

    def _send(
        self,
        copy_id: str,
        findings: Findings,
        kind: Literal["metrics", "params", "tags"],
        entities: Iterable[Metric | Param | RunTag],
    ) -> int:
        sent = 0
        most = validation.MAX_METRICS_PER_BATCH if kind == "metrics" else validation.MAX_PARAMS_TAGS_PER_BATCH
        for batch in _batches(entities, most):
            with findings.of(kind):
                self._target.client.log_batch(copy_id, **dict[str, Any]({kind: batch}))
                sent += len(batch)
        return sent

    def _tags(self, run: Run, copy_id: str) -> Iterator[tuple[str, str]]:
        for key, value in run.data.tags.items():
            if key == mlflow_tags.MLFLOW_LOGGED_MODELS:
                yield key, value.replace(run.info.run_id, copy_id)
            elif key == TraceTagKey.LINKED_PROMPTS:  # runs have this tag too
                yield key, self._relink(value)
            elif key not in _SET_BY_COPY:
                yield key, value

    def _metrics(self, run: Run, copy_id: str, findings: Findings) -> Iterator[Metric]:
        """Yield the points that are missing in the copy of the run, or in the copy of the model that they measure."""
        run_id = run.info.run_id
        about_models = self._models.measured_by(run_id, self._owner, findings)
        for key in run.data.metrics:
            points: list[Metric] = []
            there: set[Point] = set()
            with findings.of(f"metric {key}"):
                if copy_id not in self._begun:
                    there.update(map(as_point, self._target.client.get_metric_history(copy_id, key)))
                points = self._source.client.get_metric_history(run_id, key)
            for point in points:
                known = about_models.pop(as_point(point, nan=0.0)[:3], [])
                for model_id, metric in known:
                    dataset = metric.dataset_name, metric.dataset_digest
                    about = Metric(key, point.value, point.timestamp, metric.step, model_id, *dataset)
                    there.add(as_point(about))
                    yield about
                # The file store keeps the step of a metric with a dataset for the model only; the run's step is 0.
                is_the_same = known and point.dataset_name is not None
                if not is_the_same and as_point(point) not in there:
                    there.add(as_point(point))
                    yield point

    def _send_datasets(self, run: Run, copy: Run, findings: Findings) -> int:
        sent = 0
        there = {(used.dataset.name, used.dataset.digest) for used in _datasets(copy)}
        for used in _datasets(run):
            if (used.dataset.name, used.dataset.digest) not in there:
                with findings.of(f"dataset {used.dataset.name}"):
                    self._target.client.log_inputs(copy.info.run_id, [used])
                    sent += 1
        return sent

    def _send_files(self, run: Run, copy: Run, findings: Findings, tell: Tell) -> int:
        here, there = run.info.artifact_uri or "", copy.info.artifact_uri or ""
        with findings.of("artifacts"):
            return send_files(
                self._source.files(here),
                self._target.files(there),
                renamed={here: there, run.info.run_id: copy.info.run_id},
                since=_since(copy),
                findings=findings,
                tell=tell,
            )
        return 0

    def _send_models(self, run: Run, findings: Findings, tell: Tell) -> int:
        sent = 0
        for model in self._models.used_by(run):
            # A model whose run is not copied, or that no run created, is sent with the runs that use it.
            if model.source_run_id == run.info.run_id or model.source_run_id not in self._runs:
                with findings.of(f"model {model.name}"):
                    sent += self._models.send(model, self._owner, findings, tell)
        return sent

    def _link_models(self, run: Run, copy: Run, findings: Findings) -> None:
        client, copy_id = self._target.client, copy.info.run_id
        # MLflow refuses to link a model a second time.
        there = {(type(link), link.model_id) for link in links(copy)}
        for link in links(run):
            model = self._models.get(link.model_id)
            if model is None:
                findings.notes.append(f"the linked model {link.model_id} is gone")
                continue
            with findings.of(f"link to the model {model.name}"):
                model_id = self._models.copy(model, self._owner).model_id
                if (type(link), model_id) in there:
                    continue
                if isinstance(link, LoggedModelOutput):
                    client.log_outputs(copy_id, [LoggedModelOutput(model_id, link.step)])
                else:
                    client.log_inputs(copy_id, models=[LoggedModelInput(model_id)])


def _since(copy: Run) -> float | None:
    """Return the end of the run at its last complete copy, in seconds since the epoch; None without such a copy."""
    stamp = copy.data.tags.get(COPIED, "")
    return int(stamp) / 1000 if stamp.isdecimal() else None


def _datasets(run: Run) -> list[DatasetInput]:
    return run.inputs.dataset_inputs if run.inputs else []


def _batches(entities: Iterable[Metric | Param | RunTag], most: int) -> Iterator[list[Any]]:
    """Yield batches that MLflow's servers accept: at most `most` entities and `_LARGEST_REQUEST` bytes each."""
    batch: list[Any] = []
    size = 0
    for entity in entities:
        weight = len(json.dumps(dict(entity)))
        if batch and (len(batch) == most or size + weight > _LARGEST_REQUEST):
            yield batch
            batch, size = [], 0
        batch.append(entity)
        size += weight
    if batch:
        yield batch
