"""Run the examples of the documentation: README, docs and docstrings."""

from __future__ import annotations

import os
import tempfile
from doctest import ELLIPSIS
from pathlib import Path

from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.markdown import PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def _enter_scratch_folder(namespace: dict[str, object]) -> None:
    """Give each document a folder of its own, and the environment back at its end."""
    import mlflow

    namespace.update(mlflow=mlflow, _before=(Path.cwd(), dict(os.environ)), _scratch=tempfile.TemporaryDirectory())
    os.chdir(namespace["_scratch"].name)
    os.environ["AUTOGEN_TEAM_STATE_DIR"] = "state"
    os.environ["AUTOGEN_TEAM_ALERTS_ENABLE"] = "false"
    # Absolute, because MLflow keeps one engine per URI for the whole process, and each document has its own folder.
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{Path.cwd()}/mlflow.db"


def _leave_scratch_folder(namespace: dict[str, object]) -> None:
    folder, environment = namespace["_before"]
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    namespace["_scratch"].cleanup()


_markdown = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
    setup=_enter_scratch_folder,
    teardown=_leave_scratch_folder,
)
_docstrings = Sybil(
    path="src",
    parsers=[DocTestParser(optionflags=ELLIPSIS)],
    patterns=["*.py"],
    document_types={".py": PythonDocStringDocument},
    setup=_enter_scratch_folder,
    teardown=_leave_scratch_folder,
)

pytest_collect_file = (_markdown + _docstrings).pytest()
