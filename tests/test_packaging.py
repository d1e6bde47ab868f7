"""Content of the wheel, and locks that state exactly what is installed with it."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import autogen_team

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ["dev.txt", "docs.txt", "oldest.txt", "spark.txt", "uv.txt"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel, built from this tree by the build backend."""
    pytest.importorskip("hatchling", reason="the build backend is a development dependency")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


def text_of(wheel: Path, name: str) -> str:
    """Return the text of a file of the wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"autogen_team-{autogen_team.__version__}.dist-info/{name}").decode()


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    """The wheel has every module and the `py.typed` marker, but no tests, documents or compiled files."""
    sources = (ROOT / "src").rglob("*")
    modules = {
        str(path.relative_to(ROOT / "src")) for path in sources if path.suffix == ".py" or path.name == "py.typed"
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}

    assert wheel.name == f"autogen_team-{autogen_team.__version__}-py3-none-any.whl"
    assert "autogen_team/py.typed" in names
    assert names == modules


def test_the_metadata_is_that_of_the_project(wheel):
    """Name, version, Python, licence, requirements and extras."""
    metadata = email.message_from_string(text_of(wheel, "METADATA"))
    extras = PROJECT["optional-dependencies"]

    assert metadata["Name"] == "autogen-team"
    assert metadata["Version"] == autogen_team.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert set(metadata.get_all("Provides-Extra")) == set(extras)
    every = [*PROJECT["dependencies"], *chain.from_iterable(extras.values())]
    expected = {Requirement(each).name for each in every}
    assert {Requirement(each).name for each in metadata.get_all("Requires-Dist")} == expected
    assert "One global context for an ML or LLM job" in metadata.get_payload()
    assert "Copyright" in text_of(wheel, "licenses/LICENSE")


def test_the_wheel_installs_the_command(wheel):
    """The command is installed under its name."""
    assert text_of(wheel, "entry_points.txt").split("\n")[:2] == [
        "[console_scripts]",
        "autogen-team = autogen_team.cli:main",
    ]


def test_the_wheel_works_without_the_source_tree(wheel, tmp_path):
    """Unpacked as by an installer, the wheel runs a job."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import autogen_team; print(autogen_team.__file__);"
        "from autogen_team import AlertsService; AlertsService(enable=False).notify('done', 'model trained')"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert found.stdout.splitlines() == [
        str(tmp_path / "site/autogen_team/__init__.py"),
        "[autogen_team] done: model trained",
    ]


def requirements_of(lock: str) -> Iterator[str]:
    """Return each requirement of a lock as one line, hashes included."""
    text = (ROOT / "requirements" / lock).read_text().replace("\\\n", " ")
    return (line for line in text.splitlines() if line.strip() and not line.startswith("#"))


def pinned_by(lock: str) -> dict[str, Version]:
    """Return the versions pinned in a lock; a package may occur once per Python version."""
    found = {}
    for line in requirements_of(lock):
        requirement = Requirement(line.split(" --hash")[0].strip())
        if requirement.marker is None or requirement.marker.evaluate({"python_full_version": "3.11.0"}):
            (pin,) = requirement.specifier
            found[requirement.name] = Version(pin.version)
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_hashes_and_no_addresses(lock):
    """The same packages, or an error, result from any index."""
    lines = list(requirements_of(lock))

    assert lines
    assert [line for line in lines if "==" not in line or "--hash=sha256:" not in line] == []
    text = (ROOT / "requirements" / lock).read_text()
    assert [word for word in ("://", "--index", "--extra-index", "--find-links", " @ ") if word in text] == []


def test_every_file_of_requirements_is_a_lock_or_an_exception():
    """A new file must not bypass the hashes."""
    files = {path.name for path in (ROOT / "requirements").iterdir()}

    in_venvs_of_their_own = {"peers.txt", "frameworks.txt"}
    assert files == {*LOCKS, "oldest.in", *in_venvs_of_their_own}


SUPPORTED = [
    Requirement(each)
    for each in [
        *PROJECT["dependencies"],
        *(each for extra in ("alerts", "dask", "gpu", "ray") for each in PROJECT["optional-dependencies"][extra]),
    ]
]


@pytest.mark.parametrize("requirement", SUPPORTED, ids=lambda requirement: requirement.name)
def test_the_locks_are_within_the_supported_versions(requirement):
    """`make test-oldest` installs the lowest versions in pyproject.toml; the locked versions are within its bounds."""
    (floor,) = (Version(each.version) for each in requirement.specifier if each.operator == ">=")
    oldest = pinned_by("oldest.txt")[requirement.name]

    assert oldest.release[: len(floor.release)] == floor.release
    assert pinned_by("dev.txt")[requirement.name] in requirement.specifier
