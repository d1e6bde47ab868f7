"""Run git on a repository without modifying it.

Git gets a copy of the index and a separate folder for new objects; the objects of the repository are read as
alternates. Git runs no hook and no file system monitor, fetches nothing, and asks for no password. The filters that
`.gitattributes` names do run, as at each `git add`, because the content of a file that git-crypt protects is not
readable without them.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

_KEPT = ("GIT_CONFIG", "GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_ACROSS_FILESYSTEM", "GIT_EXEC_PATH")
"""Prefixes of git variables that affect how a repository is read. The other ones select a repository, as in a hook."""
_SET = {
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_ASKPASS": "true",
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
}
_CONFIG = {
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.looseCompression": "0",
    "core.quotePath": "true",
    "core.safecrlf": "false",
    "core.splitIndex": "false",
    "submodule.recurse": "false",
}
_CPU_LIMIT_STATUSES = (-signal.SIGXCPU, -signal.SIGKILL)
"""Exit statuses of a process that the kernel killed at its CPU limit, perhaps earlier than our clock.
Git continues without a filter that was killed, and reports the signal."""
_LARGEST_OUTPUT = 64 * 2**20
"""Maximum bytes that git may write to one file."""


class GitError(Exception):
    """Git failed; the message is the first line of its output."""


class GitIsMissingError(GitError):
    """Git is not installed on this machine."""


class BudgetError(GitError):
    """The snapshot has exceeded its time limit."""


def cpu_seconds() -> float:
    """Return the CPU time that this process and its children have used so far."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@dataclass(slots=True)
class Budget:
    """The time limits of a snapshot, including its child processes."""

    cpu: float
    """Seconds of CPU time."""
    wall: float
    """Seconds."""
    _begun: float = field(default_factory=time.monotonic)
    _cpu_before: float = field(default_factory=cpu_seconds)

    def left(self) -> float:
        """Return the remaining seconds of CPU time.

        Raises:
            BudgetError: none are left.

        """
        left = self.cpu - (cpu_seconds() - self._cpu_before)
        if left <= 0:
            raise self.spent()
        return left

    def spent(self) -> BudgetError:
        """Return the error for an exceeded CPU time limit."""
        return BudgetError(f"it would take more than {self.cpu:g} s of CPU time")

    def patience(self) -> float:
        """Return the remaining seconds of wall time.

        Raises:
            BudgetError: none are left.

        """
        left = self.wall - (time.monotonic() - self._begun)
        if left <= 0:
            raise BudgetError(f"it would take more than {self.wall:g} s")
        return left


@dataclass(frozen=True, slots=True)
class Repository:
    """A work tree, with a private index and private objects."""

    top: Path
    """The folder of the work tree."""
    folder: str
    """The folder where the search began, relative to `top`; empty if both are the same."""
    scratch: Path
    """Our own folder for the index and the objects."""
    budget: Budget

    @property
    def index(self) -> Path:
        """The private index."""
        return self.scratch / "index"

    def git(self, *arguments: str, stdin: bytes = b"", config: Mapping[str, str] | None = None) -> bytes:
        """Return the output of git.

        Raises:
            GitError: git failed, or took too long.

        """
        private = {
            "GIT_INDEX_FILE": str(self.index),
            "GIT_OBJECT_DIRECTORY": str(self.scratch / "objects"),
        }
        options = {**_CONFIG, "lfs.storage": str(self.scratch / "lfs"), **(config or {})}
        return _run(self.top, arguments, self.budget, variables=private, config=options, stdin=stdin)

    def text(self, *arguments: str) -> str | None:
        """Return one line of git's output; None if git fails."""
        try:
            return os.fsdecode(self.git(*arguments)).rstrip("\n") or None
        except BudgetError:
            raise
        except GitError:
            return None

    def commit(self) -> str | None:
        """Return the commit that is checked out; None if there is none yet."""
        return self.text("rev-parse", "--verify", "--quiet", "HEAD^{commit}")

    def empty_tree(self) -> str:
        """Return the id of the empty tree in the hash format of this repository."""
        return os.fsdecode(self.git("hash-object", "-t", "tree", "-w", "--stdin")).strip()

    def is_pushed(self) -> bool:
        """Return whether a remote branch, as last fetched, contains the commit."""
        return self.text("rev-list", "-1", "HEAD", "--not", "--remotes") is None

    def remote(self) -> str | None:
        """Return the URL to clone from, without user and password; None if there is no remote."""
        names = (self.text("remote") or "").split("\n")
        name = "origin" if "origin" in names else names[0]
        url = self.text("remote", "get-url", name) if name else None
        return None if url is None else without_user(url)


