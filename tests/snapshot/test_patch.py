"""A patch contains no secret, and a masked patch states the consequences for `git apply`."""

from __future__ import annotations

from pathlib import Path

import pytest

from autogen_team._redact import Redactor
from autogen_team._snapshot import patch
from testkit import corpus, repositories
from testkit.repositories import git, write

pytestmark = pytest.mark.skipif(not repositories.has_git(), reason="git is not installed")

KEY = corpus.KEYS["openai"]
PRIVATE = "-----BEGIN RSA PRIVATE" + " KEY-----\n" + "MIIEow\n" * 8 + "-----END RSA PRIVATE" + " KEY-----\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a repository with a commit."""
    return repositories.make(tmp_path / "repository", {"a.py": "first = 1\nsecond = 2\n", "b.py": "x = 1\n"})


def masked(folder: Path, tmp_path: Path) -> tuple[list[patch.Section], bytes]:
    """Return the masked sections, and the patch as it is stored."""
    found, _ = repositories.snapshot(folder, tmp_path / "scratch")
    mask, mask_code = Redactor({}), Redactor({}, in_code=True)
    kept = [
        one for one in found.sections if patch.without_secrets(one, mask, mask_code, lambda suffix: suffix == ".py")
    ]
    return kept, patch.preamble(kept, 0, mask) + b"".join(one.text for one in kept)


def applied(folder: Path, text: bytes, tmp_path: Path, *options: str) -> Path:
    """Return a clone to which git has applied the patch."""
    clone = repositories.reproduce(folder, git(folder, "rev-parse", "HEAD"), b"", tmp_path / "clone")
    (tmp_path / "changes.patch").write_bytes(text)
    git(clone, "apply", *options, str(tmp_path / "changes.patch"))
    return clone


def test_a_secret_in_a_new_line_is_masked_and_the_patch_applies(folder, tmp_path):
    """The file contains the mask, and the first lines of the patch state it."""
    write(folder, {"a.py": f"first = 1\nkey = '{KEY}'\nsecond = 2\n", "b.py": "x = 2\n"})

    _, text = masked(folder, tmp_path)

    assert KEY.encode() not in text
    assert text.startswith(b"autogen-team: secrets are masked in this patch, so it does not restore the exact bytes")
    assert b"  masked, applies, and writes the mask: 'a.py'\ndiff --git a/a.py" in text
    clone = applied(folder, text, tmp_path)
    assert (clone / "a.py").read_text() == "first = 1\nkey = '***'\nsecond = 2\n"
    assert (clone / "b.py").read_text() == "x = 2\n"


@pytest.mark.parametrize(
    "new", ["first = 1\nsecond = 2\n", "first = 1\nkey = '{}'\nsecond = 3\n"], ids=["removed", "beside"]
)
def test_a_secret_in_a_context_line_is_masked_and_reported(folder, tmp_path, new):
    """The secret is in a removed or an unchanged line; the other files apply without this one."""
    write(folder, {"a.py": f"first = 1\nkey = '{KEY}'\nsecond = 2\n"})
    git(folder, "commit", "--quiet", "-am", "a secret")
    write(folder, {"a.py": new.format(KEY), "b.py": "x = 2\n"})

    kept, text = masked(folder, tmp_path)

    assert KEY.encode() not in text
    assert [one.path for one in kept if not one.applies] == ["a.py"]
    assert b"masked, does not apply: 'a.py'\nautogen-team: some parts do not apply: skip them" in text
    with pytest.raises(AssertionError, match=r"patch failed: a\.py"):
        applied(folder, text, tmp_path)
    git(tmp_path / "clone", "apply", "--exclude=a.py", str(tmp_path / "changes.patch"))
    assert (tmp_path / "clone" / "b.py").read_text() == "x = 2\n"


def test_a_private_key_is_masked_in_each_line(folder, tmp_path):
    """The number of lines stays, so the patch is valid."""
    write(folder, {"key.txt": f"before\n{PRIVATE}after\n", "b.py": "x = 2\n"})

    _, text = masked(folder, tmp_path)

    assert b"MIIEow" not in text
    lines = (applied(folder, text, tmp_path) / "key.txt").read_text().splitlines()
    assert len(lines) == 12
    assert (lines[0], lines[-1]) == ("before", "after")


