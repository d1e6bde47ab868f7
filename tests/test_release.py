"""Parts of a release: an sdist with the tests, a conda recipe, and a check of version and tag."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

import autogen_team

ROOT = Path(__file__).parent.parent
CHANGES = "# Changelog\n\n## [1.2.0] - 2026-11-30\n"


def script(name: str):
    """Load a script of `.ci` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_sdist_contains_all_that_its_tests_need(tmp_path):
    """The sdist has every committed file, and no local file."""
    pytest.importorskip("hatchling", reason="the build backend is a development dependency")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    committed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    expected = set(committed.splitlines()) or {"conftest.py", "tests/conftest.py", "Makefile", ".ci/run"}

    assert names - {"PKG-INFO"} >= expected
    assert not [name for name in names if ".venv" in name or "__pycache__" in name]


def test_the_recipe_has_the_dependencies_of_the_project(tmp_path):
    """The recipe has the sdist's version and checksum."""
    sdist = tmp_path / "autogen_team-1.2.0.tar.gz"
    sdist.write_bytes(b"")
    command = [sys.executable, ROOT / ".ci" / "conda_recipe.py", sdist, "https://example.org/x.tar.gz"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    recipe = yaml.safe_load(out)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert recipe["context"] == {"name": "autogen-team", "version": "1.2.0", "python_min": "3.11"}
    assert recipe["source"]["sha256"] == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert len(recipe["requirements"]["run"]) == 1 + len(project["dependencies"])
    assert "jeepney >=0.9" in recipe["requirements"]["run"]
    assert recipe["build"]["python"]["entry_points"] == ["autogen-team = autogen_team.cli:main"]


def test_a_consistent_release_has_no_faults():
    """Tag, CHANGELOG and tree agree."""
    assert script("release_check").faults("1.2.0", ["v1.2.0"], CHANGES, []) == []


@pytest.mark.parametrize(
    ("tags", "changes", "changed", "told"),
    [
        ([], CHANGES, [], "git tag v1.2.0"),
        (["v1.2.1"], CHANGES, [], "['v1.2.1'], not v1.2.0"),
        (["v1.2.0"], "## [Unreleased]\n", [], "rename '## [Unreleased]'"),
        (["v1.2.0"], CHANGES, ["README.md"], "not committed: README.md"),
    ],
)
def test_an_inconsistency_is_named(tags, changes, changed, told):
    """The fault says what to do."""
    (fault,) = script("release_check").faults("1.2.0", tags, changes, changed)

    assert told in fault


def test_this_tree_can_be_checked():
    """The check runs on this tree; whether the tree can be released is not tested."""
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "release_check.py"], capture_output=True, text=True, check=False
    )

    assert done.stderr == "" or "not a git repository" in done.stderr
    assert done.returncode == 0 or f"v{autogen_team.__version__}" in done.stdout or done.stderr
