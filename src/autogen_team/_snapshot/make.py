"""Take a snapshot: the main function of the separate process."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autogen_team._process.folders import private_folder
from autogen_team._redact import Redactor, is_secret_name, mask_value, values
from autogen_team._snapshot import (
    CELLS,
    FACTS,
    MOST_BYTES,
    MOST_CPU,
    PACKAGES,
    PATCH,
    cells,
    changes,
    machine,
    packages,
    patch,
)
from autogen_team._snapshot import git as gits
from autogen_team._snapshot.git import Budget, GitError, Repository
from autogen_team._snapshot.process import PART, Order

_MOST_WALL = 30.0
"""Wall time limit in seconds, for a machine without a free CPU."""
_PRIORITY = 10
_OLD = 7 * 86_400
"""Age in seconds after which leftovers of jobs are removed."""
_MOST_LISTED = 1000
_LOCKS = (
    "uv.lock",
    "pylock.toml",
    "poetry.lock",
    "pdm.lock",
    "pixi.lock",
    "conda-lock.yml",
    "Pipfile.lock",
)
_CONFIG = ("core.autocrlf", "core.eol")
"""Git settings that a clone needs for the same line endings."""


def main(given: str) -> None:
    """Take the snapshot that an order in JSON describes."""
    os.nice(_PRIORITY)
    last = int(2 * MOST_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (last, last + 1))
    make(Order(**json.loads(given)))


def make(order: Order) -> None:
    """Write the snapshot to the folder of the order; the folder appears once the snapshot is complete."""
    folder = Path(order.folder)
    part = private_folder(folder.with_name(folder.name + PART))
    _sweep(folder.parent)
    values.add(order.secrets)
    values.configure(tuple(order.patterns), tuple(order.allow))
    with tempfile.TemporaryDirectory(prefix="autogen-team-snapshot-") as scratch:
        _Snapshot(order, part, Path(scratch)).write()
    part.rename(folder)


@dataclass(slots=True)
class _Snapshot:
    """A snapshot being taken."""

    order: Order
    folder: Path
    scratch: Path
    budget: Budget = field(default_factory=lambda: Budget(MOST_CPU, _MOST_WALL))
    mask: Redactor = field(default_factory=lambda: Redactor(os.environ))
    mask_code: Redactor = field(default_factory=lambda: Redactor(os.environ, in_code=True))
    left_out: dict[str, str] = field(default_factory=dict)
    room: int = MOST_BYTES

    def write(self) -> None:
        """Write the files of the snapshot; `run.json` comes last, because it lists what is left out."""
        order = self.order
        facts: dict[str, Any] = {
            "version": 1,
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": masked_command(order.command, self.mask),
            "folder": order.cwd,
            "script": order.script,
            "notebook": order.notebook,
            "python": machine.python(order.executable, order.python),
            "machine": machine.machine(),
            "gpus": machine.gpus(),
            "container": machine.container(os.environ),
            "scheduler": machine.scheduler(os.environ),
        }
        self._write_cells()
        facts["installed_in_place"] = self._packages()
        facts |= self._changes()
        facts["locks"] = self._locks(facts.get("git", {}).get("top"))
        facts["left_out"] = _some(self.left_out)
        facts["processor_seconds"] = round(gits.cpu_seconds(), 3)
        self._file(FACTS, json.dumps(mask_value(facts, self.mask), indent=2, ensure_ascii=False) + "\n")

    def _file(self, name: str, text: str | bytes) -> None:
        data = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
        (self.folder / name).write_bytes(data)

    def _write_cells(self) -> None:
        if self.order.cells:
            self._file(CELLS, cells.as_script(self.order.cells, self.mask_code))

    def _packages(self) -> dict[str, str]:
        def source(folder: Path) -> tuple[str | None, str | None, str]:
            place = self.scratch / f"package{next(numbers)}"
            try:
                found = gits.find(folder, place, self.budget, needs_index=False)
                return (None, None, "") if found is None else (found.remote(), found.commit(), found.folder)
            except (GitError, OSError):
                return None, None, ""

        numbers = itertools.count()
        lines, editable = packages.freeze(self.order.path, source)
        head = f"# Python {self.order.python}"
        self._file(PACKAGES, self.mask("\n".join([head, *lines, ""])))
        return editable

    def _changes(self) -> dict[str, Any]:
        """Write the patch, and return the facts about git."""
        facts: dict[str, Any] = {}
        try:
            repository = gits.find_of(self.order.script, self.order.cwd, self.scratch, self.budget)
            if repository is None:
                self.left_out[PATCH] = "the code is not in a git repository"
                return {}
            facts["git"] = git = self._repository(repository)
            found = changes.collect(repository, [Path(path) for path in self.order.excluded])
            git["is_dirty"] = bool(found.files)
            git["changed"] = sorted(dict.fromkeys(found.files))[:_MOST_LISTED]
            git["submodules"] = found.submodules
            self.left_out |= found.left_out
            facts["patch"] = self._patch(found)
        except GitError as error:
            self.left_out[PATCH] = self.mask(str(error))
        return facts

    def _repository(self, repository: Repository) -> dict[str, Any]:
        commit = repository.commit()
        return {
            "top": str(repository.top),
            "folder": repository.folder,
            "remote": repository.remote(),
            "branch": repository.text("symbolic-ref", "--quiet", "--short", "HEAD"),
            "commit": commit,
            "is_pushed": commit is not None and repository.is_pushed(),
            "config": {name: value for name in _CONFIG if (value := repository.text("config", name)) is not None},
        }

    def _patch(self, found: changes.Changes) -> dict[str, Any]:
        """Write the patch, and return what was left out."""
        kept = []
        for section in found.sections:
            self.budget.left()
            if patch.without_secrets(section, self.mask, self.mask_code, _is_source):
                kept.append(section)
            else:
                self.left_out[section.path] = "a binary file with a secret"
        kept, rest = patch.within(kept, self.room - _ROOM_FOR_PREAMBLE)
        self.left_out |= {one.path: f"the snapshot would exceed {MOST_BYTES} bytes" for one in rest}
        lacking = sum(not path.endswith("/") or path in found.files for path in self.left_out if path in found.files)
        text = patch.preamble(kept, lacking + len(rest), self.mask) + b"".join(one.text for one in kept)
        if text:
            self._file(PATCH, text)
            self.room -= len(text)
        return {
            "bytes": len(text),
            "masked_lines": {one.path: one.masked_lines for one in kept if one.masked_lines},
            "does_not_apply": [one.path for one in kept if not one.applies],
            "inexact": found.inexact[:_MOST_LISTED],
        }

    def _locks(self, top: str | None) -> dict[str, str]:
        """Copy the lock files of the project, and return their checksums."""
        checksums = {}
        for place in _places(next(gits.anchors(self.order.script, self.order.cwd)), top):
            for path in (place / name for name in _LOCKS):
                with suppress(OSError):
                    data = path.read_bytes()
                    checksums[str(path)] = f"sha256:{hashlib.sha256(data).hexdigest()}"
                    text = self.mask(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
                    if len(text) > self.room:
                        self.left_out[path.name] = f"the snapshot would exceed {MOST_BYTES} bytes"
                    else:
                        self.room -= len(text)
                        self._file(path.name, text)
            if checksums:
                break
        return checksums


_ROOM_FOR_PREAMBLE = 10_000


def _is_source(suffix: str) -> bool:
    return suffix in _CODE


_CODE = frozenset(
    (
        *(".c", ".cc", ".cpp", ".cs", ".cu", ".go", ".h", ".hpp", ".java", ".jl", ".js", ".kt", ".py", ".pyi", ".pyx"),
        *(".r", ".rb", ".rs", ".scala", ".swift", ".ts"),
    )
)
"""Suffixes of source code, in which `password=password` passes a variable."""


def _places(begin: Path, top: str | None) -> Iterator[Path]:
    """Yield the folder and its parents, up to the top of the repository."""
    yield begin
    if top is not None and begin.resolve().is_relative_to(Path(top).resolve()):
        for place in begin.resolve().parents:
            if not place.is_relative_to(Path(top).resolve()):
                return
            yield place


def _some(found: Mapping[str, str]) -> dict[str, str]:
    listed = dict(list(found.items())[:_MOST_LISTED])
    if len(found) > _MOST_LISTED:
        listed["..."] = f"and {len(found) - _MOST_LISTED} more"
    return listed


def _sweep(folder: Path) -> None:
    """Remove leftovers of jobs that ended long ago."""
    for path in folder.iterdir():
        with suppress(OSError):
            if path.lstat().st_mtime < time.time() - _OLD:
                path.unlink() if path.is_symlink() else shutil.rmtree(path)


def masked_command(words: list[str], mask: Redactor) -> list[str]:
    """Return a command without secrets; the secret of an option may be the next word."""
    found, is_secret = [], False
    for word in words:
        found.append("***" if is_secret and not word.startswith("-") else mask(word))
        is_secret = word.startswith("-") and "=" not in word and is_secret_name(word.lstrip("-"))
    return found
