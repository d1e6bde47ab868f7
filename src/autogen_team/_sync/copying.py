"""Copy runs from one MLflow store to another: work offline, then sync.

Three tags describe a copy:

- `autogen_team.copied_from`, set when the copy is created, is the id of the run in the source;
- `autogen_team.copied`, set last, is the end time of that run. Until then the copy is RUNNING. A copy without this tag
  is incomplete, and is continued the next time. If the source run was resumed and now ends at another time, its copy is
  brought up to date;
- `autogen_team.copied_content` is a digest of the source run. If the digest has changed since, though the end time has
  not, the copy is brought up to date too.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Run, RunInfo, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils import mlflow_tags

from autogen_team._process import saved
from autogen_team._redact import mask, mask_url
from autogen_team._ship import server_probe, uris
from autogen_team._ship.error_text import first_line
from autogen_team._sync import listing
from autogen_team._sync.contents import COPIED, COPIED_CONTENT, Contents, Counts
from autogen_team._sync.files import Findings, Store, Tell, pages
from autogen_team._sync.models import COPIED_FROM, Models
from autogen_team.errors import ConfigurationError, TrackingUnavailableError

__all__ = ["COPIED", "COPIED_FROM", "Counts", "Happened", "Outcome", "Progress", "copy"]

Happened: TypeAlias = Literal["copied", "continued", "unchanged", "would copy", "skipped", "failed"]

_ENDED = frozenset({"FINISHED", "FAILED", "KILLED"})
_EXPERIMENT_ELSEWHERE = frozenset({mlflow_tags.MLFLOW_ARTIFACT_LOCATION})
_ENVIRONMENT = {
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result for one run; without a `source_id`, `reason` is about an experiment or the whole store."""

    experiment: str
    run_name: str
    source_id: str
    target_id: str | None
    """None if there is no copy."""
    happened: Happened
    counts: Counts = field(default_factory=Counts)
    reason: str | None = None
    """Why the run, or which part of it, was not copied; without secrets."""
    is_deleted: bool = False
    """Whether the run was deleted in the source; as always in MLflow, only `mlflow gc` removes it for good."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of `copy`."""

    done: int
    """Number of runs that are done."""
    total: int
    """Number of runs to copy."""
    run_name: str
    part: str
    """Part of the run that is being sent, such as the path of an artifact; empty when the run begins."""


@dataclass(frozen=True, slots=True)
class _Options:
    dry_run: bool
    delete: bool
    timeout: float
    progress: Callable[[Progress], None]


