"""Copy registered models and prompts, with their versions, from one MLflow registry to another.

MLflow keeps a prompt as a registered model with a tag. A registered model is matched by its name. The target numbers
versions itself, so the copy of version 1 may be version 3 there. Two tags describe the copy of a version:

- `autogen_team.copied_from` names the version in the source, so that it is copied once;
- `autogen_team.copied_content` is a digest of its description, tags and aliases. They are copied again if it changes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry import sqlalchemy_store
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from autogen_team._process.patches import replace
from autogen_team._redact import mask_url
from autogen_team._ship import uris
from autogen_team._sync.files import Findings, Store, Tell, pages
from autogen_team._sync.models import COPIED_CONTENT, COPIED_FROM, Models, Owner
from autogen_team._sync.outcomes import Happened, Kind, Registered

_IS_PROMPT = "mlflow.prompt.is_prompt"
_PROMPTS = f"tags.`{_IS_PROMPT}` = 'true'"
_FILTERS: MappingProxyType[Kind, str | None] = MappingProxyType({"model": None, "prompt": _PROMPTS})
_OF_A_COPY = frozenset({COPIED_FROM, COPIED_CONTENT})
_LOGGED_MODEL = re.compile(r"models:/(m-[0-9a-f]+)")
_VERSION = re.compile(r"models:/([^/]+)/(\d+)")
_OF_ONE_STORE = frozenset({"", "file", "mlflow-artifacts", "runs", "models"})
"""Schemes of artifact URIs that another store cannot resolve."""


@dataclass(frozen=True, slots=True)
class _Files:
    """The artifact URI of a run or of a logged model."""

    address: str
    model: LoggedModel | None = None


class _SkippedError(Exception):
    """A version cannot be copied; the message says why."""


@dataclass(slots=True)
class _Progress:
    """State of the copy of one registered model."""

    model: RegisteredModel
    kind: Kind
    findings: Findings
    there: RegisteredModel | None = None
    """The registered model with this name on the target."""
    copies: dict[str, ModelVersion] = field(default_factory=dict)
    """Versions on the target by their identity; copies also by the identity of their original."""
    versions: dict[str, str | None] = field(default_factory=dict)
    added: int = 0
    """Number of versions that were added."""
    is_new: bool = False
    is_changed: bool = False
    is_blocked: bool = False
    """Whether the target cannot take the registered model."""


class Registry:
    """The registered models and prompts of the source, and their copies on the target."""

    def __init__(
        self,
        source: Store,
        target: Store,
        models: Models,
        *,
        owner: Owner,
        runs: Collection[str],
        arrived: Collection[str],
        check: Callable[[], None],
    ) -> None:
        """`runs` holds the ids of all runs to copy, and `arrived` the ids of the runs whose copies are complete.

        `check` raises TrackingUnavailableError if the target does not answer.
        """
        self._source = source
        self._target = target
        self._models = models
        self._owner = owner
        self._runs = runs
        self._arrived = arrived
        self._check = check
        self._registered: dict[str, tuple[RegisteredModel, Kind]] = {}
        self._versions: defaultdict[str, list[ModelVersion]] = defaultdict(list)
        self._registered_from: set[str | None] = set()
        """Ids of runs from which a version was registered."""
        self._left: set[str | None] = set()
        """Ids of runs from which a version was registered that was not copied."""
        self._prompts: dict[str, dict[str, str | None]] = {}
        """Versions on the target, by name and source version of a prompt."""

    def learn(self) -> None:
        """Read the registered models, the prompts, and their versions."""
        client = self._source.registry
        for kind, wanted in _FILTERS.items():
            self._registered |= {one.name: (one, kind) for one in pages(client.search_registered_models, wanted)}
            for version in pages(client.search_model_versions, wanted):
                self._versions[version.name].append(version)
                self._registered_from.add(version.run_id)

    def has_versions_of(self, run_id: str) -> bool:
        """Return whether a version was registered from a run."""
        return run_id in self._registered_from

    def has_copied_all_of(self, run_id: str) -> bool:
        """Return whether every version registered from a run has a copy."""
        return run_id not in self._left

    def relink(self, linked: str) -> str:
        """Return the value of a tag that lists linked prompts, with the version numbers of the target."""
        try:
            found = json.loads(linked)
            for one in found:
                number = str(one["version"])
                one["version"] = self._prompts.get(one["name"], {}).get(number) or number
            return json.dumps(found)
        except (KeyError, TypeError, ValueError):  # not in MLflow's format
            return linked

    def copy(self, kind: Kind, *, dry_run: bool, is_missing: bool, tell: Tell) -> Iterator[Registered]:
        """Copy versions in the order of their creation, and yield the result of each registered model or prompt.

        With `dry_run`, nothing is written. `is_missing` says that the target does not exist yet.
        """
        wanted = [one for one in self._registered.values() if one[1] == kind]
        found = {model.name: _Progress(model, kind, Findings(self._check)) for model, kind in wanted}
        for name, progress in found.items():
            with progress.findings.of("registered model"):
                if not is_missing:
                    self._find(progress)
                is_wanted = progress.there is not None or not self._versions[name]
                if is_wanted and not dry_run and not progress.findings.faults:
                    self._make(progress)
            progress.is_blocked = bool(progress.findings.faults)
        versions = [version for name in found for version in self._versions[name]]
        for version in sorted(versions, key=lambda one: (one.creation_timestamp, int(one.version))):
            tell(f"{version.name} version {version.version}")
            self._handle(version, found, dry_run=dry_run)
        for progress in found.values():
            if progress.there and not progress.is_blocked and not dry_run:
                with progress.findings.of("registered model"):
                    self._compare(progress)
            if kind == "prompt":
                self._prompts[progress.model.name] = progress.versions
            yield _result(progress, dry_run=dry_run)

    # Registered models

    def _find(self, progress: _Progress) -> None:
        client, name = self._target.registry, progress.model.name
        try:
            there: RegisteredModel = client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return
        progress.there = there
        if _kind(there) != progress.kind:
            progress.findings.faults.append(f"the target has a {_kind(there)} of that name: rename one of them")
            return
        quote = '"' if "'" in name else "'"
        wanted = " AND ".join(filter(None, (f"name = {quote}{name}{quote}", _FILTERS[progress.kind])))
        for version in pages(client.search_model_versions, wanted):
            for key in filter(None, (_identity(version), version.tags.get(COPIED_FROM))):
                progress.copies[key] = version

    def _make(self, progress: _Progress) -> None:
        """Create the registered model on the target, or add the tags and the description that it lacks there."""
        client, model, there = self._target.registry, progress.model, progress.there
        if there is None:
            tags = {**model.tags, _IS_PROMPT: "true"} if progress.kind == "prompt" else model.tags
            client.create_registered_model(model.name, tags, model.description or None)
            progress.is_new = True
        else:
            missing = {key: value for key, value in model.tags.items() if key not in there.tags}
            for key, value in missing.items():
                client.set_registered_model_tag(model.name, key, value)
            is_undescribed = bool(model.description and not there.description)
            if is_undescribed:
                client.update_registered_model(model.name, model.description)
            progress.is_changed |= bool(missing) or is_undescribed
        progress.there = client.get_registered_model(model.name)

    def _compare(self, progress: _Progress) -> None:
        """Record the values that the target keeps because its users have set them."""
        model, name = progress.model, progress.model.name
        there = self._target.registry.get_registered_model(name)
        differs = [f"the tag {key}" for key, value in model.tags.items() if there.tags.get(key, value) != value]
        if model.description and there.description and model.description != there.description:
            differs.append("the description")
        staged = [str(one.version) for one in self._versions[name] if (one.current_stage or "None") != "None"]
        if staged:
            progress.findings.notes.append(f"stages are not copied (versions {', '.join(staged)}): use aliases")
        for alias, number in model.aliases.items():
            copied, held = progress.versions.get(str(number)), there.aliases.get(alias)
            if copied and held and copied != str(held):
                differs.append(f"the alias {alias}, which is version {held} there")
        if differs:
            progress.findings.notes.append(f"the target keeps its own: {', '.join(differs)}")

    # Versions

    def _handle(self, version: ModelVersion, found: dict[str, _Progress], *, dry_run: bool) -> None:
        progress, number = found[version.name], str(version.version)
        faults = len(progress.findings.faults)
        with progress.findings.of(f"version {number}"):
            try:
                self._bring(version, progress, found, dry_run=dry_run)
            except _SkippedError as error:
                progress.findings.leave(f"version {number}, because {error}")
        if len(progress.findings.faults) > faults or number not in progress.versions:
            self._left.add(version.run_id)

    def _bring(self, version: ModelVersion, progress: _Progress, found: dict[str, _Progress], *, dry_run: bool) -> None:
        if progress.is_blocked:
            return
        number, identity = str(version.version), _identity(version)
        # A version that is itself a copy may be copied back to the registry of its original.
        originals = [key for key in (identity, version.tags.get(COPIED_FROM)) if key in progress.copies]
        there = progress.copies[originals[0]] if originals else None
        if there is None:
            self._require(version, progress, found)
            if dry_run:
                progress.versions[number] = None
                return
            if progress.there is None:
                self._make(progress)
            there = progress.copies[identity] = self._create(version, progress, found)
            progress.added += 1
        progress.versions[number] = str(there.version)
        content = _digest(version, _aliases(progress.model, number))
        is_copy = there.tags.get(COPIED_FROM) == identity
        if is_copy and not dry_run and there.tags.get(COPIED_CONTENT) != content:
            progress.is_changed = True
            self._describe(version, there, progress)
            self._target.registry.set_model_version_tag(version.name, str(there.version), COPIED_CONTENT, content)

    def _require(self, version: ModelVersion, progress: _Progress, found: dict[str, _Progress]) -> None:
        """Check that the source of a version has a copy: its run, logged model, version or files.

        Raises:
            _SkippedError: the source has no copy.

        """
        source, model_id = version.source or "", _model_id(version)
        if progress.kind == "prompt":
            return
        if version.run_id in self._runs and version.run_id not in self._arrived:
            raise _SkippedError(f"its run {version.run_id} is not copied completely")
        if model_id:
            model = self._models.get(model_id)
            if model is None:
                raise _SkippedError(f"its logged model {model_id} is gone")
            if model.source_run_id in self._runs and model.source_run_id not in self._arrived:
                raise _SkippedError(f"the run {model.source_run_id} of its logged model is not copied completely")
        elif parts := _VERSION.fullmatch(source):
            if parts[1] not in found or parts[2] not in found[parts[1]].versions:
                raise _SkippedError(f"its source {source} has no copy")
        elif self._files_of(version) is None and urlsplit(source).scheme in _OF_ONE_STORE:
            raise _SkippedError(f"its files at {mask_url(source)} do not belong to a copied run")

    def _create(self, version: ModelVersion, progress: _Progress, found: dict[str, _Progress]) -> ModelVersion:
        create: Callable[..., ModelVersion] = partial(
            self._target.registry.create_model_version,
            version.name,
            tags={**_own_tags(version), COPIED_FROM: _identity(version)},
            description=version.description or None,
            await_creation_for=0,
        )
        if progress.kind == "prompt":
            return create(version.source)
        if model := self._models.get(_model_id(version) or ""):
            return self._register(model, create, progress.findings)
        source, copy_id = version.source or "", self._owner(version.run_id) if version.run_id else None
        if parts := _VERSION.fullmatch(source):
            source = f"models:/{parts[1]}/{found[parts[1]].versions[parts[2]]}"
        elif files := self._files_of(version):
            if copy_id is None:
                raise _SkippedError(f"its run {version.run_id} is gone")
            source = source.replace(files.address, self._target_address(files, copy_id), 1)
        return create(source, run_id=copy_id)

    def _register(self, model: LoggedModel, create: Callable[..., ModelVersion], findings: Findings) -> ModelVersion:
        """Register the copy of a logged model as a version."""
        if model.source_run_id not in self._runs:
            faults = len(findings.faults)
            self._models.send(model, self._owner, findings, lambda _: None)
            if len(findings.faults) > faults:
                raise _SkippedError("its files did not arrive")
        copied = self._models.copy(model, self._owner)
        if uris.is_folder(self._target.uri):
            return create(copied.artifact_location, run_id=copied.source_run_id)
        # MLflow looks for the logged model in the store that the process uses.
        undo = replace(sqlalchemy_store, "MlflowClient", lambda *_: partial(MlflowClient, self._target.uri))
        try:
            there = create(f"models:/{copied.model_id}", run_id=copied.source_run_id, model_id=copied.model_id)
        finally:
            undo()
        client = self._target.client
        known = json.loads(client.get_logged_model(copied.model_id).tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
        if not any((one["name"], str(one["version"])) == (there.name, str(there.version)) for one in known):
            known.append({"name": there.name, "version": int(there.version)})
            client.set_logged_model_tags(copied.model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(known)})
        return there

    def _files_of(self, version: ModelVersion) -> _Files | None:
        """Return the artifact URI of a version's run or logged model; None if the version's files are elsewhere."""
        if not version.run_id:
            return None
        try:
            info = self._source.client.get_run(version.run_id).info
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        candidates = [_Files(f"runs:/{info.run_id}"), _Files(info.artifact_uri or "")]
        candidates += [_Files(model.artifact_location, model) for model in self._models.made_by(version.run_id)]
        return next((files for files in candidates if f"{version.source}/".startswith(f"{files.address}/")), None)

    def _target_address(self, files: _Files, copy_id: str) -> str:
        if files.model:
            return self._models.copy(files.model, self._owner).artifact_location
        if files.address.startswith("runs:/"):
            return f"runs:/{copy_id}"
        return self._target.client.get_run(copy_id).info.artifact_uri or ""

    def _describe(self, version: ModelVersion, there: ModelVersion, progress: _Progress) -> None:
        """Update description, tags and aliases of the copy of a version.

        An alias stays on its version on the target if that version is not a copy from this source.
        """
        client, name, number = self._target.registry, version.name, str(there.version)
        if (version.description or "") != (there.description or ""):
            client.update_model_version(name, number, version.description)
        for key, value in _own_tags(version).items():
            if there.tags.get(key) != value:
                client.set_model_version_tag(name, number, key, value)
        held = client.get_registered_model(name).aliases
        originals = {_identity(one) for one in self._versions[name]}
        ours = {str(one.version) for key, one in progress.copies.items() if key in originals}
        for alias in _aliases(progress.model, str(version.version)):
            if alias not in held or str(held[alias]) in ours - {number}:
                client.set_registered_model_alias(name, alias, number)


def _result(progress: _Progress, *, dry_run: bool) -> Registered:
    versions, findings = progress.versions, progress.findings
    would_copy = dry_run and (None in versions.values() or progress.there is None)
    happened: Happened = "unchanged"
    if findings.faults:
        happened = "failed"
    elif would_copy and (versions or not findings.left):
        happened = "would copy"
    elif progress.is_new or (progress.added and progress.added == len(versions)):
        happened = "copied"
    elif progress.added or progress.is_changed:
        happened = "continued"
    elif findings.left and not versions:
        happened = "skipped"
    return Registered(progress.model.name, progress.kind, happened, versions, findings.reason())


def _kind(model: RegisteredModel) -> Kind:
    # The property `tags` leaves this tag out.
    tags = model.to_proto().tags  # type: ignore[no-untyped-call]  # MLflow's
    return "prompt" if any(tag.key == _IS_PROMPT for tag in tags) else "model"


def _model_id(version: ModelVersion) -> str | None:
    found = _LOGGED_MODEL.fullmatch(version.source or "")
    return found[1] if found else getattr(version, "model_id", None)


def _identity(version: ModelVersion) -> str:
    """Return a unique id of a version, which differs from that of a version with its name in another registry."""
    return f"{version.run_id or '-'}/{version.name}/{version.version}/{version.creation_timestamp}"


def _own_tags(version: ModelVersion) -> dict[str, str]:
    return {key: value for key, value in version.tags.items() if key not in _OF_A_COPY}


def _aliases(model: RegisteredModel, number: str) -> list[str]:
    return sorted(alias for alias, version in model.aliases.items() if str(version) == number)


def _digest(version: ModelVersion, aliases: list[str]) -> str:
    found = version.description or "", sorted(_own_tags(version).items()), aliases
    return hashlib.sha256(repr(found).encode(errors="surrogatepass")).hexdigest()[:16]