def without_user(url: str) -> str:
    """Return the URL without its password and user; the user of an SSH URL, as in `git@host`, is kept.

    >>> without_user("https://ada:secret@host/a.git"), without_user("git@host:a.git")
    ('https://host/a.git', 'git@host:a.git')
    """
    parts = urlsplit(url) if "://" in url else None
    if parts is None or "@" not in parts.netloc or (parts.scheme in ("ssh", "git+ssh") and not parts.password):
        return url
    host = parts.netloc.rpartition("@")[2]
    user = f"{parts.username}@" if parts.scheme in ("ssh", "git+ssh") else ""
    return urlunsplit(parts._replace(netloc=user + host))


def find(folder: Path, scratch: Path, budget: Budget, *, needs_index: bool = True) -> Repository | None:
    """Return the repository whose work tree contains the folder; None if there is none.

    It has a copy of the index unless `needs_index` is false; then it can only be used for commits.

    Raises:
        GitError: git cannot read the repository.

    """
    try:
        found = _run(
            folder,
            ["rev-parse", "--show-toplevel", "--git-path", "index", "--git-path", "objects", "--show-prefix"],
            budget,
            config=_CONFIG,
        )
    except BudgetError:
        raise
    except GitError as error:
        if "not a git repository" in str(error) or "must be run in a work tree" in str(error):
            return None
        raise
    top, index, objects, prefix = os.fsdecode(found).split("\n")[:4]
    (scratch / "objects" / "info").mkdir(parents=True)
    (scratch / "objects" / "info" / "alternates").write_bytes(os.fsencode((folder / objects).resolve()) + b"\n")
    repository = Repository(Path(top), prefix.rstrip("/"), scratch, budget)
    if needs_index:
        with suppress(FileNotFoundError):  # no index, because nothing was ever added
            # Keeps the time of the index: if the index seems newer, git considers a changed file unchanged.
            shutil.copy2(folder / index, repository.index)
    return repository


def anchors(script: str | None, folder: str) -> Iterator[Path]:
    """Yield folders whose repository may hold the code: that of a script that is not installed, and the given one."""
    if script is not None and not {"site-packages", "dist-packages", "bin", "Scripts"} & set(Path(script).parts):
        place = Path(folder, script)
        place = place if place.is_dir() else place.parent
        if place.is_dir():
            yield place
    yield Path(folder)


def find_of(script: str | None, folder: str, scratch: Path, budget: Budget) -> Repository | None:
    """Return the repository of the script or, if there is none, of the folder.

    Raises:
        GitError: git is missing, or cannot read the repository.

    """
    for number, place in enumerate(anchors(script, folder)):
        found = find(place, scratch / f"repository{number}", budget)
        if found is not None:
            return found
    return None


def _run(
    folder: Path,
    arguments: list[str] | tuple[str, ...],
    budget: Budget,
    *,
    variables: Mapping[str, str] | None = None,
    config: Mapping[str, str] | None = None,
    stdin: bytes = b"",
) -> bytes:
    options = [word for name, value in (config or {}).items() for word in ("-c", f"{name}={value}")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name.startswith(_KEPT)}
    seconds = max(1, round(budget.left() + 0.5))
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as given:
        given.write(stdin)
        given.seek(0)
        try:
            done = subprocess.run(  # noqa: S603 - git, found on the PATH as the user's own shell finds it
                ["git", *options, *arguments],  # noqa: S607  # nosec B607
                cwd=folder,
                env={**kept, **_SET, **(variables or {})},
                stdin=given,
                stdout=output,
                stderr=subprocess.PIPE,
                timeout=budget.patience(),
                check=False,
                preexec_fn=lambda: _limit(seconds),
            )
        except (FileNotFoundError, NotADirectoryError) as error:
            raise GitIsMissingError("git is not installed on this machine") from error
        except PermissionError as error:
            raise GitIsMissingError(f"git cannot be run: {error.strerror}") from error
        except subprocess.TimeoutExpired:
            raise BudgetError(f"git {arguments[0]} would take more than {budget.wall:g} s") from None
        if done.returncode in _CPU_LIMIT_STATUSES or any(
            f"died of signal {-status}".encode() in done.stderr for status in _CPU_LIMIT_STATUSES
        ):
            raise budget.spent()
        if done.returncode:
            said = os.fsdecode(done.stderr).strip().split("\n")[0]
            raise GitError(said.removeprefix("fatal: ").removeprefix("error: ") or f"git {arguments[0]} failed")
        output.seek(0)
        return output.read()


def _limit(seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_OUTPUT, _LARGEST_OUTPUT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
