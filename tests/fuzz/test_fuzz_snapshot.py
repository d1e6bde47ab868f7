"""A clone at the commit with a snapshot's patch equals the work tree byte by byte."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from testkit import repositories

pytestmark = pytest.mark.skipif(not repositories.has_git(), reason="git is not installed")

LETTERS = st.sampled_from(
    [*"ab cd", "é", "日", "\U0001f600", '"', "'", "\\", "\t", "*", "[", "?", ":", "-", "#", "=", "\udcff", "\n"]
)
NAME = st.text(LETTERS, min_size=1, max_size=6).filter(lambda name: name not in (".", "..") and name.lower() != ".git")
PATHS = st.lists(
    st.tuples(st.sampled_from(["", "src/", "a b/", "ü/deep/"]), NAME).map("".join), min_size=1, max_size=6, unique=True
)
CONTENT = st.one_of(
    st.text(st.sampled_from("ab \t\r\n+-@\\é"), max_size=60).map(str.encode),
    st.lists(
        st.sampled_from(["x = 1", "def f():", "    return 2", "", "diff --git a/x b/x", "--- a/x", "+++ b/x"]),
        max_size=30,
    ).map(lambda lines: "\n".join([*lines, ""]).encode()),
    st.binary(max_size=200),
    st.binary(min_size=1, max_size=20).map(lambda part: b"\0" + part * 200),
)
KINDS = st.sampled_from(["file", "executable", "link"])
ACTIONS = st.sampled_from(["edit", "append", "delete", "mode", "rename", "replace", "folder"])


def put(folder: Path, name: str, kind: str, content: bytes) -> None:
    """Write a file or a link in place of any file, but not of a folder."""
    path = folder / name
    for parent in path.relative_to(folder).parents:
        if (folder / parent).is_symlink() or (folder / parent).is_file():
            return
    if path.is_dir() and not path.is_symlink():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(os.fsdecode(content.replace(b"\0", b"")[:40] or b"somewhere"))
    else:
        path.write_bytes(content)
        path.chmod(0o755 if kind == "executable" else 0o644)


def act(folder: Path, name: str, action: str, draw: st.DrawFn) -> None:
    """Change one aspect of a file."""
    path = folder / name
    if not os.path.lexists(path) or (path.is_dir() and not path.is_symlink()):
        return
    if action == "edit":
        put(folder, name, "link" if path.is_symlink() else "file", draw(CONTENT))
    elif action == "append" and not path.is_symlink():
        with path.open("ab") as file:
            file.write(draw(CONTENT))
    elif action == "delete":
        path.unlink()
    elif action == "mode" and not path.is_symlink():
        path.chmod(path.stat().st_mode ^ 0o111)
    elif action == "rename":
        new = folder / draw(NAME)
        if not os.path.lexists(new):
            path.rename(new)
    elif action == "replace":
        put(folder, name, draw(KINDS), draw(CONTENT))
    elif action == "folder":
        path.unlink()
        path.mkdir()
        (path / "inside.py").write_bytes(draw(CONTENT))


@settings(
    max_examples=settings().max_examples // 8,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking a failing example takes minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.data())
def test_the_patch_of_any_change_restores_the_same_bytes(data):
    """Changes are staged, unstaged and untracked, of all types, with any names and contents that git accepts."""
    with TemporaryDirectory() as place:
        folder, scratch = Path(place) / "repository", Path(place) / "scratch"
        folder.mkdir()
        repositories.git(folder, "init", "--quiet", "--initial-branch=main")
        paths = data.draw(PATHS)
        has_commit = data.draw(st.booleans())
        if has_commit:
            for name in paths:
                put(folder, name, data.draw(KINDS), data.draw(CONTENT))
            repositories.git(folder, "add", "--all")
            repositories.git(folder, "commit", "--quiet", "--allow-empty", "-m", "first")
        for stage in (True, False):
            for name in paths:
                for action in data.draw(st.lists(ACTIONS, max_size=2)):
                    act(folder, name, action, data.draw)
            for name in data.draw(PATHS):
                put(folder, name, data.draw(KINDS), data.draw(CONTENT))
            if stage and data.draw(st.booleans()):
                repositories.git(folder, "add", "--all")
        before = repositories.untouched(folder)

        found, patch = repositories.snapshot(folder, scratch)

        assert repositories.untouched(folder) == before
        assert (found.left_out, found.inexact) == ({}, [])
        clone = repositories.reproduce(folder, found.commit, patch, Path(place) / "clone")
        assert repositories.tree(clone) == repositories.tree(folder)
        assert bool(found.files) == bool(patch)
