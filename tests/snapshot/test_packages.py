"""`packages.txt` equals the output of `pip freeze --all`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from autogen_team._snapshot import packages


def install(folder: Path, name: str, version: str, direct: object = None) -> None:
    """Write the metadata that an installer writes for a distribution."""
    place = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nName: wrong\n")
    if direct is not None:
        (place / "direct_url.json").write_text(json.dumps(direct))


def nowhere(_folder: Path) -> tuple[None, None, str]:
    """Return that a folder is not in a repository."""
    return None, None, ""


def test_the_list_equals_that_of_pip():
    """Compared in the test environment, except for editable installs."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "freeze", "--all"], capture_output=True, text=True, check=True, cwd="/"
    )
    lines, _ = packages.freeze(sys.path[1:], nowhere)

    def comparable(found):
        return sorted(line for line in found if not line.startswith(("-e", "#")))

    assert comparable(lines) == comparable(done.stdout.splitlines())
    assert len(lines) > 50


def test_the_origin_of_a_package_is_written_as_by_pip(tmp_path):
    """The origin may be a repository, an archive or a folder; passwords in URLs are removed."""
    install(tmp_path, "plain", "1.0")
    vcs = {"vcs": "git", "commit_id": "abc"}
    install(tmp_path, "from-git", "1", {"url": "https://ada:example-secret@host/a.git", "vcs_info": vcs})
    install(tmp_path, "inside", "1", {"url": "https://host/a.git", "vcs_info": vcs, "subdirectory": "b"})
    install(tmp_path, "wheel", "1", {"url": "https://host/a.whl", "archive_info": {"hashes": {"sha256": "12"}}})
    install(tmp_path, "folder", "1", {"url": "file:///src/a%20b", "dir_info": {}})

    assert packages.freeze([str(tmp_path)], nowhere)[0] == [
        "folder @ file:///src/a%20b",
        "from-git @ git+https://host/a.git@abc",
        "inside @ git+https://host/a.git@abc#subdirectory=b",
        "plain==1.0",
        "wheel @ https://host/a.whl#sha256=12",
    ]


def test_an_editable_install_has_its_commit(tmp_path):
    """The commit is given if the folder is in a repository with a remote."""
    install(tmp_path, "my-tool", "1", {"url": "file:///src/a%20b", "dir_info": {"editable": True}})

    assert packages.freeze([str(tmp_path)], lambda _: ("git@host:a/b.git", "abc", "sub")) == (
        ["-e git+ssh://git@host/a/b.git@abc#egg=my_tool&subdirectory=sub"],
        {"my-tool": "/src/a b"},
    )
    assert packages.freeze([str(tmp_path)], nowhere)[0] == [
        "# editable install without a known remote (my-tool==1)",
        "-e /src/a b",
    ]


def test_the_first_of_two_distributions_wins(tmp_path):
    """The first distribution on the path wins, as in `import`."""
    install(tmp_path / "1", "a", "1")
    install(tmp_path / "2", "A", "2")

    assert packages.freeze([str(tmp_path / "1"), str(tmp_path / "2")], nowhere)[0] == ["a==1"]


def test_broken_metadata_is_skipped(tmp_path):
    """A folder without metadata and invalid JSON of an origin are skipped."""
    (tmp_path / "empty-1.dist-info").mkdir()
    install(tmp_path, "b", "1")
    (tmp_path / "b-1.dist-info/direct_url.json").write_text("{")

    assert packages.freeze([str(tmp_path)], nowhere)[0] == ["b==1"]