def copy(
    source: str,
    target: str,
    *,
    dry_run: bool = False,
    delete: bool = False,
    timeout: float = 5.0,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Iterator[Outcome]:
    """Copy the runs of one store to another; yield the outcome of each run as soon as it is known.

    A copy may be interrupted at any moment. The next call continues it, and sends nothing twice. With `dry_run` nothing
    is written to the target. With `delete` each run is deleted in the source as soon as it and everything in it has
    arrived. The stores must answer within `timeout` seconds at the start, and the target again after each fault.

    Raises:
        ConfigurationError: a store cannot be used, or both are the same one. Like the next error, it is raised when the
            first outcome is requested.
        TrackingUnavailableError: a store does not answer; raised later too, if the target disappears.

    """
    source, target = uris.absolute(source), uris.absolute(target)
    if _identity(source) == _identity(target):
        raise ConfigurationError(f"the source and the target are the same store: {mask_url(source)}")
    _require_store(source, "source")
    is_missing = _is_store(target) is None
    if not is_missing:
        _require_store(target, "target")
    for uri in (source, target):
        server_probe.check(uri, timeout)
    with _environment():
        options = _Options(dry_run, delete and not dry_run, timeout, progress)
        to = Store(target, None) if dry_run and is_missing else _open(target)
        yield from _Copying(_open(source, read_only=True), to, options, is_missing=is_missing).outcomes()


def _identity(uri: str) -> Path | str:
    place = uris.local_place(uri)
    return place.resolve() if place else uri.rstrip("/")


def _is_store(uri: str) -> bool | None:
    """Return whether this is an MLflow store; None if the place is missing or empty, where MLflow would create one."""
    place = uris.local_place(uri)
    if place is None:
        return True
    if not place.exists():
        return None
    if uris.is_folder(uri):
        return place.is_dir() and (any(place.glob("*/meta.yaml")) or (False if any(place.iterdir()) else None))
    try:
        with closing(sqlite3.connect(place)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error:
        return False
    return "experiments" in tables if tables else None


def _require_store(uri: str, role: str) -> None:
    if not (found := _is_store(uri)):
        fault = "does not exist" if found is None else "is not an MLflow store"
        raise ConfigurationError(
            f"the {role} {mask_url(uri)} {fault}: use a database, such as sqlite:///mlflow.db, or a folder like mlruns"
        )


def _open(uri: str, *, read_only: bool = False) -> Store:
    place = uris.local_place(uri)
    store = Store(uri, place.parent if place and not uris.is_folder(uri) else place)
    try:
        with saved.quiet("alembic"):
            if read_only:
                listing.first_page(store)
            else:
                store.client.search_experiments(max_results=1)
    except Exception as error:  # not chained: the causes show the address with its password
        raise ConfigurationError(f"the store {mask_url(uri)} cannot be opened: {mask(first_line(error))}") from None
    return store


@contextmanager
def _environment() -> Iterator[None]:
    with ExitStack() as undo:
        undo.callback(saved.keep_environment(*_ENVIRONMENT))
        os.environ.update(_ENVIRONMENT)
        yield


class _LeftError(Exception):
    """A run cannot be copied; the message says why."""


class _HeldError(_LeftError):
    """The target holds this very run, not a copy of it."""

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"the target itself has the run {run_id}: it is where this one came from, the same store behind another "
            "address, or a copy of its database"
        )
        self.run_id = run_id


class _Copying:
    """One pass over the runs of a source, which copies them to a target."""

    def __init__(self, source: Store, target: Store, options: _Options, *, is_missing: bool) -> None:
        self._source = source
        self._target = target
        self._options = options
        self._is_missing = is_missing and options.dry_run
        """Whether this is a dry run to a target that does not exist."""
        self._listing = listing.Listing(source)
        self._experiments: dict[str, Experiment] = {}
        """Experiments of the source, by id."""
        self._infos: dict[str, RunInfo] = {}
        """Runs of the source, by id."""
        self._versions: Counter[str | None] = Counter()
        """Number of registered model versions, by run id."""
        self._experiment_ids: dict[str, str] = {}
        """Ids of the target's experiments, by the source's ids."""
        self._copy_ids: dict[str, str] = {}
        """Ids of the copies, by the ids of the source's runs."""
        self._begun: set[str] = set()
        """Ids of the copies that this pass has created."""
        self._models = Models(source, target, self._make_experiment)
        self._contents = Contents(
            source, target, self._models, owner=self._copy_id, runs=self._infos, begun=self._begun
        )

    def outcomes(self) -> Iterator[Outcome]:
        """Copy the runs; yield the outcome of each, then what cannot be copied."""
        self._learn()
        for done, info in enumerate(self._infos.values()):
            yield self._outcome(info, partial(self._tell, done, info))
        for one in self._listing.broken:
            yield Outcome(one.experiment, one.run_name, one.run_id, None, "failed", reason=one.reason)
        yield from self._never_copied()

    def _learn(self) -> None:
        listing = self._listing
        for experiment in listing.experiments():
            self._experiments[experiment.experiment_id] = experiment
            self._infos.update((run.info.run_id, run.info) for run in listing.runs(experiment))
        listing.attempt("models", partial(self._models.learn, list(self._experiments)))
        listing.attempt("registered models", self._count_versions)

    def _count_versions(self) -> None:
        self._versions.update(version.run_id for version in pages(self._source.client.search_model_versions))

    def _tell(self, done: int, info: RunInfo, part: str) -> None:
        self._options.progress(Progress(done, len(self._infos), info.run_name or "", part))

    def _check(self) -> None:
        server_probe.check(self._target.uri, self._options.timeout)

    def _outcome(self, info: RunInfo, tell: Tell) -> Outcome:
        experiment = self._experiments[info.experiment_id].name
        findings = Findings(self._check)
        copy_id, counts = None, Counts()
        happened: Happened = "skipped"
        tell("")
        try:
            copy_id, happened, counts = self._bring(info.run_id, findings, tell)
        except _LeftError as left:
            findings.notes.append(str(left))
        except TrackingUnavailableError:
            raise
        except Exception as error:
            self._check()
            happened = "failed"
            findings.faults.append(mask(first_line(error)))
        is_deleted = happened in {"copied", "continued", "unchanged"} and self._options.delete
        is_deleted = is_deleted and self._delete(info, findings)
        name = info.run_name or ""
        return Outcome(experiment, name, info.run_id, copy_id, happened, counts, findings.reason(), is_deleted)

    def _bring(self, run_id: str, findings: Findings, tell: Tell) -> tuple[str | None, Happened, Counts]:
        run = self._source.client.get_run(run_id)
        _require_end(run)
        found = self._find(run)
        is_there = found is not None and found.data.tags.get(COPIED) == _stamp(run)
        is_checked = is_there and not self._options.delete
        content = self._contents.digest(run) if is_checked or not self._options.dry_run else ""
        if found and is_checked and found.data.tags.get(COPIED_CONTENT) == content:
            return found.info.run_id, "unchanged", Counts()
        if self._options.dry_run:
            if found is None:
                self._parent_id(run, findings)  # only to see whether the parent would prevent the copy
            return found.info.run_id if found else None, "would copy", self._contents.count(run, findings)
        copy = self._reopen(run, found) if found else self._begin(run, findings)
        copy_id = self._copy_ids[run_id] = copy.info.run_id
        counts = self._contents.send(run, copy, findings, tell)
        if findings.faults:
            return copy_id, "failed", counts
        self._end(run, copy_id, content)
        return copy_id, "copied" if copy_id in self._begun else "continued", counts

    # Find, begin and end the copy of a run.

    def _find(self, run: Run) -> Run | None:
        """Return the copy of a run on the target; None if there is none.

        Raises:
            _LeftError: the copy or its experiment was deleted on the target.
            _HeldError: the target holds the run itself.

        """
        if self._is_missing:
            return None
        client, run_id = self._target.client, run.info.run_id
        experiment_id = self._find_experiment(run.info.experiment_id)
        wanted = f"tags.`{COPIED_FROM}` = '{run_id}'"
        found = client.search_runs([experiment_id], wanted, ViewType.ALL) if experiment_id else []
        active = [copy for copy in found if copy.info.lifecycle_stage == LifecycleStage.ACTIVE]
        if active:
            return max(active, key=lambda copy: COPIED in copy.data.tags)
        if found:
            raise _LeftError(
                f"its copy {found[0].info.run_id} was deleted on the target: restore it there, or remove it for good "
                "with mlflow gc to copy it again"
            )
        for same in filter(None, (run_id, run.data.tags.get(COPIED_FROM))):
            if _get(client, same):
                raise _HeldError(same)
        return None

    def _begin(self, run: Run, findings: Findings) -> Run:
        parent_id = self._parent_id(run, findings)
        tags = {COPIED_FROM: run.info.run_id}
        if mlflow_tags.MLFLOW_USER in run.data.tags:  # MLflow takes the user of the run from this tag
            tags[mlflow_tags.MLFLOW_USER] = run.data.tags[mlflow_tags.MLFLOW_USER]
        if parent_id:
            tags[mlflow_tags.MLFLOW_PARENT_RUN_ID] = parent_id
        experiment_id = self._make_experiment(run.info.experiment_id)
        copy = self._target.client.create_run(experiment_id, run.info.start_time, tags, run.info.run_name)
        self._begun.add(copy.info.run_id)
        return copy

    def _reopen(self, run: Run, copy: Run) -> Run:
        client, copy_id = self._target.client, copy.info.run_id
        if copy.info.status != "RUNNING" or copy.info.run_name != run.info.run_name:
            client.update_run(copy_id, "RUNNING", run.info.run_name)
        return client.get_run(copy_id)  # a search does not return the input models

    def _end(self, run: Run, copy_id: str, content: str) -> None:
        client = self._target.client
        if run.info.end_time:
            client.set_terminated(copy_id, run.info.status, run.info.end_time)
        else:
            client.update_run(copy_id, run.info.status)
        client.log_batch(copy_id, tags=[RunTag(COPIED_CONTENT, content)])
        client.set_tag(copy_id, COPIED, _stamp(run))

    def _parent_id(self, run: Run, findings: Findings) -> str | None:
        parent_id = run.data.tags.get(mlflow_tags.MLFLOW_PARENT_RUN_ID)
        if not parent_id:
            return None
        try:
            copy_id = self._copy_id(parent_id)
        except _LeftError as left:
            raise _LeftError(f"its parent {parent_id} is not copied: {left}") from None
        if copy_id is None and not self._options.dry_run:
            findings.notes.append(f"its parent {parent_id} is gone, so the copy has none")
        return copy_id

    def _copy_id(self, run_id: str) -> str | None:
        """Return the id of the copy of another run, which is created if need be.

        If the target holds the run itself, return its id. If the run is gone for good, or was deleted and has no copy,
        return None. Return None, too, if a dry run would have to create the copy.
        """
        if run_id not in self._copy_ids:
            run = _get(self._source.client, run_id)
            if run is None:
                return None
            try:
                found = self._find(run)
            except _HeldError as held:
                return held.run_id
            if found is None:
                if run_id not in self._infos:
                    return None
                _require_end(run)
                if self._options.dry_run:
                    return None
            copy = found or self._begin(run, Findings(self._check))
            self._copy_ids[run_id] = copy.info.run_id
        return self._copy_ids[run_id]

    def _find_experiment(self, experiment_id: str) -> str | None:
        if experiment_id not in self._experiment_ids:
            name = self._named(experiment_id).name
            found = self._target.client.get_experiment_by_name(name)
            if found is None:
                return None
            if found.lifecycle_stage != LifecycleStage.ACTIVE:
                raise _LeftError(
                    f"the experiment {name!r} was deleted on the target: restore it there (mlflow experiments restore)"
                )
            self._experiment_ids[experiment_id] = found.experiment_id
        return self._experiment_ids[experiment_id]

    def _make_experiment(self, experiment_id: str) -> str:
        found = self._find_experiment(experiment_id)
        if found is None:
            experiment = self._named(experiment_id)
            tags = {key: value for key, value in experiment.tags.items() if key not in _EXPERIMENT_ELSEWHERE}
            found = self._target.client.create_experiment(experiment.name, tags=tags)
            self._experiment_ids[experiment_id] = found
        return found

    def _named(self, experiment_id: str) -> Experiment:
        return self._experiments.get(experiment_id) or self._source.client.get_experiment(experiment_id)

    # Requests to the source.

    def _delete(self, info: RunInfo, findings: Findings) -> bool:
        client, run_id = self._source.client, info.run_id
        try:
            kept = _several(self._versions[run_id], "registered model version")
            if client.search_traces(locations=[info.experiment_id], run_id=run_id, max_results=1, include_spans=False):
                kept.append("traces")
            if kept:
                findings.notes.append(f"not deleted, because it has what is never copied: {', '.join(kept)}")
                return False
            client.delete_run(run_id)
        except Exception as error:
            findings.notes.append(f"not deleted: {mask(first_line(error))}")
            return False
        return True

    def _never_copied(self) -> Iterator[Outcome]:
        versions: Counter[str] = Counter()
        for run_id, count in self._versions.items():
            versions[self._infos[run_id].experiment_id if run_id in self._infos else ""] += count
        for experiment_id, experiment in self._experiments.items():
            findings = Findings(self._check)
            left = _several(versions.pop(experiment_id, 0), "registered model version")
            with findings.of("traces"):
                search = self._source.client.search_traces
                traces = pages(search, locations=[experiment_id], max_results=500, include_spans=False)
                left += _several(sum(1 for _ in traces), "trace")
            yield from _rest(experiment.name, left, findings)
        yield from _rest("", _several(versions.total(), "registered model version"), Findings(self._check))


def _rest(experiment: str, left: list[str], findings: Findings) -> Iterator[Outcome]:
    if left:
        findings.notes.append(f"never copied: {', '.join(left)}")
    if reason := findings.reason():
        yield Outcome(experiment, "", "", None, "skipped", reason=reason)


def _get(client: MlflowClient, run_id: str) -> Run | None:
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _require_end(run: Run) -> None:
    if run.info.status not in _ENDED:
        raise _LeftError(
            f"it is {run.info.status}: still being written, or left behind by a dead process; then "
            "autogen-team recover closes it"
        )


def _stamp(run: Run) -> str:
    return str(run.info.end_time or "unknown")


def _several(count: int, noun: str) -> list[str]:
    return [f"{count} {noun}{'' if count == 1 else 's'}"] if count else []
