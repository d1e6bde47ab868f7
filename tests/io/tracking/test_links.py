"""Web UI URLs of runs."""

from __future__ import annotations

import pytest

from autogen_team._ship import ui_url


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000/#/experiments/7/runs/abc"),
        ("https://mlflow.example/prefix/", "https://mlflow.example/prefix/#/experiments/7/runs/abc"),
        ("https://bob:secret@mlflow.example", "https://mlflow.example/#/experiments/7/runs/abc"),
        ("sqlite:///mlflow.db", None),
        ("./mlruns", None),
        ("databricks", None),
    ],
)
def test_a_run_has_a_page_only_on_a_server(uri, expected):
    """A run has a URL, without any password, only if its store is a server."""
    assert ui_url.of_run(uri, "7", "abc") == expected
