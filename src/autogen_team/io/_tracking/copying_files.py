"""What a copy from one MLflow store to another goes by: the two stores, what is found wrong, and artifacts."""

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
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from autogen_team.errors import TrackingUnavailableError
from autogen_team.io._redact import mask
from autogen_team.io._tracking import session
from autogen_team.io._tracking.words import first_line

Tell: TypeAlias = Callable[[str], None]

_MLMODEL = "MLmodel"
_UNFINISHED = ".artifact.uploading."  # what MLflow leaves behind when it is killed, and hides from its own listings
_MISREAD_IN_ADDRESSES = frozenset("#?%")
_SHOWN = 5


@dataclass(frozen=True)
class Store:
    """One end of the way."""

    uri: str
    folder: Path | None
    """The folder that it is, or lies in; None for a server."""

    @cached_property
    def client(self) -> MlflowClient:
        """Return a client of it; a database that is not there is made by this."""
        return session.client(self.uri, self.uri)

    def files(self, uri: str) -> ArtifactRepository:
        """Return the artifacts that the store says are at this address."""
        # Not by the client: for a folder of a run it lists, and downloads, the files of a model of that name as well.
        return get_artifact_repository(self._found_again(uri), tracking_uri=self.uri)

    def _found_again(self, uri: str) -> str:
        """Return where the files are now: a store that was carried here still names the folder where they once were."""
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
    """What there is to say about one run; a fault in one of its parts does not stop the others."""

    check: Callable[[], None]
    """Raises TrackingUnavailableError if the target is gone, which is no fault of the run."""
    faults: list[str] = field(default_factory=list)
    """What was not copied and should have been: the copy is not complete."""
    notes: list[str] = field(default_factory=list)
    """What cannot be copied, now or ever."""

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Take note of what fails inside the block."""
        try:
            yield
        except TrackingUnavailableError:
            raise
        except Exception as error:
            self.check()
            self.faults.append(f"{part}: {mask(first_line(error))}")

    def reason(self) -> str | None:
        """Return them in one line, None if there are none."""
        found = [*self.faults, *self.notes]
        more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        return "; ".join([*found[:_SHOWN], *more]) or None


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    """In the artifacts, with slashes."""
    size: int | None
    """Bytes; None if it cannot be told."""
    local: Path | None
    """Where it can be read without fetching it."""


def count_files(source: ArtifactRepository, findings: Findings) -> int:
    """Return how many artifacts there are."""
    return sum(1 for _ in _walk(source, findings))


def describe_files(source: ArtifactRepository) -> list[tuple[str, int | None, int]]:
    """Return path, size and last change of each artifact, without reading any; a time is known of local ones only."""
    findings = Findings(lambda: None)  # what cannot be listed is named when it is sent
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
    """Copy what is not there yet, file by file, and look afterwards whether it arrived; return how many were sent.

    `renamed` are the ids, and addresses, that an MLmodel gets. What is there in the same size is taken for the same,
    unless it has changed after `since`, in seconds since the epoch.
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
                if isinstance(target, HttpArtifactRepository) and _MISREAD_IN_ADDRESSES & set(file.path):
                    # MLflow does not escape them: `a#b.txt` would overwrite `a`.
                    raise ValueError("MLflow cannot send names that hold #, ? or % to a server; rename it")
                tell(file.path)
                folder = str(PurePosixPath(file.path).parent)
                target.log_artifact(str(local), None if folder == "." else folder)  # type: ignore[no-untyped-call]  # MLflow's
                sent[file.path] = size
    if sent:
        there = _sizes(target, findings)
        # A server names no size for an empty file.
        lost = [path for path, size in sent.items() if there.get(path, -1) not in (0, size)]
        findings.faults += [f"artifact {path}: it was sent and did not arrive" for path in lost]
    return len(sent)


@contextmanager
def _content(file: _File, source: ArtifactRepository, renamed: Mapping[str, str]) -> Iterator[Path]:
    """Yield the file as it is to be sent, for the time of the block."""
    with TemporaryDirectory(prefix="autogen-team-") as scratch:
        local = file.local or Path(source.download_artifacts(file.path, scratch))  # type: ignore[no-untyped-call]  # MLflow's
        if not local.is_file():  # a dangling link; or a pipe, which would be waited for
            raise FileNotFoundError("there is no such file, or none that can be read as one")
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
        # Not by MLflow, of whose listing of a folder a single dangling link leaves nothing.
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
        elif (real := path.resolve()) not in above:  # else a link that leads back up
            yield from _walk_local(path, f"{prefix}{entry.name}/", above | {real}, findings)


def pages(search: Callable[..., Any], *arguments: Any, **fields: Any) -> Iterator[Any]:
    """Yield all that one of MLflow's searches finds, page by page."""
    token = None
    while True:
        page = search(*arguments, page_token=token, **fields)
        yield from page
        token = page.token
        if not token:
            return
