"""Copy runs, traces and registered models from one MLflow store to another: work offline, then sync.

Three tags describe the copy of a run:

- `autogen_team.copied_from`, set when the copy is created, is the id of the run in the source;
- `autogen_team.copied`, set last, is the end time of that run. Until then the copy is RUNNING. A copy without this tag
  is incomplete, and is continued the next time. If the source run was resumed and now ends at another time, its copy is
  brought up to date;
- `autogen_team.copied_content` is a digest of the source run. If the digest has changed since, though the end time has
  not, the copy is brought up to date too.
"""

from __future__ import annotations

import dataclasses
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Run, RunInfo, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils import mlflow_tags

from autogen_team._process import saved
from autogen_team._redact import mask, mask_url
from autogen_team._ship import mlflow_names, server_probe, uris
from autogen_team._ship.error_text import first_line
from autogen_team._sync import listing
from autogen_team._sync.contents import COPIED, Contents
from autogen_team._sync.files import Findings, Store, Tell, pages
from autogen_team._sync.models import COPIED_CONTENT, COPIED_FROM, Models
from autogen_team._sync.outcomes import Counts, Happened, Kind, Outcome, Progress, Registered
from autogen_team._sync.registry import Registry
from autogen_team._sync.traces import Traces
from autogen_team.errors import ConfigurationError, TrackingUnavailableError

__all__ = ["COPIED", "COPIED_FROM", "Counts", "Happened", "Outcome", "Progress", "Registered", "copy"]

