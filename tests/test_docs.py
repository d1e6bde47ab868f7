"""The documentation agrees with the code."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


def load(name: str) -> ModuleType:
    """Load a script of the documentation."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_short():
    """It introduces the project in at most 120 lines of at most 120 characters."""
    lines = (ROOT / "README.md").read_text().splitlines()

    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 120] == []


def test_every_module_of_the_errors_is_documented():
    """The tree in the module's docstring names each class."""
    from autogen_team import errors

    for name in errors.__all__:
        assert name in errors.__doc__


@pytest.mark.parametrize("name", ["settings", "cli"])
def test_the_reference_agrees_with_the_code(name, snapshots):
    """`make readme` writes the reference pages."""
    module = load("settings_table" if name == "settings" else "cli_reference")

    assert module.PAGE.read_text() == module.page()


def test_the_tests_that_prove_a_guarantee_exist():
    """Each line of the tables names at least one test module."""
    page = (ROOT / "docs" / "explanation" / "guarantees.md").read_text()
    lines = [
        line for line in page.splitlines() if line.startswith("|") and "---" not in line and "tested by" not in line
    ]
    named = [re.findall(r"`([\w/]+\.py)`", line.split("|")[-2]) for line in lines]

    assert [line for line, files in zip(lines, named, strict=True) if not files] == []
    assert [file for files in named for file in files if len([*(ROOT / "tests").rglob(file)]) != 1] == []


def test_a_broken_link_is_found(tmp_path):
    """`make docs` fails on a missing page, anchor or image, and on content loaded from other servers."""
    (tmp_path / "good.html").write_text('<h1 id="top">Good</h1><a href="https://example.com/a">out</a>')
    (tmp_path / "bad.html").write_text(
        '<a href="good.html#top">1</a><a href="good.html#no">2</a><a href="no.html">3</a><img src="no.png">'
        '<a href="/good.html">4</a><script src="https://example.com/a.js"></script><a href="https:/example">5</a>'
    )

    assert list(load("check_site").faults(tmp_path)) == [
        "bad.html: good.html#no (there is no such anchor)",
        "bad.html: no.html (there is no such file)",
        "bad.html: no.png (there is no such file)",
        "bad.html: /good.html (does not work from a folder)",
        "bad.html: https://example.com/a.js (is loaded from another site)",
        "bad.html: https:/example (is not a valid address)",
    ]


def test_every_page_is_in_the_navigation():
    """A page outside the navigation would not be found."""
    navigation = (ROOT / "mkdocs.yml").read_text()

    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs')}\n" in navigation
