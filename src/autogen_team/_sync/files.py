"""Basics of a copy between MLflow stores: the two stores, the findings about a run, and the transfer of artifacts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from autogen_team._redact import mask
from autogen_team._ship.error_text import first_line
from autogen_team._ship.files import send
from autogen_team.errors import TrackingUnavailableError

Tell: TypeAlias = Callable[[str], None]

_MLMODEL = "MLmodel"
_UNFINISHED = ".artifact.uploading."  # MLflow leaves these files behind when it is killed, and does not list them
_SHOWN = 5


@dataclass(frozen=True)
class Store:
    """The source or the target of a copy."""

    uri: str
    folder: Path | None
    """Folder of a file store, or folder that contains the database; None for a server."""
    registry_uri: str | None = None
    """URI of the model registry, if it is another store."""

    @cached_property
    def client(self) -> MlflowClient:
        """Client of the store; its creation creates a missing database."""
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.registry_uri or self.uri)

    @cached_property
    def registry(self) -> Any:
        """MLflow's client of the model registry, which treats prompts as registered models."""
        return self.client._get_registry_client()  # type: ignore[no-untyped-call]  # noqa: SLF001 - `REGISTERED` of `mlflow_names`

    def files(self, uri: str) -> ArtifactRepository:
        """Return the artifact repository for a URI given by the store."""
        # Do not use the client: for a run's folder, it also lists and downloads the files of a model with that name.
        return get_artifact_repository(self._current_uri(uri), tracking_uri=self.uri)

    def _current_uri(self, uri: str) -> str:
        """Return the current place of artifacts: a store that was moved here still records their former folder."""
        repository = get_artifact_repository(uri, tracking_uri=self.uri)
        if self.folder is None or not isinstance(repository, LocalArtifactRepository):
            return uri
        recorded = Path(repository.artifact_dir)
        if not recorded.exists():
            for start in range(1, len(recorded.parts) - 2):  # at least experiment, run and "artifacts"
                moved = self.folder.joinpath(*recorded.parts[start:])
                if moved.is_dir():
                    return str(moved)
        return uri


