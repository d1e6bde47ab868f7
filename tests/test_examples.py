"""The examples, run as a person would run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from autogen_team.io.services import MlflowService

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_a_model_is_tuned_trained_and_registered():
    """What `make demo` shows: lines in one format, a progress bar, a run, a model under an alias, a notification."""
    command = [sys.executable, "-m", "autogen_team", "run", str(EXAMPLES / "train.py")]

    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    assert ended.returncode == 0, ended.stderr
    assert "[autogen_team] model trained: run train.py: accuracy 0.9" in ended.stdout
    assert "INFO     | __main__:main:" in ended.stderr
    assert "INFO     | mlflow.tracking.fluent:" in ended.stderr
    assert "tuning: 100%" in ended.stderr
    rows = dict(line.split("  ", 1) for line in ended.stderr.splitlines() if "  " in line)
    assert "FINISHED after" in rows["status"]
    assert "autogen_team version 1 @champion" in rows["registered"]
    service = MlflowService()
    version = service.client().get_model_version_by_alias("autogen_team", "champion")
    run = service.client().get_run(version.run_id)
    assert run.data.tags["mlflow.note.content"] == "A classifier of handwritten digits."
    assert {"cross_validation_accuracy", "training_accuracy_score"} <= set(run.data.metrics)
    assert "svc__C" in run.data.params
