"""Imports are cheap, and every public module declares its public names."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import autogen_team
from autogen_team._services.settings import descriptions

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
    """Return the modules that a new interpreter has imported after the statement."""
    code = f"import sys; {statement}; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(output.split())


@pytest.mark.parametrize(
    "module", ["autogen_team", "autogen_team.io.services", "autogen_team.context", "autogen_team.cli"]
)
def test_importing_loads_nothing_heavy(module):
    """Importing the configuration does not import the engines."""
    assert loaded_by(f"import {module}") & set(HEAVY) == set()


def test_importing_the_package_loads_no_pydantic_either():
    """Names of the package are imported at their first use."""
    assert "pydantic" not in loaded_by("import autogen_team; dir(autogen_team)")


def defined_in(module: ModuleType) -> set[str]:
    """Return the names that the module defines itself and that do not begin with `_`."""
    found = set()
    for node in ast.parse(inspect.getsource(module)).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize("name", ["autogen_team", *PUBLIC])
def test_a_public_module_declares_its_public_names(name):
    """`__all__` lists every name that the module defines, only existing names, and each once."""
    module = importlib.import_module(name)
    said = getattr(module, "__all__", [])

    assert defined_in(module) <= set(said)
    assert len(said) == len(set(said))
    assert [public for public in said if not hasattr(module, public)] == []


def undocumented(name: str, value: object) -> list[str]:
    """Return the parts without a docstring: the value itself and public members of our classes."""
    found = [] if inspect.getdoc(value) else [name]
    if inspect.isclass(value):
        for member, what in vars(value).items():
            if not member.startswith("_") and (inspect.isroutine(what) or isinstance(what, (property, type))):
                found += undocumented(f"{name}.{member}", what)
        fields = getattr(value, "__pydantic_fields__", {})
        found += [f"{name}.{field}" for field in fields if not descriptions(value).get(field)]
    return found


@pytest.mark.parametrize("name", ["autogen_team", *PUBLIC])
def test_public_names_are_documented(name):
    """The module, its names, and methods and fields of its classes have docstrings."""
    module = importlib.import_module(name)
    missing = [
        one
        for public in getattr(module, "__all__", [])
        if not public.startswith("__")
        for one in undocumented(public, getattr(module, public))
    ]

    assert module.__doc__
    assert missing == []


def test_the_package_shows_its_names():
    """`dir` lists all names before any of them is imported."""
    assert set(autogen_team.__all__) <= set(dir(autogen_team))


def test_an_unknown_name_is_an_attribute_error():
    """The package raises AttributeError, like any module."""
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        autogen_team.Nothing  # noqa: B018 - it is the asking that counts


def test_the_package_runs_as_a_module():
    """`python -m autogen_team` is the command."""
    command = [sys.executable, "-m", "autogen_team", "--version"]

    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == (
        f"autogen-team {autogen_team.__version__}\n"
    )