_ARRIVED = frozenset({"copied", "continued", "unchanged", "would copy"})
_ENDED = frozenset({"FINISHED", "FAILED", "KILLED"})
_EXPERIMENT_ELSEWHERE = frozenset({mlflow_tags.MLFLOW_ARTIFACT_LOCATION})
_ENVIRONMENT = {
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


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
    registry: str | None = None,
    dry_run: bool = False,
    delete: bool = False,
    timeout: float = 5.0,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Iterator[Outcome | Registered]:
    """Copy everything in one store to another; yield the outcome of each run, then of each registered model.

    Registered models go to the store `registry`, by default the target. A copy may be interrupted at any moment. The
    next call continues it, and sends nothing twice. With `dry_run`, nothing is written to the target. With `delete`,
    each run is deleted in the source once it, its traces and the versions registered from it are copied. Traces and
    versions stay, because MLflow could not restore them. The stores must answer within `timeout` seconds at the start,
    and the target again after each fault.

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
    registry = uris.absolute(registry) if registry else target
    for uri in dict.fromkeys((source, target, registry)):
        server_probe.check(uri, timeout)
    with _environment():
        options = _Options(dry_run, delete and not dry_run, timeout, progress)
        to = Store(target, None) if dry_run and is_missing else _open(target, registry)
        yield from _Copying(_open(source, read_only=True), to, options, is_missing=is_missing).outcomes()


def _identity(uri: str) -> Path | str:
    place = uris.local_place(uri)
    return place.resolve() if place else uri.rstrip("/")


def _is_store(uri: str) -> bool | None:
    """Return whether this is an MLflow store; None if the place is missing or empty, so MLflow would create a store."""
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


def _open(uri: str, registry: str | None = None, *, read_only: bool = False) -> Store:
    place = uris.local_place(uri)
    store = Store(uri, place.parent if place and not uris.is_folder(uri) else place, registry)
    try:
        with saved.quiet("alembic"):
            if read_only:
                listing.first_page(store)
            else:
                store.client.search_experiments(max_results=1)
    except Exception as error:  # not chained: the causes show the URI with its password
        raise ConfigurationError(f"the store {mask_url(uri)} cannot be opened: {mask(first_line(error))}") from None
    return store


@contextmanager
def _environment() -> Iterator[None]:
    with ExitStack() as undo:
        undo.callback(saved.keep_environment(*_ENVIRONMENT))
        os.environ.update(_ENVIRONMENT)
        yield


class _SkippedError(Exception):
    """A run cannot be copied; the message says why."""


class _HeldError(_SkippedError):
    """The target holds the run itself, not a copy of it."""

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"the target itself has the run {run_id}: the run came from there, or the target is the same store at "
            "another address, or a copy of its database"
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
        self._experiment_ids: dict[str, str] = {}
        """Ids of the target's experiments, by the source's ids."""
        self._copy_ids: dict[str, str] = {}
        """Ids of the copies, by the ids of the source's runs."""
        self._begun: set[str] = set()
        """Ids of the copies that this pass has created."""
        self._arrived: set[str] = set()
        """Ids of the runs whose copies are complete; in a dry run, of those that would be copied."""
        self._partial: set[str] = set()
        """Ids of the runs with parts that stay only in the source."""
        owner, runs = self._copy_id, self._infos
        self._models = Models(source, target, self._make_experiment)
        self._registry = Registry(
            source, target, self._models, owner=owner, runs=runs, arrived=self._arrived, check=self._check
        )
        relink = self._registry.relink
        self._traces = Traces(source, target, self._models, self._make_experiment, relink)
        self._contents = Contents(
            source, target, self._models, self._traces, relink=relink, owner=owner, runs=runs, begun=self._begun
        )

    def outcomes(self) -> Iterator[Outcome | Registered]:
        """Copy the runs; yield the outcome of each, then those of the registered models."""
        self._learn()
        waiting: list[Outcome] = []
        """Runs that are deleted only after the versions registered from them are copied."""
        prompts = self._copy_registered("prompt")  # first, because runs and traces name their versions
        for done, info in enumerate(self._infos.values()):
            outcome = self._outcome(info, partial(self._tell, done, info))
            if self._options.delete and self._registry.has_versions_of(info.run_id):
                waiting.append(outcome)
            else:
                yield self._without_original(outcome)
        for experiment in self._experiments.values():
            yield from self._other_traces(experiment)
        models = self._copy_registered("model")
        yield from map(self._without_original, waiting)
        for one in self._listing.broken:
            yield Outcome(one.experiment, one.run_name, one.run_id, None, "failed", reason=one.reason)
        yield from self._never_copied()
        yield from (*models, *prompts)

    def _copy_registered(self, kind: Kind) -> list[Registered]:
        options, tell = self._options, self._tell_of_registry
        return list(self._registry.copy(kind, dry_run=options.dry_run, is_missing=self._is_missing, tell=tell))

    def _never_copied(self) -> Iterator[Outcome]:
        if uris.is_folder(self._source.uri):
            return
        try:
            found = [one.name for one in pages(self._source.client.search_datasets, list(self._experiments))]
        except Exception:  # an older server
            return
        if found:
            reason = f"not copied: evaluation datasets ({', '.join(found)}); create them there from their data"
            yield Outcome("", "", "", None, "skipped", reason=reason)

    def _learn(self) -> None:
        listing = self._listing
        for experiment in listing.experiments():
            self._experiments[experiment.experiment_id] = experiment
            self._infos.update((run.info.run_id, run.info) for run in listing.runs(experiment))
        listing.attempt("models", partial(self._models.learn, list(self._experiments)))
        listing.attempt("traces", partial(self._traces.learn, list(self._experiments)))
        if mlflow_names.REGISTERED.works():
            listing.attempt("registered models", self._registry.learn)

    def _tell(self, done: int, info: RunInfo, part: str) -> None:
        self._options.progress(Progress(done, len(self._infos), info.run_name or "", part))

    def _tell_of_registry(self, part: str) -> None:
        self._options.progress(Progress(len(self._infos), len(self._infos), "", part))

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
        except _SkippedError as error:
            findings.notes.append(str(error))
        except TrackingUnavailableError:
            raise
        except Exception as error:
            self._check()
            happened = "failed"
            findings.faults.append(mask(first_line(error)))
        if happened in _ARRIVED:
            self._arrived.add(info.run_id)
        if findings.left:
            self._partial.add(info.run_id)
        return Outcome(experiment, info.run_name or "", info.run_id, copy_id, happened, counts, findings.reason())

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
            _SkippedError: the copy or its experiment was deleted on the target.
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
            raise _SkippedError(
                f"its copy {found[0].info.run_id} was deleted on the target: restore it there, or remove it with "
                "mlflow gc to copy the run again"
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
        except _SkippedError as error:
            raise _SkippedError(f"its parent {parent_id} is not copied: {error}") from None
        if copy_id is None and not self._options.dry_run:
            findings.notes.append(f"its parent {parent_id} is gone, so the copy has none")
        return copy_id

    def _copy_id(self, run_id: str) -> str | None:
        """Return the id of the copy of another run; create the copy if it is missing.

        If the target holds the run itself, return its id. Return None if the run no longer exists, or was deleted and
        has no copy. In a dry run, return None instead of creating a copy.
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
                raise _SkippedError(
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

    def _without_original(self, outcome: Outcome) -> Outcome:
        """Delete a run in the source, if the options say so and the whole run is copied."""
        run_id, reasons = outcome.source_id, [outcome.reason] if outcome.reason else []
        if not self._options.delete or run_id not in self._arrived:
            return outcome
        is_deleted = False
        if run_id in self._partial or not self._registry.has_copied_all_of(run_id):
            reasons.append("not deleted, because not all of it could be copied")
        else:
            try:
                self._source.client.delete_run(run_id)
                is_deleted = True
            except Exception as error:
                reasons.append(f"not deleted: {mask(first_line(error))}")
        return dataclasses.replace(outcome, is_deleted=is_deleted, reason="; ".join(reasons) or None)

    # Traces outside of runs

    def _other_traces(self, experiment: Experiment) -> Iterator[Outcome]:
        """Copy the traces that do not belong to a copied run."""
        infos = self._traces.of_other_runs(experiment.experiment_id, self._infos.__contains__)
        if not infos:
            return
        findings = Findings(self._check)
        happened: Happened = "unchanged"
        sent = 0
        with findings.of("traces"):
            if self._options.dry_run:
                target_id = None if self._is_missing else self._find_experiment(experiment.experiment_id)
                sent = self._traces.count_missing(infos, target_id, findings)
                happened = "would copy" if sent else "unchanged"
            else:
                done = self._traces.send_others(infos, self._copy_id, findings, self._tell_of_registry)
                sent = done.new + done.changed
                happened = "unchanged" if not sent else "copied" if sent == len(infos) == done.new else "continued"
        if findings.faults:
            happened = "failed"
        elif findings.left and not sent:
            happened = "skipped"
        yield Outcome(experiment.name, "", "", None, happened, Counts(traces=sent), findings.reason())


def _get(client: MlflowClient, run_id: str) -> Run | None:
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _require_end(run: Run) -> None:
    if run.info.status not in _ENDED:
        raise _SkippedError(
            f"it is {run.info.status}: it is still being written, or its process is dead; autogen-team recover closes "
            "the run of a dead process"
        )


def _stamp(run: Run) -> str:
    return str(run.info.end_time or "unknown")
