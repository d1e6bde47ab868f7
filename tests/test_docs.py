"""What is written down agrees with the code."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_readme_lists_the_settings_as_they_are():
    """`make readme` writes them."""
    path = ROOT / "docs" / "settings_table.py"
    spec = importlib.util.spec_from_file_location("settings_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    readme = (ROOT / "README.md").read_text()

    assert module.with_table(readme) == readme


def test_every_module_of_the_errors_is_documented():
    """The tree in the docstring names each class."""
    from autogen_team import errors

    for name in errors.__all__:
        assert name in errors.__doc__
