"""A snapshot's patch restores the work tree byte by byte, and taking it leaves no trace in the repository."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from autogen_team._snapshot import changes
from autogen_team._snapshot import git as gits
from testkit import repositories
from testkit.repositories import git, write

pytestmark = pytest.mark.skipif(not repositories.has_git(), reason="git is not installed")

FILES = {
    "train.py": "def train():\n    return 1\n",
    "src/model.py": "layers = 3\n" * 20,
    "data.bin": bytes(range(256)) * 8,
    "run.sh": "#!/bin/sh\n",
    "a b/ü.txt": "text\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a repository with a commit."""
    return repositories.make(tmp_path / "repository", FILES)


def check(folder: Path, tmp_path: Path, *options: str) -> tuple[changes.Changes, bytes]:
    """Create a patch, apply it to a clone, and compare the files; return the changes and the patch."""
    before = repositories.untouched(folder)
    found, patch = repositories.snapshot(folder, tmp_path / "scratch")
    assert repositories.untouched(folder) == before
    clone = repositories.reproduce(folder, found.commit, patch, tmp_path / "clone", *options)
    assert repositories.tree(clone) == repositories.tree(folder)
    return found, patch


def edit(folder: Path) -> None:
    """Change a file."""
    write(folder, {"train.py": "def train():\n    return 2\n"})


def stage(folder: Path) -> None:
    """Change a file, and stage the change."""
    edit(folder)
    git(folder, "add", "train.py")


def stage_then_edit(folder: Path) -> None:
    """Change a staged file again."""
    stage(folder)
    write(folder, {"train.py": "print('both')\n"})


def add_files(folder: Path) -> None:
    """Add files of all types."""
    write(
        folder, {"new.py": "x = 1\n", "deep/er/new.bin": b"\0\1\2" * 99, "empty": "", "no line end": "x", "-f": "y\n"}
    )


def rename(folder: Path) -> None:
    """Rename a file with git."""
    git(folder, "mv", "src/model.py", "model 2.py")


def rename_unstaged(folder: Path) -> None:
    """Rename a file without git."""
    (folder / "src/model.py").rename(folder / "model.py")


def delete(folder: Path) -> None:
    """Delete one file without git, and another with git."""
    (folder / "data.bin").unlink()
    git(folder, "rm", "--quiet", "run.sh")


def remove_from_index_only(folder: Path) -> None:
    """Remove a file from the index, and keep it in the tree."""
    git(folder, "rm", "--quiet", "--cached", "train.py")


def change_binary(folder: Path) -> None:
    """Change a binary file."""
    write(folder, {"data.bin": bytes(range(255, -1, -1)) * 8})


def change_modes(folder: Path) -> None:
    """Make files executable."""
    (folder / "run.sh").chmod(0o755)
    write(folder, {"new.sh": "#!/bin/sh\n"})
    (folder / "new.sh").chmod(0o755)


def add_links(folder: Path) -> None:
    """Add links, one of them replacing a file."""
    (folder / "link").symlink_to("nowhere/at all")
    (folder / "train.py").unlink()
    (folder / "train.py").symlink_to("src/model.py")


def replace_folder_by_link(folder: Path) -> None:
    """Replace a folder by a link."""
    (folder / "src/model.py").rename(folder / "moved.py")
    (folder / "src").rmdir()
    (folder / "src").symlink_to("a b")


def replace_file_by_folder(folder: Path) -> None:
    """Replace a file by a folder."""
    (folder / "train.py").unlink()
    write(folder, {"train.py/inside.py": "x\n"})


def intend_to_add(folder: Path) -> None:
    """Mark a file with `git add --intent-to-add`."""
    write(folder, {"new.py": "x = 1\n"})
    git(folder, "add", "--intent-to-add", "new.py")