@dataclass(slots=True)
class Findings:
    """Faults and notes about one run; a fault in one part does not stop the others."""

    check: Callable[[], None]
    """Raises TrackingUnavailableError if the target does not answer, which is not a fault of the run."""
    faults: list[str] = field(default_factory=list)
    """Faults: parts that should have been copied and were not, so the copy is incomplete."""
    notes: list[str] = field(default_factory=list)
    """Notes: parts that can never be copied."""
    left: int = 0
    """Number of parts that stay only in the source."""

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Record an exception of the block as a fault of `part`; TrackingUnavailableError is raised instead."""
        try:
            yield
        except TrackingUnavailableError:
            raise
        except Exception as error:
            self.check()
            self.faults.append(f"{part}: {mask(first_line(error))}")

    def leave(self, part: str) -> None:
        """Record that the target cannot take `part`, which stays in the source; its text includes the reason."""
        self.left += 1
        self.notes.append(f"not copied: {part}")

    def reason(self) -> str | None:
        """Return the faults and notes in one line; None if there are none."""
        found = [*self.faults, *self.notes]
        more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        return "; ".join([*found[:_SHOWN], *more]) or None


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    """Path among the artifacts, with slashes."""
    size: int | None
    """Bytes; None if unknown."""
    local: Path | None
    """Path of the file if it can be read without a download; None if it is remote."""


def count_files(source: ArtifactRepository, findings: Findings) -> int:
    """Return the number of artifacts."""
    return sum(1 for _ in _walk(source, findings))


def describe_files(source: ArtifactRepository) -> list[tuple[str, int | None, int]]:
    """Return path, size and modification time of each artifact, without reading the files.

    Times are in nanoseconds; that of a remote artifact is 0.
    """
    findings = Findings(lambda: None)  # `send_files` reports folders that cannot be listed
    return sorted(
        (file.path, file.size, file.local.stat().st_mtime_ns if file.local and file.local.is_file() else 0)
        for file in _walk(source, findings)
    )


def send_files(
    source: ArtifactRepository,
    target: ArtifactRepository,
    *,
    renamed: Mapping[str, str],
    since: float | None,
    findings: Findings,
    tell: Tell,
) -> int:
    """Copy missing and changed artifacts file by file, check that they arrived, and return their number.

    `renamed` maps old ids and URIs in MLmodel files to new ones. An artifact with the same size on the target counts as
    unchanged, unless its modification time is after `since`, in seconds since the epoch.
    """
    there = _sizes(target, findings)
    sent: dict[str, int] = {}
    for file in _walk(source, findings):
        with findings.of(f"artifact {file.path}"):
            name = PurePosixPath(file.path).name
            changed = since is not None and file.local is not None and file.local.stat().st_mtime > since
            if name != _MLMODEL and not changed and file.size is not None and there.get(file.path) == file.size:
                continue
            with _content(file, source, renamed) as local:
                size = local.stat().st_size
                if there.get(file.path) == size and not changed:
                    continue
                tell(file.path)
                folder = str(PurePosixPath(file.path).parent)
                send(target, local, None if folder == "." else folder)
                sent[file.path] = size
    if sent:
        there = _sizes(target, findings)
        # A server reports an empty file without its size.
        lost = [path for path, size in sent.items() if there.get(path, -1) not in (0, size)]
        findings.faults += [f"artifact {path}: it was sent and did not arrive" for path in lost]
    return len(sent)


@contextmanager
def _content(file: _File, source: ArtifactRepository, renamed: Mapping[str, str]) -> Iterator[Path]:
    """Yield the path of the file to send, which is valid only inside the block."""
    with TemporaryDirectory(prefix="autogen-team-") as scratch:
        local = file.local or Path(source.download_artifacts(file.path, scratch))  # type: ignore[no-untyped-call]  # MLflow's
        if not local.is_file():  # a dangling link, or a pipe, from which a read would block
            raise FileNotFoundError("the file does not exist or is not a regular file")
        if local.name == _MLMODEL:
            content = local.read_bytes()
            for old, new in renamed.items():
                content = content.replace(old.encode(), new.encode())
            folder = Path(scratch, "renamed")
            folder.mkdir()
            local = folder / _MLMODEL
            local.write_bytes(content)
        yield local


def _sizes(repository: ArtifactRepository, findings: Findings) -> dict[str, int]:
    return {file.path: file.size or 0 for file in _walk(repository, findings)}


def _walk(repository: ArtifactRepository, findings: Findings, path: str | None = None) -> Iterator[_File]:
    if isinstance(repository, LocalArtifactRepository):
        # Do not use MLflow, which cannot list a folder with a dangling link.
        folder = Path(repository.artifact_dir)
        yield from _walk_local(folder, "", frozenset({folder.resolve()}), findings) if folder.is_dir() else ()
        return
    for info in repository.list_artifacts(path):
        if info.is_dir:
            yield from _walk(repository, findings, info.path)
        else:
            yield _File(info.path, info.file_size, None)


def _walk_local(folder: Path, prefix: str, above: frozenset[Path], findings: Findings) -> Iterator[_File]:
    entries: list[os.DirEntry[str]] = []
    with findings.of(f"folder {prefix or '.'}"):
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for entry in entries:
        path = Path(entry)
        if entry.name.startswith(_UNFINISHED):
            continue
        if not entry.is_dir():
            yield _File(f"{prefix}{entry.name}", path.stat().st_size if path.is_file() else None, path)
        elif (
            real := path.resolve()
        ) not in above:  # otherwise it is a link to a parent folder, and the walk would never end
            yield from _walk_local(path, f"{prefix}{entry.name}/", above | {real}, findings)


def pages(search: Callable[..., Any], *arguments: Any, **fields: Any) -> Iterator[Any]:
    """Yield all results of an MLflow search, page by page."""
    token = None
    while True:
        page = search(*arguments, page_token=token, **fields)
        yield from page
        token = page.token
        if not token:
            return
