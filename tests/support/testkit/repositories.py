"""Real git repositories for tests, independent of the user's git settings."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from autogen_team._snapshot import changes
from autogen_team._snapshot import git as gits

PLAIN = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
}
"""The environment of git in tests."""


def git(folder: Path, *arguments: str, **environment: str) -> str:
    """Return the output of a git command, without the final newline; fail if git fails."""
    words = ["git", "-c", "protocol.file.allow=always", *arguments]
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, **PLAIN, **environment}, capture_output=True, check=False
    )
    assert done.returncode == 0, (words, done.stderr.decode(errors="replace"))
    return os.fsdecode(done.stdout).rstrip("\n")


def make(folder: Path, files: dict[str, str | bytes] | None = None) -> Path:
    """Create a repository with one commit of these files; with None, create one without a commit."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    if files is not None:
        write(folder, files)
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--allow-empty", "-m", "first")
    return folder


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    """Write files, and create their folders."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def tree(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Return the files and links of a work tree, each with its kind and content."""
    return {
        str(path.relative_to(folder)): _state(path)
        for path in sorted(folder.rglob("*"))
        if ".git" not in path.relative_to(folder).parts and (path.is_symlink() or not path.is_dir())
    }


def _state(path: Path) -> tuple[str, bytes]:
    if path.is_symlink():
        return "link", os.fsencode(path.readlink())
    return "executable" if path.stat().st_mode & 0o100 else "file", path.read_bytes()


def snapshot(folder: Path, scratch: Path) -> tuple[changes.Changes, bytes]:
    """Return the changes since the commit, and the patch."""
    with _environment():
        repository = gits.find(folder, scratch, gits.Budget(600.0, 600.0))
        assert repository is not None
        found = changes.collect(repository)
    return found, b"".join(section.text for section in found.sections)


def reproduce(folder: Path, commit: str | None, patch: bytes, into: Path, *options: str) -> Path:
    """Clone the repository at the commit, and apply the patch with plain git."""
    if commit is None:
        into.mkdir()
        git(into, "init", "--quiet")
    else:
        git(folder.parent, "clone", "--quiet", "--no-checkout", *options, str(folder), str(into))
        git(into, "checkout", "--quiet", "--detach", commit)
        git(into, "submodule", "--quiet", "update", "--init", "--recursive")
    if patch:
        file = into.with_name("changes.patch")
        file.write_bytes(patch)
        git(into, "apply", "--whitespace=nowarn", str(file))
    return into


def untouched(folder: Path) -> dict[str, bytes | None]:
    """Return the contents of all files of a repository, including those of git, for a later comparison."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if not path.is_symlink()
    }


class _environment:  # noqa: N801 - a context manager
    def __enter__(self) -> None:
        self._before = dict(os.environ)
        os.environ.update(PLAIN)

    def __exit__(self, *_: object) -> None:
        os.environ.clear()
        os.environ.update(self._before)


def has_git() -> bool:
    """Return whether git is installed."""
    return shutil.which("git") is not None