def hide_changes(folder: Path) -> None:
    """Change files that are marked unchanged in the index."""
    git(folder, "update-index", "--assume-unchanged", "train.py")
    git(folder, "update-index", "--skip-worktree", "run.sh")
    write(folder, {"train.py": "hidden\n", "run.sh": "#!/bin/bash\n"})


def conflict(folder: Path) -> None:
    """Stop in the middle of a merge."""
    git(folder, "checkout", "--quiet", "-b", "other")
    write(folder, {"train.py": "theirs\n"})
    git(folder, "commit", "--quiet", "-am", "theirs")
    git(folder, "checkout", "--quiet", "main")
    write(folder, {"train.py": "ours\n"})
    git(folder, "commit", "--quiet", "-am", "ours")
    with pytest.raises(AssertionError):
        git(folder, "merge", "other")


def change_within_a_tick(folder: Path) -> None:
    """Change a file after staging without changing its size or time; git notices only by the index's time."""
    stage(folder)
    path, index = folder / "train.py", folder / ".git/index"
    moment = path.stat().st_mtime_ns
    write(folder, {"train.py": "def train():\n    return 3\n"})
    os.utime(path, ns=(moment, moment))
    os.utime(index, ns=(moment, moment))


def add_empty_files(folder: Path) -> None:
    """Add empty files, in folders whose names `git apply` does not expect."""
    write(folder, {"ends with a blank /__init__.py": "", "a /b /c ": "", "plain/__init__.py": "", "blank ": ""})


KINDS = [
    add_empty_files,
    edit,
    stage,
    stage_then_edit,
    add_files,
    rename,
    rename_unstaged,
    delete,
    remove_from_index_only,
    change_binary,
    change_modes,
    add_links,
    replace_folder_by_link,
    replace_file_by_folder,
    intend_to_add,
    hide_changes,
    conflict,
    change_within_a_tick,
]


@pytest.mark.parametrize("change", KINDS, ids=lambda change: change.__name__)
def test_a_change_is_in_the_patch(folder, tmp_path, change):
    """A clone with the patch equals the tree byte by byte; the index, the tree and .git are unchanged."""
    change(folder)

    found, _ = check(folder, tmp_path)

    assert (bool(found.files), found.left_out, found.inexact) == (change is not remove_from_index_only, {}, [])


def test_a_clean_tree_has_an_empty_patch(folder, tmp_path):
    """A clean tree has an empty patch."""
    found, patch = check(folder, tmp_path)

    assert (found.files, patch, found.commit) == ([], b"", git(folder, "rev-parse", "HEAD"))


def test_ignored_files_are_not_in_the_patch(folder, tmp_path):
    """Files may be ignored by .gitignore and by the clone's exclude file."""
    write(folder, {".gitignore": "*.env\n", "secret.env": "x\n", ".git/info/exclude": "mine.txt\n", "mine.txt": "x\n"})

    found, patch = repositories.snapshot(folder, tmp_path / "scratch")

    assert found.files == [".gitignore"]
    assert b"secret.env" not in patch


def test_a_renamed_file_is_a_rename_in_the_patch(folder, tmp_path):
    """The patch is readable and small."""
    rename(folder)

    _, patch = check(folder, tmp_path)

    assert b"rename from src/model.py\nrename to model 2.py\n" in patch


def test_without_a_commit_everything_is_in_the_patch(tmp_path):
    """The patch applies to an empty folder."""
    folder = repositories.make(tmp_path / "repository")
    write(folder, FILES)
    git(folder, "add", "train.py")

    found, _ = check(folder, tmp_path)

    assert found.commit is None
    assert sorted(found.files) == sorted(FILES)


def test_a_subfolder_stands_for_the_whole_repository(folder, tmp_path):
    """A job started in src/ may import files outside it."""
    edit(folder)
    write(folder, {"src/new.py": "x\n"})

    repository = gits.find(folder / "src", tmp_path / "scratch", gits.Budget(60, 60))

    assert (repository.top, repository.folder) == (folder, "src")
    assert changes.collect(repository).files == ["src/new.py", "train.py"]


