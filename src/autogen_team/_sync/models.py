"""Copy logged models from one MLflow store to another."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import TypeAlias

from mlflow.entities import LoggedModel, LoggedModelInput, LoggedModelOutput, Metric, Run
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from autogen_team._sync.files import Findings, Store, Tell, pages, send_files

COPIED_FROM = "autogen_team.copied_from"
"""Tag of a copy: the id of its original in the source."""
COPIED_CONTENT = "autogen_team.copied_content"
"""Tag of a complete copy: a digest of its original at that time."""

Point: TypeAlias = tuple[str, int, float | str, int]
Moment: TypeAlias = tuple[str, int, float | str]
Owner: TypeAlias = Callable[[str], str | None]

_LARGEST = sys.float_info.max


class Models:
    """The logged models of the source, and their copies on the target.

    The `owner` argument of the methods returns the id of a run's copy, and creates a missing copy. It returns None if
    the run no longer exists.
    """

    def __init__(self, source: Store, target: Store, experiment: Callable[[str], str]) -> None:
        self._source = source
        self._target = target
        self._experiment = experiment
        """Maps the id of an experiment in the source to that on the target, where it creates a missing experiment."""
        self._known: dict[str, LoggedModel] = {}
        self._made_by: defaultdict[str | None, list[LoggedModel]] = defaultdict(list)
        self._measured_by: defaultdict[str | None, list[tuple[LoggedModel, Metric]]] = defaultdict(list)
        self._copies: dict[str, LoggedModel] = {}

    def learn(self, experiment_ids: list[str]) -> None:
        """Read the logged models of these experiments."""
        for model in pages(self._source.client.search_logged_models, experiment_ids):
            self._known[model.model_id] = model
            self._made_by[model.source_run_id].append(model)
            for metric in model.metrics or []:
                self._measured_by[metric.run_id].append((model, metric))

    def made_by(self, run_id: str | None) -> list[LoggedModel]:
        """Return the models that a run created; for None, those that no run created."""
        return self._made_by[run_id]

    def get(self, model_id: str) -> LoggedModel | None:
        """Return a model by its id; None if it is deleted."""
        return self._known.get(model_id)

    def used_by(self, run: Run) -> list[LoggedModel]:
        """Return the models that a run is linked to, has measured or has created."""
        linked = [self._known.get(link.model_id) for link in links(run)]
        measured = [model for model, _ in self._measured_by[run.info.run_id]]
        made = self._made_by[run.info.run_id]
        return list({model.model_id: model for model in (*linked, *measured, *made) if model}.values())

    def measured_by(self, run_id: str, owner: Owner, findings: Findings) -> dict[Moment, list[tuple[str, Metric]]]:
        """Return the metrics of models that the run logged and the copies lack, each with the id of the copy."""
        missing: defaultdict[Moment, list[tuple[str, Metric]]] = defaultdict(list)
        there: dict[str, set[Point]] = {}
        for model, metric in self._measured_by[run_id]:
            with findings.of(f"metric {metric.key} of the model {model.name}"):
                copy = self.copy(model, owner)
                if copy.model_id not in there:
                    copy_id = owner(run_id)
                    measured = [known for known in copy.metrics or [] if known.run_id == copy_id]
                    there[copy.model_id] = {as_point(known, nan=0.0) for known in measured}
                point = as_point(metric, nan=0.0)
                if point not in there[copy.model_id]:
                    missing[point[:3]].append((copy.model_id, metric))
        return missing

    def send(self, model: LoggedModel, owner: Owner, findings: Findings, tell: Tell) -> int:
        """Update the copy of a model; return the number of artifacts sent."""
        copy = self.copy(model, owner)
        client, faults = self._target.client, len(findings.faults)
        params = {key: value for key, value in model.params.items() if key not in copy.params}
        if params:
            client.log_model_params(copy.model_id, params)
        tags = {key: value for key, value in _tags(model).items() if copy.tags.get(key) != value}
        if tags:
            client.set_logged_model_tags(copy.model_id, tags)
        renamed = {model.artifact_location: copy.artifact_location, model.model_id: copy.model_id}
        if model.source_run_id and copy.source_run_id:
            renamed[model.source_run_id] = copy.source_run_id
        sent = send_files(
            self._source.files(model.artifact_location),
            self._target.files(copy.artifact_location),
            renamed=renamed,
            since=None,
            findings=findings,
            tell=tell,
        )
        if model.status != copy.status and len(findings.faults) == faults:
            client.finalize_logged_model(copy.model_id, model.status)
        return sent

    def copy(self, model: LoggedModel, owner: Owner) -> LoggedModel:
        """Return the copy of a model; create it if it is missing."""
        if model.model_id not in self._copies:
            client, experiment_id = self._target.client, self._experiment(model.experiment_id)
            wanted = f"tags.`{COPIED_FROM}` = '{model.model_id}'"
            found = next(iter(client.search_logged_models([experiment_id], filter_string=wanted)), None)
            self._copies[model.model_id] = found or client.create_logged_model(
                experiment_id,
                name=model.name,
                source_run_id=owner(model.source_run_id) if model.source_run_id else None,
                tags=_tags(model),
                params=model.params,
                model_type=model.model_type,
            )
        return self._copies[model.model_id]


def _tags(model: LoggedModel) -> dict[str, str]:
    """Return the tags of the copy, without registered versions: the copy is not registered, even if the model is."""
    kept = {key: value for key, value in model.tags.items() if key != MLFLOW_MODEL_VERSIONS}
    return {**kept, COPIED_FROM: model.model_id}


def as_point(metric: Metric, *, nan: float | str = "nan") -> Point:
    """Return a key that is the same for a metric point in every store.

    NaN does not equal itself, so `nan` replaces it. Databases keep infinity as the largest number, and NaN in a metric
    of a model as 0.
    """
    value = nan if math.isnan(metric.value) else max(-_LARGEST, min(_LARGEST, metric.value))
    return metric.key, metric.timestamp, value, metric.step


def links(run: Run) -> list[LoggedModelOutput | LoggedModelInput]:
    """Return the output models of a run, then its input models."""
    outputs = run.outputs.model_outputs if run.outputs else []
    return [*outputs, *(run.inputs.model_inputs if run.inputs else [])]
