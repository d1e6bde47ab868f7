"""Importing is cheap, and every public module says what is public."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import autogen_team

HEAVY = [
    "mlflow",
    "sqlalchemy",
    "pandas",
    "numpy",
    "typer",
    "rich",
    "apprise",
    "jeepney",
    "orjson",
    "loguru",
    "platformdirs",
]
PUBLIC = [
    module.name
    for module in pkgutil.walk_packages(autogen_team.__path__, "autogen_team.")
    if not any(part.startswith("_") for part in module.name.split("."))
]


def loaded_by(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter has after the statement."""
    code = f"import sys; {statement}; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(output.split())


@pytest.mark.parametrize(
    "module", ["autogen_team", "autogen_team.io.services", "autogen_team.context", "autogen_team.cli"]
)
def test_importing_loads_nothing_heavy(module):
    """Whoever only wants the configuration does not pay for the engines."""
    assert loaded_by(f"import {module}") & set(HEAVY) == set()


def test_importing_the_package_loads_no_pydantic_either():
    """The names are there, and loaded when they are used."""
    assert "pydantic" not in loaded_by("import autogen_team; dir(autogen_team)")


@pytest.mark.parametrize("name", ["autogen_team", *PUBLIC])
def test_what_is_public_exists(name):
    """`__all__` names what is there, of every public module."""
    module = importlib.import_module(name)
    if name.endswith("__main__") or name.startswith("autogen_team.cli.") or name == "autogen_team.io":
        return

    assert sorted(module.__all__) == sorted(set(module.__all__))
    for public in module.__all__:
        assert getattr(module, public) is not None


def test_the_package_shows_its_names():
    """In an interactive session, before any of them is loaded."""
    assert set(autogen_team.__all__) <= set(dir(autogen_team))


def test_an_unknown_name_is_an_attribute_error():
    """As of any module."""
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        autogen_team.Nothing  # noqa: B018 - it is the asking that counts


def test_the_package_runs_as_a_module():
    """`python -m autogen_team` is the command."""
    command = [sys.executable, "-m", "autogen_team", "--version"]

    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == (
        f"autogen-team {autogen_team.__version__}\n"
    )