def test_a_worktree_has_its_own_changes(folder, tmp_path):
    """A worktree shares the repository's objects, and has its own index."""
    other = tmp_path / "other"
    git(folder, "worktree", "add", "--quiet", str(other))
    edit(other)
    write(folder, {"elsewhere.py": "x\n"})

    found, patch = repositories.snapshot(other, tmp_path / "scratch")

    assert found.files == ["train.py"]
    clone = repositories.reproduce(folder, found.commit, patch, tmp_path / "clone")
    assert (clone / "train.py").read_text() == (other / "train.py").read_text()


@pytest.fixture
def with_submodule(folder: Path, tmp_path: Path) -> Path:
    """Return a repository with a submodule `lib` and a nested submodule `lib/inner`."""
    inner = repositories.make(tmp_path / "inner", {"deep.py": "deep = 1\n"})
    lib = repositories.make(tmp_path / "lib", {"lib.py": "lib = 1\n", "old.py": "x\n" * 9})
    git(lib, "submodule", "--quiet", "add", str(inner), "inner")
    git(lib, "commit", "--quiet", "-m", "inner")
    git(folder, "submodule", "--quiet", "add", str(lib), "lib")
    git(folder, "submodule", "--quiet", "update", "--init", "--recursive")
    git(folder, "commit", "--quiet", "-m", "lib")
    return folder


def test_changes_in_submodules_are_in_the_same_patch(with_submodule, tmp_path):
    """Changes are relative to the commits that `git clone --recurse-submodules` checks out, at each depth."""
    folder = with_submodule
    edit(folder)
    write(folder, {"lib/lib.py": "lib = 2\n", "lib/new.py": "x\n", "lib/inner/deep.py": "deep = 2\n"})
    (folder / "lib/old.py").rename(folder / "lib/renamed.py")

    found, _ = check(folder, tmp_path)

    assert {"train.py", "lib/lib.py", "lib/new.py", "lib/inner/deep.py"} <= set(found.files)
    assert found.submodules == {one: git(folder / one, "rev-parse", "HEAD") for one in ("lib", "lib/inner")}


def test_a_submodule_at_another_commit_is_in_the_patch(with_submodule, tmp_path):
    """The change is in the patch, even if that commit was never pushed."""
    folder = with_submodule
    write(folder, {"lib/lib.py": "lib = 3\n"})
    git(folder / "lib", "commit", "--quiet", "-am", "not pushed")

    found, _ = check(folder, tmp_path)

    assert found.files == ["lib/lib.py"]


def test_a_new_submodule_is_left_out_and_reported(folder, tmp_path):
    """The commit does not contain the submodule's URL."""
    lib = repositories.make(tmp_path / "lib", {"lib.py": "lib = 1\n"})
    git(folder, "submodule", "--quiet", "add", str(lib), "lib")

    found, patch = repositories.snapshot(folder, tmp_path / "scratch")

    assert found.left_out == {"lib/": "the commit does not have this submodule"}
    assert found.files == [".gitmodules"]
    assert b"lib.py" not in patch


def test_a_nested_repository_is_left_out_and_reported(folder, tmp_path):
    """The repository may be a clone inside the folder."""
    repositories.make(folder / "vendor", {"lib.py": "x\n"})

    found, _ = repositories.snapshot(folder, tmp_path / "scratch")

    assert (found.files, found.left_out) == (["vendor/"], {"vendor/": "a separate repository"})


LINES = {"unix.txt": b"a\nb\n", "dos.txt": b"a\r\nb\r\n", "mixed.txt": b"a\r\nb\n", "bare.txt": b"a\rb"}


