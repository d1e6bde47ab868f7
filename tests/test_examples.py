"""The examples, run as a user would run them."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

import mlflow
import pytest

from autogen_team.io.services import MlflowService
from testkit import forkserver

EXAMPLES = Path(__file__).parent.parent / "examples"
PATIENCE = 250.0
"""Seconds that an example may take; worker engines start many processes."""
pytestmark = [
    pytest.mark.usefixtures("forked_children"),
    pytest.mark.timeout(300),
]


def run_to_end(arguments, **options):
    """Run `python ARGUMENTS...` to its end."""
    with forkserver.popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        out, err = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def test_a_model_is_tuned_trained_and_registered():
    """`make demo` shows log lines, a progress bar, a run, a registered model with an alias, and a notification."""
    command = ["-m", "autogen_team", "run", str(EXAMPLES / "train.py")]

    ended = run_to_end(command)

    assert ended.returncode == 0, ended.stderr
    assert "[autogen_team] model trained: run train.py: accuracy 0.9" in ended.stderr
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


@pytest.mark.parametrize("how", [["-m", "autogen_team", "run"], []], ids=["under the supervisor", "alone"])
def test_the_traces_of_an_agent_belong_to_its_run_and_hold_no_secret(how, tmp_path):
    """Each log line names its trace; no file contains the key or the header."""
    command = [*how, str(EXAMPLES / "llm_traces.py")]

    ended = run_to_end(command)

    assert ended.returncode == 0, ended.stderr
    answer = "after 2 steps: It is 24 degrees in Lisbon and 9 in Oslo: 15 degrees apart."
    assert f"[autogen_team] agent has answered: {answer}" in (ended.stderr if how else ended.stdout)
    assert "stored: CHAT_MODEL Completions, headers {'Authorization': '***'}" in ended.stderr
    service = MlflowService()
    mlflow.set_tracking_uri(f"sqlite:///{Path('mlflow.db').absolute()}")  # MLflow keeps an engine for each test
    runs = mlflow.search_runs(experiment_names=[service.experiment_name], output_format="list")
    assert [run.info.status for run in runs] == ["FINISHED"]
    run_id = runs[0].info.run_id
    assert {"tokens": 180, "steps": 2}.items() <= runs[0].data.metrics.items()
    assert runs[0].data.metrics["latency_seconds"] > 0
    traces = mlflow.search_traces(locations=[runs[0].info.experiment_id], run_id=run_id, return_type="list")
    assert [trace.info.trace_metadata["mlflow.sourceRun"] for trace in traces] == [run_id]
    spans = [(span.span_type, span.name) for span in traces[0].data.spans]
    thinking, acting = ("CHAT_MODEL", "Completions"), ("TOOL", "temperature")
    assert sorted(spans) == sorted([("AGENT", "ask"), thinking, acting, acting, thinking])
    first = next(span for span in traces[0].data.spans if span.name == "Completions")
    assert first.inputs["extra_headers"] == {"Authorization": "***"}
    assert first.outputs["usage"]["total_tokens"] == 60

    logs = [path for path in tmp_path.rglob("*.log") if run_id in str(path) and not path.name.startswith("output")]
    lines = [line for path in logs for line in path.read_text().splitlines()]
    trace_ids = {match[1] for line in lines if (match := re.search(r"temperature of .* trace=(\S+)", line))}
    assert trace_ids == {traces[0].info.trace_id}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"mlflow.db"} <= {path.name for path in files}
    assert [path for path in files if b"example-secret" in path.read_bytes()] == []
    assert "example-secret" not in ended.stdout + ended.stderr


@pytest.mark.parametrize("engine", ["joblib", "dask"])
def test_each_candidate_of_a_grid_search_has_a_run(engine):
    """Each candidate has a child run with its parameters and accuracies, logged by a worker process."""
    command = ["-m", "autogen_team", "run", str(EXAMPLES / f"grid_search_{engine}.py")]

    ended = run_to_end(command)

    assert ended.returncode == 0, ended.stderr
    assert "best: C=10 gamma=0.001, accuracy 0.97" in ended.stdout
    assert "see: autogen-team ui --open" in ended.stdout
    assert ended.stderr.count("__main__:evaluate:") == 9
    service = MlflowService()
    mlflow.set_tracking_uri(f"sqlite:///{Path('mlflow.db').absolute()}")  # MLflow keeps an engine for each test
    runs = mlflow.search_runs(experiment_names=[service.experiment_name], output_format="list")
    assert {run.info.status for run in runs} == {"FINISHED"}
    [search] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    candidates = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == search.info.run_id]
    assert len(candidates) == len(runs) - 1 == 9
    assert sorted((float(run.data.params["C"]), float(run.data.params["gamma"])) for run in candidates) == [
        (c, gamma) for c in (0.1, 1.0, 10.0) for gamma in (0.0001, 0.001, 0.01)
    ]
    scores = [run.data.metrics["cross_validation_accuracy"] for run in candidates]
    assert search.data.metrics["cross_validation_accuracy"] == max(scores)
    assert len({run.data.tags["autogen_team.worker"] for run in candidates}) <= 2


def test_the_candidates_of_a_search_on_ray_are_children_of_one_run():
    """Each child run has its parameters and accuracy, and the parent has the best ones."""
    command = ["-m", "autogen_team", "run", str(EXAMPLES / "grid_search_ray.py")]

    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # Ray's sockets need a short path
        environment = {**os.environ, "RAY_TMPDIR": folder}
        ended = run_to_end(command, env=environment)

    assert ended.returncode == 0, ended.stderr
    [best] = re.findall(r"^the best of 6: .*'C': 10.0.*, accuracy (0\.9\d\d)$", ended.stdout, re.MULTILINE)
    mlflow.set_tracking_uri(f"sqlite:///{Path('mlflow.db').absolute()}")  # MLflow keeps an engine for each test
    runs = mlflow.search_runs(experiment_names=[MlflowService().experiment_name], output_format="list")
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert [run.info.status for run in [parent, *children]] == ["FINISHED"] * 7
    assert {(run.data.params["C"], run.data.params["gamma"]) for run in children} == {
        (c, gamma) for c in ("0.1", "1.0", "10.0") for gamma in ("scale", "0.001")
    }
    scores = [run.data.metrics["cross_validation_accuracy"] for run in children]
    assert parent.data.metrics["cross_validation_accuracy"] == max(scores)
    assert f"{max(scores):.3f}" == best
