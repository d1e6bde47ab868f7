"""`autogen-team reproduce`: restore the code and the packages of a run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from autogen_team._process.deadline import within
from autogen_team._redact import MASK, mask
from autogen_team._snapshot import ARTIFACTS, FACTS, PACKAGES, PATCH
from autogen_team.cli import _context, _look, _stores

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["reproduce"]

_FAILED = 1
_PATIENCE = 120.0
"""Timeout in seconds for the store to return the run and its artifacts."""
_ID = re.compile(r"[0-9a-f]{32}")
_LINES_OF_GIT = 12


def reproduce(wanted: str, overrides: Mapping[str, str], *, into: str | None, makes_venv: bool, as_json: bool) -> None:
    """Restore the code and packages of the run, and print the command on stdout; exit with 1 if this fails."""
    with _look.plain_warnings(), _look.plain_errors(_FAILED):
        service = _context.build(overrides).mlflow_service
        stores = _stores.in_use(service)
        _stores.prepare(stores[0])
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from autogen_team._ship import mlflow_backend

    client = mlflow_backend.client(*stores)
    with tempfile.TemporaryDirectory(prefix="autogen-team-reproduce-") as place:
        try:
            find = partial(_find, client, wanted, service.experiment_name)
            run = within(_PATIENCE, find, name="autogen-team-reproduce")
            code = within(_PATIENCE, partial(_download, client, run, place), name="autogen-team-reproduce")
        except Exception as error:
            _look.fail(f"run {wanted!r} cannot be read: {mask(str(error))}", _FAILED)
        facts = json.loads((code / FACTS).read_text(encoding="utf-8"))
        folder = Path(into or f"{re.sub(r'[^A-Za-z0-9._-]+', '-', run.info.run_name or 'run')}-{run.info.run_id[:8]}")
        again = _Again(run, code, facts, folder.absolute())
        again.check_out()
        again.apply()
        if makes_venv:
            again.make_venv()
        again.tell(as_json=as_json)


def _find(client: MlflowClient, wanted: str, experiment: str) -> Run:
    """Return the run with this id, or the latest run with this name in the experiment, or else in all experiments.

    Raises:
        LookupError: there is no such run.

    """
    if _ID.fullmatch(wanted):
        return client.get_run(wanted)
    named = client.get_experiment_by_name(experiment)
    every = [one.experiment_id for one in client.search_experiments()]
    for experiments in ([named.experiment_id] if named else [], every):
        quoted = wanted.replace("'", "\\'")
        order = ["attributes.start_time DESC"]
        query = f"attributes.run_name = '{quoted}'"
        found = client.search_runs(experiments, query, order_by=order, max_results=1) if experiments else []
        if found:
            return found[0]
    raise LookupError("there is no run with this id or name")


def _download(client: MlflowClient, run: Run, place: str) -> Path:
    names = {Path(found.path).name for found in client.list_artifacts(run.info.run_id, ARTIFACTS)}
    if FACTS not in names:
        raise LookupError(
            f"it has no {ARTIFACTS}/{FACTS}: it is a child run or a worker's run, or was opened by plain MLflow, or "
            "mlflow.snapshot was false"
        )
    return Path(client.download_artifacts(run.info.run_id, ARTIFACTS, place))


@dataclass(frozen=True, slots=True)
class _Again:
    """A run to restore."""

    run: Run
    code: Path
    """The folder with the run's snapshot."""
    facts: Mapping[str, Any]
    folder: Path
    """The folder to create."""

    @property
    def _git(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.facts.get("git", {})
        return found

    def check_out(self) -> None:
        """Clone the repository at the commit of the run, or check it out in an existing clean clone."""
        git, commit = self._git, self._git.get("commit")
        if not git:
            why = self.facts.get("left_out", {}).get(PATCH, "it is not known")
            _look.fail(f"the code of run {self.run.info.run_name} was not kept: {why}", _FAILED)
        if (self.folder / ".git").exists():
            changed = _run("git", "status", "--porcelain", at=self.folder).splitlines()
            if changed:
                _look.fail(f"{self.folder} has uncommitted changes: {', '.join(changed[:5])}", _FAILED)
            if commit and not _has(self.folder, commit):
                _run("git", "fetch", "--quiet", "--all", "--tags", at=self.folder)
        elif self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            _look.fail(f"{self.folder} is neither empty nor a clone: choose another folder with --into", _FAILED)
        elif commit is None:
            _run("git", "init", "--quiet", str(self.folder))
        else:
            self._clone(commit)
        if commit is None:
            return
        if not _has(self.folder, commit):
            pushed = "" if git.get("is_pushed") else ", and was not pushed when the job ran"
            host = self.facts.get("machine", {}).get("host", "?")
            _look.fail(f"{self.folder} has no commit {commit}, which was in {git['top']} on {host}{pushed}", _FAILED)
        for name, value in git.get("config", {}).items():
            _run("git", "config", name, value, at=self.folder)
        _run("git", "checkout", "--quiet", "--detach", commit, at=self.folder)
        if (self.folder / ".gitmodules").exists():
            _run("git", "submodule", "--quiet", "update", "--init", "--recursive", at=self.folder)

    def _clone(self, commit: str) -> None:
        """Clone the local repository if it has the commit, otherwise the remote repository."""
        top, remote = self._git["top"], self._git.get("remote")
        is_here = Path(top).is_dir() and _has(Path(top), commit)
        if not is_here and remote is None:
            host = self.facts.get("machine", {}).get("host", "?")
            _look.fail(f"the repository has no remote and is not on this machine: it was {top} on {host}", _FAILED)
        source = top if is_here else str(remote)
        _run("git", "clone", "--quiet", "--no-checkout", "--", source, str(self.folder))
        if is_here and remote is not None:
            _run("git", "remote", "set-url", "origin", remote, at=self.folder)

    def apply(self) -> None:
        """Apply the uncommitted changes, except those with a masked line in their context."""
        patch = self.code / PATCH
        kept = self.facts.get("patch", {})
        if patch.exists() and b"diff --git " in patch.read_bytes():
            files = [*kept.get("does_not_apply", [])]
            without = [f"--exclude={_as_pattern(path)}" for path in files]
            # .gitattributes determines how git writes other files, so its changes are applied first.
            attributes = "*.gitattributes"
            if any(Path(path).name == ".gitattributes" for path in self._git.get("changed", [])):
                _run("git", "apply", "--whitespace=nowarn", f"--include={attributes}", str(patch), at=self.folder)
                without.append(f"--exclude={attributes}")
            _run("git", "apply", "--whitespace=nowarn", *without, str(patch), at=self.folder)
        told = [
            *(
                (path, "not applied, because a masked secret is in the context of its changes")
                for path in kept.get("does_not_apply", [])
            ),
            *(
                (path, "has *** in place of a secret")
                for path in kept.get("masked_lines", {})
                if path not in kept["does_not_apply"]
            ),
            *((path, "its line endings or filtered content may differ") for path in kept.get("inexact", [])),
            *(
                (path, f"not kept: {why}")
                for path, why in self.facts.get("left_out", {}).items()
                if path in self._git.get("changed", [])
            ),
        ]
        for path, what in told:
            _look.say("warning", f"{path}: {what}", "yellow")

    def make_venv(self) -> None:
        """Create `.venv` in the folder, with the packages of the run."""
        venv = self.folder / ".venv"
        version = ".".join(self.facts["python"]["version"].split(".")[:2])
        lines = self._requirements((self.code / PACKAGES).read_text(encoding="utf-8").splitlines())
        is_ours = version == ".".join(map(str, sys.version_info[:2]))
        python = sys.executable if is_ours else shutil.which(f"python{version}")
        uv = shutil.which("uv")
        if uv is not None:
            _run(uv, "venv", "--quiet", "--python", python or version, str(venv))
            install = [uv, "pip", "install", "--quiet", "--python", str(venv / "bin" / "python")]
        else:
            if python is None:
                ours = sys.version.split()[0]
                _look.say("warning", f"Python {version} is not installed here: the venv uses {ours}", "yellow")
            _run(python or sys.executable, "-m", "venv", str(venv))
            install = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        requirements = venv / PACKAGES
        requirements.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        (venv / ".gitignore").write_text("*\n")
        # The list is complete, so no dependencies need to be resolved.
        _run(*install, "--no-deps", "-r", str(requirements), at=self.folder)

    def _requirements(self, lines: Sequence[str]) -> list[str]:
        """Return the packages as requirements for this machine; editable installs of this code stay editable."""
        in_place = self.facts.get("installed_in_place", {})
        top = self._git.get("top")
        ours = {_normal(name): Path(folder) for name, folder in in_place.items()}
        found = []
        for line in lines:
            name = _name(line)
            folder = ours.get(name) or (Path(line[3:]) if line.startswith("-e /") else None)
            if line.startswith("-e ") and folder is not None and top is not None and folder.is_relative_to(top):
                found.append(f"-e {self.folder / folder.relative_to(top)}")
            elif line.startswith("-e git+"):
                found.append(f"{name} @ {line[3:].partition('#')[0]}" + _subdirectory(line))
            elif (missing := _missing_file(line)) is not None:
                _look.say("warning", f"{line}: not installed: {missing} does not exist", "yellow")
            else:
                found.append(line)
        return found

    def tell(self, *, as_json: bool) -> None:
        """Print the command of the run, adapted to the folder and the venv."""
        words = list(self.facts["command"])
        programs = self.folder / ".venv" / "bin"
        name = "python" if Path(words[0]).name.startswith("python") else Path(words[0]).name
        if programs.is_dir() and (programs / name).exists():
            words[0] = str(programs / name)
        top = self._git.get("top")
        if top is not None:
            words = [
                str(self.folder / Path(word).relative_to(top)) if _is_inside(word, top) else word for word in words
            ]
        place = (
            self.folder / Path(os.path.relpath(self.facts["folder"], top))
            if _is_inside(self.facts["folder"], top)
            else self.folder
        )
        if any(MASK in word for word in words):
            _look.say("warning", f"the command has a masked secret: replace {MASK}", "yellow")
        if as_json:
            _look.as_json(
                {"run": self.run.info.run_id, "code": str(self.folder), "folder": str(place), "command": words}
            )
            return
        _look.rows([("run", f"{self.run.info.run_name} ({self.run.info.run_id})"), ("code", str(self.folder))])
        print(f"cd {shlex.quote(str(place))} && {shlex.join(words)}")  # noqa: T201 - the output of the command


def _is_inside(path: str, top: str | None) -> bool:
    return top is not None and Path(path).is_absolute() and Path(path).is_relative_to(top)


def _as_pattern(path: str) -> str:
    return re.sub(r"([*?\[\\])", r"\\\1", path)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _name(line: str) -> str:
    found = re.search(r"#egg=([\w.-]+)", line) or re.match(r"([\w.-]+)\s*(?:@|==)", line)
    return _normal(found[1]) if found else ""


def _subdirectory(line: str) -> str:
    found = re.search(r"&(subdirectory=[^&]+)", line)
    return f"#{found[1]}" if found else ""


def _missing_file(line: str) -> str | None:
    """Return the local file or folder that a package was installed from, if it does not exist here."""
    _, at, url = line.partition(" @ ")
    if line.startswith("-e /"):
        path = line[3:]
    elif at and url.startswith("file:"):
        path = url2pathname(urlsplit(url).path)
    else:
        return None
    return None if Path(path).exists() else path


def _has(folder: Path, commit: str) -> bool:
    done = subprocess.run(  # noqa: S603 - git, on the PATH
        ["git", "cat-file", "-e", f"{commit}^{{commit}}"],  # noqa: S607  # nosec B607
        cwd=folder,
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def _run(*words: str, at: Path | None = None) -> str:
    """Return the output of a command; exit with its error message if the command fails or is not installed."""
    try:
        done = subprocess.run(words, cwd=at, capture_output=True, text=True, errors="backslashreplace", check=False)  # noqa: S603 - its words are ours
    except FileNotFoundError:
        _look.fail(f"{words[0]} is not installed", _FAILED)
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-_LINES_OF_GIT:])
        _look.fail(f"{mask(shlex.join(words))} failed: {mask(said)}", _FAILED)
    return done.stdout