@pytest.mark.parametrize("setting", ["true", "input", "false"])
def test_line_endings_are_kept_with_any_setting(tmp_path, setting):
    """With the same core.autocrlf in the clone, files whose line endings git would change are reported."""
    folder = repositories.make(tmp_path / "repository", {**LINES, "clean.txt": b"a\nb\n"})
    git(folder, "config", "core.autocrlf", setting)
    write(folder, {f"new-{name}": content for name, content in LINES.items()})
    write(folder, {name: content + b"more" + content for name, content in LINES.items()})
    if setting == "true":  # as if checked out
        (folder / "clean.txt").write_bytes(b"a\r\nb\r\n")
    found, patch = repositories.snapshot(folder, tmp_path / "scratch")
    clone = repositories.reproduce(folder, found.commit, patch, tmp_path / "clone", "-c", f"core.autocrlf={setting}")
    here, there = repositories.tree(folder), repositories.tree(clone)

    assert {name for name in here if here[name] != there.get(name)} == set(found.inexact)
    assert here.keys() == there.keys()
    assert set(found.inexact) <= ({"unix.txt", "new-unix.txt"} if setting == "true" else set())


@pytest.mark.parametrize("attributes", ["* text=auto eol=crlf", "* text eol=lf", "*.txt -text", "* ident"])
def test_line_endings_of_gitattributes_are_kept(tmp_path, attributes):
    """Files whose line endings git would change are reported."""
    folder = repositories.make(tmp_path / "repository", {".gitattributes": attributes + "\n", "id.txt": "$Id$\n"})
    write(folder, LINES)

    found, patch = repositories.snapshot(folder, tmp_path / "scratch")
    clone = repositories.reproduce(folder, found.commit, patch, tmp_path / "clone")
    here, there = repositories.tree(folder), repositories.tree(clone)

    assert {name for name in LINES if here[name] != there.get(name)} == set(found.inexact)
    assert set(found.inexact) <= ({"unix.txt", "mixed.txt"} if "crlf" in attributes else set())


def test_a_reversible_filter_is_applied(tmp_path):
    """For git-crypt, for example, the patch has the encrypted and the clone the plain text."""
    folder = repositories.make(tmp_path / "repository", {".gitattributes": "*.key filter=turn\n"})
    turn = ("-c", "filter.turn.clean=tr a-z b-za", "-c", "filter.turn.smudge=tr b-za a-z")
    for setting in turn[1::2]:
        git(folder, "config", *setting.split("=", 1))
    write(folder, {"my.key": "plain\n"})

    found, patch = check(folder, tmp_path, *turn)

    assert b"plain" not in patch
    assert found.inexact == []


def test_content_removed_by_a_filter_is_not_in_the_patch(tmp_path):
    """A filter that removes secrets or outputs is applied, and the difference is reported."""
    folder = repositories.make(tmp_path / "repository", {".gitattributes": "*.ipynb filter=strip\n"})
    git(folder, "config", "filter.strip.clean", "grep -v output")
    write(folder, {"a.ipynb": "code\noutput\n"})

    found, patch = repositories.snapshot(folder, tmp_path / "scratch")

    assert found.inexact == ["a.ipynb"]
    assert b"+code" in patch
    assert b"output" not in patch


def test_files_of_git_lfs_are_left_out_and_reported(folder, tmp_path):
    """Git LFS is not run, because it would copy the files into .git."""
    write(folder, {".gitattributes": "*.bin filter=lfs diff=lfs -text\n"})
    git(folder, "config", "filter.lfs.clean", "touch .git/lfs-was-here && cat")
    change_binary(folder)
    write(folder, {"new.bin": b"\0" * 99, "staged.bin": b"\0" * 98})
    oid = git(folder, "hash-object", "-w", "--no-filters", "staged.bin")
    git(folder, "update-index", "--add", "--cacheinfo", f"100644,{oid},staged.bin")

    found, patch = repositories.snapshot(folder, tmp_path / "scratch")

    assert found.left_out == dict.fromkeys(["data.bin", "new.bin", "staged.bin"], "Git LFS stores it")
    assert found.files.count("staged.bin") == 1
    assert b".bin" not in patch.replace(b"+*.bin filter=lfs", b"")