@pytest.mark.parametrize("encoding", ["ascii", "utf-16"])
@pytest.mark.parametrize("action", ["added", "removed"])
def test_a_binary_file_with_a_secret_is_left_out(folder, tmp_path, encoding, action):
    """A mask would break the file; the old content counts too."""
    content = b"\0\1\2" * 50 + f" {KEY} ".encode(encoding) + b"\0\3" * 50
    if action != "added":
        write(folder, {"x.bin": content})
        git(folder, "add", "x.bin")
        git(folder, "commit", "--quiet", "-m", "binary")
        (folder / "x.bin").unlink()
    if action != "removed":
        write(folder, {"x.bin": content + b"\0" * 999})
    write(folder, {"y.bin": bytes(range(256)) * 4})

    kept, _ = masked(folder, tmp_path)

    assert [one.path for one in kept] == ["y.bin"]


def test_variables_in_source_code_are_not_secrets(folder, tmp_path):
    """`password=password` passes a variable in source code, and is a password in a settings file."""
    code = "connect(password=password, token=self.token)\napi_key = settings.api_key\n"
    write(folder, {"a.py": code, "settings.env": "password=hunter2\n"})

    kept, _ = masked(folder, tmp_path)

    assert {one.path: one.masked_lines for one in kept} == {"a.py": 0, "settings.env": 1}


@pytest.mark.parametrize("suffix", ["py", "yaml", "txt"])
def test_no_secret_of_the_corpus_is_in_a_patch(folder, tmp_path, suffix):
    """Each secret is masked in each place."""
    keys = [place.format(key) for key in corpus.KEYS.values() for place in corpus.PLACES]
    named = [place.format(corpus.written(one, how)) for place, how in corpus.NAMED for one in corpus.PASSWORDS]
    urls = [f"url = 'postgresql://bob:{password}@db/runs'" for password in corpus.URL_PASSWORDS]
    write(folder, {f"a.{suffix}": "\n".join([*keys, *named, *urls, ""])})

    _, text = masked(folder, tmp_path)

    shown = text.decode()
    assert [key for key in corpus.KEYS.values() if key in shown] == []
    assert "Sesame" not in shown
    assert "hunter2" not in shown


def test_a_patch_without_secrets_is_unchanged(folder, tmp_path):
    """A patch without secrets has neither a preamble nor a mask."""
    write(folder, {"a.txt": "\n".join(corpus.HARMLESS)})

    _, text = masked(folder, tmp_path)

    assert text.startswith(b"diff --git")
    assert b"***" not in text


def test_a_secret_in_the_name_of_a_function_or_file_is_masked(folder, tmp_path):
    """Git repeats the function's line before a change."""
    body = "".join(f"    x = {number}\n" for number in range(20))
    write(folder, {"a.py": f"def f(key='{KEY}'):\n{body}"})
    git(folder, "commit", "--quiet", "-am", "function")
    write(folder, {"a.py": f"def f(key='{KEY}'):\n{body}    y = 1\n", f"{KEY}.txt": "x\n"})

    kept, text = masked(folder, tmp_path)

    assert KEY.encode() not in text
    assert [one.applies for one in kept] == [True, False]


def test_a_patch_has_a_limited_size_and_tracked_files_come_first():
    """Sections that fit the limit are kept in order."""
    found = [
        patch.Section("new.bin", b"x" * 500, is_first=False),
        patch.Section("large.py", b"x" * 900),
        patch.Section("small.py", b"x" * 100),
        patch.Section("new.py", b"x" * 20, is_first=False),
    ]

    kept, rest = patch.within(found, 1020)

    assert [one.path for one in kept] == ["large.py", "small.py", "new.py"]
    assert [one.path for one in rest] == ["new.bin"]


@pytest.mark.parametrize("name", ["a b", "ü", 'q"', "t\tab", "b/a b/b", "end ", " a"])
@pytest.mark.parametrize("content", ["text\n", "", b"\0\1"], ids=["text", "empty", "binary"])
def test_a_section_knows_its_path(folder, tmp_path, name, content):
    """The path is found for any way in which git quotes it."""
    write(folder, {name: content})

    found, _ = repositories.snapshot(folder, tmp_path / "scratch")

    assert [one.path for one in found.sections] == [name]
