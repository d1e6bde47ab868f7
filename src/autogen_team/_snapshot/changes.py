"""Differences between a commit and the work tree, as the sections of a patch.

The changes of a submodule are relative to the commit that the outer commit records, because `git clone
--recurse-submodules` checks out that commit. Their paths begin with the path of the submodule.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from autogen_team._snapshot import git as gits
from autogen_team._snapshot.git import BudgetError, GitError, Repository
from autogen_team._snapshot.patch import Section, sections

SOURCES = frozenset(
    (
        *(
            ".c",
            ".cc",
            ".cfg",
            ".cpp",
            ".cu",
            ".go",
            ".h",
            ".hpp",
            ".ini",
            ".ipynb",
            ".java",
            ".jl",
            ".js",
            ".json",
            ".md",
        ),
        *(".py", ".pyi", ".pyx", ".r", ".rs", ".scala", ".sh", ".sql", ".toml", ".ts", ".yaml", ".yml"),
    )
)
"""Suffixes of files that take precedence if the new files are too large."""
_LARGEST_NEW = 1_000_000
_LARGEST_CHANGED = 8_000_000
_MOST_NEW = 4_000_000
"""Size limits in bytes: a new file, a changed file, and all new files together."""
_MOST_NAMES = 20_000
_SUBMODULE = "160000"
_RUN_STORE = "a store of runs"
_NOT_CODE = {
    "__pycache__": "compiled code",
    ".ipynb_checkpoints": "a checkpoint of Jupyter",
    "node_modules": "installed packages",
    "mlruns": _RUN_STORE,
    "mlartifacts": _RUN_STORE,
}
_NOT_CODE_FILES = {
    re.compile(r"mlflow\.db(?:-\w+)?"): _RUN_STORE,
    re.compile(r".*\.py[co]"): "compiled code",
    re.compile(r".*\.log"): "a log",
}
_BY_LFS = "Git LFS stores it"
_NO_FILE = "000000"
_FIELDS = {"1": 7, "u": 9}
"""Number of blanks before the path in a line of `git status`, by the kind of the line."""
_DEEPEST = 5
_AT_ONCE = 200
"""Maximum number of paths on one command line."""


@dataclass(slots=True)
class Changes:
    """The differences from the commit."""

    commit: str | None
    """The commit; None before the first commit, when every file is a change."""
    files: list[str] = field(default_factory=list)
    """The paths that differ, relative to the top, including those left out of the patch."""
    left_out: dict[str, str] = field(default_factory=dict)
    """The reason for each path that is left out of the patch."""
    inexact: list[str] = field(default_factory=list)
    """The paths whose line endings or filtered content git does not restore."""
    sections: list[Section] = field(default_factory=list)
    submodules: dict[str, str | None] = field(default_factory=dict)
    """The commit that is checked out in each submodule."""


def names(repository: Repository, excluded: Iterable[Path] = ()) -> list[str]:
    """Return the paths that differ from the commit, relative to the top, without making a patch.

    Raises:
        GitError: git fails.

    """
    return _Differences(repository, excluded, repository.commit()).names()


def collect(repository: Repository, excluded: Iterable[Path] = ()) -> Changes:
    """Return the differences from the commit that is checked out.

    Raises:
        GitError: git fails, or takes too long.

    """
    commit = repository.commit()
    found = Changes(commit)
    _Differences(repository, excluded, commit).collect(found)
    return found


class _Reason(NamedTuple):
    """The reason why an untracked file is left out because of its kind."""

    why: str
    place: str
    """The file, or the folder that is left out with it."""
    is_code: bool = False
    """Whether it still counts as a change."""


class _Entry(NamedTuple):
    """A file that differs between the base and the private index."""

    path: str
    mode: str
    """Six octal digits; zeros if the file does not exist."""
    oid: str
    old_mode: str
    old_oid: str


class _Differences:
    """The differences of one repository."""

    def __init__(
        self, repository: Repository, excluded: Iterable[Path], base: str | None, prefix: str = "", depth: int = 0
    ) -> None:
        self._repository = repository
        self._excluded = tuple(path.resolve() for path in excluded)
        self._base = base
        self.prefix = prefix
        self._depth = depth
        self._submodules_of_index = self._read_index()
        self._changed, self._new = self._read_tree()

    def names(self) -> list[str]:
        """Return the paths that differ."""
        staged = [entry.path for entry in self._staged(self._base or self._repository.empty_tree())]
        new = [path for path, reason in self._untracked() if reason is None or reason.is_code]
        found = {*staged, *self._changed, *new}
        unknown = Changes(None)
        inner = [name for one in self._submodules(unknown) for name in one.names()]
        return sorted([*(self.prefix + path for path in found), *inner, *unknown.left_out])

    def collect(self, found: Changes) -> None:
        """Add the differences to `found`."""
        added = self._add_changes(found)
        base = self._base or self._repository.empty_tree()
        staged = self._staged(base)
        found.files += [self.prefix + entry.path for entry in staged]
        self._check_exact(self._without_left_out(staged, found), found)
        how = ["-M", "-l200"] if not self.prefix else ["--no-renames"]  # git writes no prefix for renames
        made = self._repository.git(
            *("diff-index", "--cached", "-p", "--binary", "--full-index", *how),
            *("--no-ext-diff", "--no-textconv", "--no-color", "--ignore-submodules=all", "--no-relative"),
            *(f"--src-prefix=a/{self.prefix}", f"--dst-prefix=b/{self.prefix}", base),
        )
        found.sections += sections(made, first=lambda path: path.removeprefix(self.prefix) not in added)
        for one in self._submodules(found):
            try:
                one.collect(found)
            except BudgetError:
                raise
            except GitError as error:
                found.left_out[one.prefix] = str(error)

    def _git(self, *arguments: str, stdin: bytes = b"") -> bytes:
        return self._repository.git(*arguments, stdin=stdin)

    def _read_index(self) -> list[str]:
        """Clear the flags in the private index that hide changes of files; return the submodules."""
        submodules: list[str] = []
        assumed: list[bytes] = []  # the user told git to assume that they are unchanged
        skipped: list[bytes] = []  # excluded by the sparse checkout, but present
        for entry in self._git("ls-files", "-v", "--stage", "-z").split(b"\0")[:-1]:
            facts, _, path = entry.partition(b"\t")
            if facts[2:8] == _SUBMODULE.encode():
                submodules.append(os.fsdecode(path))
            elif facts[:1].islower():
                assumed.append(path)
            elif facts[:1] == b"S" and os.path.lexists(os.fsencode(self._repository.top) + b"/" + path):
                skipped.append(path)
        for option, paths in (("--no-assume-unchanged", assumed), ("--no-skip-worktree", skipped)):
            if paths:
                self._git("update-index", option, "-z", "--stdin", stdin=b"".join(path + b"\0" for path in paths))
        return submodules

    def _read_tree(self) -> tuple[dict[str, bool], list[str]]:
        """Return the files that differ from the index, each with whether it exists, and the untracked files."""
        options = "--porcelain=v2 -z --untracked-files=all --ignore-submodules=all --no-renames --no-ahead-behind"
        changed: dict[str, bool] = {}
        untracked = []
        for line in self._git("status", *options.split()).split(b"\0")[:-1]:
            kind, _, rest = os.fsdecode(line).partition(" ")
            if kind == "?":
                untracked.append(rest)
            elif kind in _FIELDS:
                path = rest.split(" ", _FIELDS[kind])[-1]
                state = rest[1]
                if kind == "u":
                    changed[path] = os.path.lexists(self._repository.top / path)
                elif state != ".":
                    changed[path] = state != "D"
        return changed, untracked

    def _untracked(self) -> Iterator[tuple[str, _Reason | None]]:
        """Yield each untracked path that is not ignored, with the reason if it is left out because of its kind."""
        environments = [path.removesuffix("pyvenv.cfg") for path in self._new if path.endswith("/pyvenv.cfg")]
        for path in self._new:
            yield path, self._reason(path, environments)

    def _reason(self, path: str, environments: list[str]) -> _Reason | None:
        if path.endswith("/"):
            return _Reason("a separate repository", path, is_code=True)
        for environment in environments:
            if path.startswith(environment):
                return _Reason("a virtual environment", environment)
        *folders, name = path.split("/")
        for number, folder in enumerate(folders, 1):
            if folder in _NOT_CODE:
                return _Reason(_NOT_CODE[folder], "/".join(folders[:number]) + "/")
        whole = self._repository.top / path
        for one in self._excluded:
            if whole == one:
                return _Reason(_RUN_STORE, path)
            if one in whole.parents:
                return _Reason(_RUN_STORE, f"{one.relative_to(self._repository.top)}/")
        why = next((why for pattern, why in _NOT_CODE_FILES.items() if pattern.fullmatch(name)), None)
        return None if why is None else _Reason(why, path)

    def _add_changes(self, found: Changes) -> set[str]:
        """Add the differences to the private index; return the paths of untracked files."""
        gone = [path for path, is_here in self._changed.items() if not is_here]
        here = [path for path, is_here in self._changed.items() if is_here]
        self._leave_out_lfs(here, found)
        here = [path for path in here if self._can_add(path, _LARGEST_CHANGED, found)]
        new = self._chosen(found)
        self._update(["--force-remove"], gone, found)
        self._update(["--add", "--remove", "--replace"], [*here, *new], found)
        return set(new)

    def _leave_out_lfs(self, paths: list[str], found: Changes) -> None:
        """Leave out the files of Git LFS, because a patch has only their checksums."""
        for path, name in self._filtered(paths).items():
            if name == "lfs":
                paths.remove(path)
                self._leave_out(path, _BY_LFS, found, is_listed=True)

    def _filtered(self, paths: list[str]) -> dict[str, str]:
        """Return the name of the git filter of each path that has one."""
        if not paths:
            return {}
        given = b"".join(os.fsencode(path) + b"\0" for path in paths)
        words = self._git("check-attr", "-z", "--stdin", "filter", stdin=given).split(b"\0")
        found = zip(words[::3], words[2::3], strict=False)
        return {os.fsdecode(path): name.decode() for path, name in found if name not in (b"unspecified", b"unset")}

    def _chosen(self, found: Changes) -> list[str]:
        """Return the untracked files to add: source code first, then the smallest, up to a limit."""
        sizes: dict[str, int] = {}
        for number, (path, reason) in enumerate(self._untracked()):
            if reason is not None:
                self._leave_out(reason.place, reason.why, found, is_listed=reason.is_code)
            elif number >= _MOST_NAMES:
                self._leave_out(path, "too many untracked files", found, is_listed=True)
            elif self._can_add(path, _LARGEST_NEW, found):
                sizes[path] = self._size(path)
        paths = sorted(sizes, key=lambda path: (PurePosixPath(path).suffix.lower() not in SOURCES, sizes[path]))
        chosen, total = [], 0
        for path in paths:
            total += sizes[path]
            if total > _MOST_NEW:
                self._leave_out(path, f"the untracked files exceed {_MOST_NEW} bytes", found, is_listed=True)
            else:
                chosen.append(path)
        self._leave_out_lfs(chosen, found)
        return chosen

    def _size(self, path: str) -> int:
        try:
            return (self._repository.top / path).lstat().st_size
        except OSError:
            return 0

    def _can_add(self, path: str, most: int, found: Changes) -> bool:
        whole = self._repository.top / path
        size = self._size(path)
        if size > most:
            self._leave_out(path, _too_large(size, most), found, is_listed=True)
        elif not whole.is_symlink() and whole.exists() and not os.access(whole, os.R_OK):
            self._leave_out(path, "it cannot be read", found, is_listed=True)
        else:
            return True
        return False

    def _leave_out(self, path: str, why: str, found: Changes, *, is_listed: bool) -> None:
        """Record that a path is left out of the patch; with `is_listed`, it still counts as a change."""
        found.left_out[self.prefix + path] = why
        if is_listed:
            found.files.append(self.prefix + path)

    def _update(self, options: list[str], paths: list[str], found: Changes) -> None:
        """Update the paths in the private index; leave out those that git cannot read or filter."""
        paths = list(dict.fromkeys(paths))
        while paths:
            given = b"".join(os.fsencode(path) + b"\0" for path in paths)
            try:
                self._git("update-index", *options, "-z", "--stdin", stdin=given)
            except BudgetError:
                raise
            except GitError as error:
                # Git stops at the first path that it cannot add, without any change; bisection finds that path.
                if len(paths) == 1:
                    self._leave_out(paths[0], f"git: {error}", found, is_listed=True)
                    return
                middle = len(paths) // 2
                self._update(options, paths[:middle], found)
                paths = paths[middle:]
            else:
                return

    def _staged(self, base: str) -> list[_Entry]:
        """Return the files that differ between the base and the private index."""
        words = self._git(
            "diff-index", "--cached", "--raw", "-z", "--no-renames", "--full-index", "--ignore-submodules=all", base
        ).split(b"\0")
        found = []
        for facts, path in zip(words[::2], words[1::2], strict=False):
            old_mode, mode, old_oid, oid, status = os.fsdecode(facts)[1:].split(" ")
            if status != "U":
                found.append(_Entry(os.fsdecode(path), mode, oid, old_mode, old_oid))
        return found

    def _without_left_out(self, staged: list[_Entry], found: Changes) -> list[_Entry]:
        """Reset entries that are left out to the base, including staged ones, and return the others."""
        ids = sorted({entry.oid for entry in staged if entry.mode != _NO_FILE})
        lines = self._git("cat-file", "--batch-check", stdin="".join(f"{oid}\n" for oid in ids).encode()).split(b"\n")
        sizes = {os.fsdecode(line.split(b" ")[0]): int(line.split(b" ")[2]) for line in lines if line.count(b" ") == 2}
        filters = self._filtered([entry.path for entry in staged])
        for entry in staged:
            if filters.get(entry.path) == "lfs":
                self._leave_out(entry.path, _BY_LFS, found, is_listed=False)
            elif (size := sizes.get(entry.oid, 0)) > _LARGEST_CHANGED:
                self._leave_out(entry.path, _too_large(size, _LARGEST_CHANGED), found, is_listed=False)
        out = [entry for entry in staged if self.prefix + entry.path in found.left_out]
        if out:
            self._set_entries([(entry.old_mode, entry.old_oid, entry.path) for entry in out])
        return [entry for entry in staged if entry not in out]

    def _check_exact(self, staged: list[_Entry], found: Changes) -> None:
        """Store files whose line endings git would change without conversion; record files that git still changes.

        A file with a filter is stored as the filter returns it, because the filter may have removed a secret.
        """
        wrong = self._differ([entry.path for entry in staged if entry.mode.startswith("100")])
        if not wrong:
            return
        modes = {entry.path: entry.mode for entry in staged}
        filtered = self._filtered(wrong)
        raw = [path for path in wrong if path not in filtered]
        for begin in range(0, len(raw), _AT_ONCE):
            paths = raw[begin : begin + _AT_ONCE]
            ids = self._git("hash-object", "-w", "--no-filters", "--", *paths).decode().split()
            self._set_entries([(modes[path], oid, path) for oid, path in zip(ids, paths, strict=True)])
        found.inexact += [self.prefix + path for path in [*self._differ(raw), *filtered]]

    def _set_entries(self, entries: Iterable[tuple[str, str, str]]) -> None:
        """Set entries of the private index to a mode and an object; the mode 0 removes an entry."""
        given = b"".join(
            f"{mode.lstrip('0') or 0} {oid}\t".encode() + os.fsencode(path) + b"\0" for mode, oid, path in entries
        )
        self._git("update-index", "-z", "--index-info", stdin=given)

    def _differ(self, paths: list[str]) -> list[str]:
        """Return the files that git would check out from the private index with different content."""
        if not paths:
            return []
        with tempfile.TemporaryDirectory(dir=self._repository.scratch) as out:
            given = b"".join(os.fsencode(path) + b"\0" for path in paths)
            self._git("checkout-index", "--force", f"--prefix={out}/", "-z", "--stdin", stdin=given)
            return [path for path in paths if not _is_same(Path(out, path), self._repository.top / path)]

    def _submodules(self, found: Changes) -> Iterator[_Differences]:
        for number, path in enumerate(self._submodules_of_index):
            folder = self._repository.top / path
            if not (folder / ".git").exists() or self._depth >= _DEEPEST:
                continue
            base = (
                self._repository.text("rev-parse", "--verify", "--quiet", f"{self._base}:{path}")
                if self._base
                else None
            )
            try:
                inner = gits.find(folder, self._repository.scratch / f"{number}", self._repository.budget)
                if inner is None:
                    continue
                found.submodules[self.prefix + path] = inner.commit()
                if base is None:
                    found.left_out[f"{self.prefix}{path}/"] = "the commit does not have this submodule"
                elif inner.text("cat-file", "-t", base) != "commit":
                    found.left_out[f"{self.prefix}{path}/"] = f"the submodule does not have the commit {base}"
                else:
                    yield _Differences(inner, self._excluded, base, f"{self.prefix}{path}/", self._depth + 1)
            except BudgetError:
                raise
            except GitError as error:
                found.left_out[f"{self.prefix}{path}/"] = f"git: {error}"


def _too_large(size: int, most: int) -> str:
    return f"{size} bytes exceed the limit of {most} bytes"


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.read_bytes() == other.read_bytes()
    except OSError:
        return False