def test_settings_of_the_user_do_not_change_the_patch(folder, tmp_path):
    """Prefixes, colours and diff programs of the user are ignored."""
    for name, value in {
        "diff.noprefix": "true",
        "diff.mnemonicPrefix": "true",
        "diff.external": "false",
        "diff.renames": "false",
        "diff.submodule": "log",
        "color.ui": "always",
        "core.quotePath": "false",
        "core.attributesFile": str(tmp_path / "attributes"),
    }.items():
        git(folder, "config", name, value)
    edit(folder)
    rename(folder)
    add_files(folder)

    check(folder, tmp_path)


def test_no_hook_is_run(folder, tmp_path):
    """Neither an index hook nor a file system monitor is run."""
    edit(folder)
    for name in ("post-index-change", "fsmonitor"):
        path = folder / ".git/hooks" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\ntouch {tmp_path}/{name}\n")
        path.chmod(0o755)
    git(folder, "config", "core.fsmonitor", str(folder / ".git/hooks/fsmonitor"))

    repositories.snapshot(folder, tmp_path / "scratch")

    assert not any((tmp_path / name).exists() for name in ("post-index-change", "fsmonitor"))


def test_a_locked_index_does_not_matter(folder, tmp_path):
    """The index may be locked by another git process."""
    edit(folder)
    (folder / ".git/index.lock").touch()

    check(folder, tmp_path)


def test_the_variables_of_a_hook_do_not_matter(folder, tmp_path, monkeypatch):
    """Git sets variables for its hooks, and a job started by a hook inherits them."""
    other = repositories.make(tmp_path / "other", {"other.py": "x\n"})
    edit(folder)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git/index"))

    found, _ = repositories.snapshot(folder, tmp_path / "scratch")

    assert found.files == ["train.py"]


NOT_CODE = {
    "mlflow.db": "a store of runs",
    "mlruns/": "a store of runs",
    "data/store/": "a store of runs",
    "env/": "a virtual environment",
    "src/__pycache__/": "compiled code",
    "job.log": "a log",
}


def test_files_that_are_not_code_are_left_out(folder, tmp_path):
    """Stores of runs, virtual environments and compiled files are left out even if .gitignore does not list them."""
    names = ["mlflow.db", "mlruns/1/meta.yaml", "env/pyvenv.cfg", "env/lib/numpy.py", "job.log", "data/store/x.py"]
    write(folder, dict.fromkeys([*names, "src/__pycache__/model.pyc"], "x\n"))
    repository = gits.find(folder, tmp_path / "scratch", gits.Budget(60, 60))

    found = changes.collect(repository, [folder / "data/store"])

    assert (found.files, found.sections, found.left_out) == ([], [], NOT_CODE)


def test_large_files_are_left_out_and_reported(folder, tmp_path):
    """New, changed and staged large files are left out; a small change in a large file is not."""
    large = os.urandom(2_000_000)
    lines = "".join(f"line {number}\n" for number in range(200_000))
    write(folder, {"lines.csv": lines})
    git(folder, "add", "lines.csv")
    git(folder, "commit", "--quiet", "-m", "lines")
    write(folder, {"new.bin": large, "lines.csv": lines + "one more\n", "data.bin": large * 5, "staged.bin": large * 5})
    git(folder, "add", "staged.bin")
    write(folder, {"small.py": "x\n"})

    found, patch = repositories.snapshot(folder, tmp_path / "scratch")

    assert found.left_out == {
        "new.bin": "2000000 bytes exceed the limit of 1000000 bytes",
        "data.bin": "10000000 bytes exceed the limit of 8000000 bytes",
        "staged.bin": "10000000 bytes exceed the limit of 8000000 bytes",
    }
    assert sorted(found.files) == ["data.bin", "lines.csv", "new.bin", "small.py", "staged.bin"]
    assert len(patch) < 1000


def test_source_code_precedes_other_new_files(folder, tmp_path):
    """At most four megabytes of new files are examined, source code of any size before data."""
    write(folder, {f"{number}.dat": bytes([number]) * 500_000 for number in range(10)})
    write(folder, {"zz.py": "x\n" * 100_000})

    found, patch = repositories.snapshot(folder, tmp_path / "scratch")

    assert b"zz.py" in patch
    assert len(found.left_out) == 3
    assert set(found.left_out.values()) == {"the untracked files exceed 4000000 bytes"}


def test_a_file_that_git_cannot_add_is_left_out_and_reported(folder, tmp_path):
    """The other files are in the patch."""
    write(folder, {".gitattributes": "*.x filter=broken\n", "a.x": "x\n", "b.py": "x\n", "c.x": "x\n"})
    git(folder, "config", "filter.broken.clean", "false")
    git(folder, "config", "filter.broken.required", "true")

    found, patch = repositories.snapshot(folder, tmp_path / "scratch")

    assert set(found.left_out) == {"a.x", "c.x"}
    assert b"b.py" in patch


def test_the_time_is_bounded(folder, tmp_path):
    """The time is limited if a filter hangs, for example."""
    write(folder, {".gitattributes": "*.x filter=slow\n", "a.x": "x\n"})
    git(folder, "config", "filter.slow.clean", "sleep 60")
    repository = gits.find(folder, tmp_path / "scratch", gits.Budget(60.0, 2.0))

    with pytest.raises(gits.BudgetError, match="more than 2 s"):
        changes.collect(repository)


def test_without_a_repository_none_is_found(tmp_path):
    """A bare repository does not count either."""
    git(tmp_path, "init", "--quiet", "--bare", "bare.git")

    assert gits.find(tmp_path, tmp_path / "1", gits.Budget(60, 60)) is None
    assert gits.find(tmp_path / "bare.git", tmp_path / "2", gits.Budget(60, 60)) is None


def test_without_git_an_error_is_raised(folder, tmp_path, monkeypatch):
    """A missing git raises its own error."""
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(gits.GitIsMissingError, match="git is not installed on this machine"):
        gits.find(folder, tmp_path / "scratch", gits.Budget(60, 60))


def test_the_remote_is_known_without_its_password(folder, tmp_path):
    """The information includes whether the commit was pushed."""
    git(folder, "remote", "add", "upstream", "https://ada:example-secret@host/a.git")
    repository = gits.find(folder, tmp_path / "scratch", gits.Budget(60, 60))

    assert (repository.remote(), repository.is_pushed()) == ("https://host/a.git", False)
    git(folder, "update-ref", "refs/remotes/upstream/main", "HEAD")
    assert repository.is_pushed()


def test_names_equal_those_of_the_patch(with_submodule, tmp_path):
    """`--require-clean` uses the names without creating a patch."""
    folder = with_submodule
    stage(folder)
    delete(folder)
    write(folder, {"new.py": "x\n", "lib/lib.py": "lib = 2\n", "mlflow.db": "x"})
    repository = gits.find(folder, tmp_path / "scratch", gits.Budget(60, 60))

    assert changes.names(repository) == ["data.bin", "lib/lib.py", "new.py", "run.sh", "train.py"]


def test_a_shallow_or_partial_clone_fetches_nothing(folder, tmp_path):
    """Missing objects are on the remote, which may be down."""
    git(folder, "config", "uploadpack.allowFilter", "true")
    clone = tmp_path / "partial"
    git(tmp_path, "clone", "--quiet", "--depth=1", "--filter=blob:none", f"file://{folder}", str(clone))
    shutil.rmtree(folder)
    write(clone, {"train.py": "x\n"})

    found, patch = repositories.snapshot(clone, tmp_path / "scratch")

    assert found.files == ["train.py"]
    assert b"+x" in patch
