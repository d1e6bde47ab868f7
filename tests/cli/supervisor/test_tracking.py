"""MLflow in a supervised script: other stores, explicit ends of runs, runs of clients."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from autogen_team._sync import offline_store

pytestmark = pytest.mark.usefixtures("forked_children")

REASON = "autogen_team.exception"


def runs_of(database: str) -> dict[str, mlflow.entities.Run]:
    """Return the runs of a store in the working folder by their names."""
    client = mlflow.MlflowClient(f"sqlite:///{Path(database).absolute()}")
    experiments = [one.experiment_id for one in client.search_experiments()]
    return {run.info.run_name: run for run in client.search_runs(experiments)}


SAME = {
    "a relative path": "mlflow.set_tracking_uri('sqlite:///mlflow.db')",
    "a path with a step back": "mlflow.set_tracking_uri(f'sqlite:///{os.getcwd()}/../{os.path.basename(os.getcwd())}/mlflow.db')",
    "the variable": "os.environ['MLFLOW_TRACKING_URI'] = 'sqlite:///mlflow.db'",
}
BODY = """
import mlflow, os
{first}
with mlflow.start_run(run_name="mine"):
    mlflow.log_metric("loss", 0.5)
"""


@pytest.mark.parametrize("first", SAME.values(), ids=SAME)
def test_a_script_that_spells_the_store_differently_joins_the_run(supervised, script, the_run, first):
    """Most scripts that use MLflow begin with `set_tracking_uri`."""
    ended = supervised("--no-system-metrics", script(BODY.format(first=first)))

    assert ended.returncode == 0, ended.stderr
    run = the_run()
    assert (run.info.run_name, run.info.status, run.data.metrics) == ("job.py", "FINISHED", {"loss": 0.5})


OTHER = {
    "a call": "mlflow.set_tracking_uri('sqlite:///other.db')",
    "the variable": "os.environ['MLFLOW_TRACKING_URI'] = 'sqlite:///other.db'",
}


@pytest.mark.slow
@pytest.mark.parametrize("first", OTHER.values(), ids=OTHER)
def test_a_script_that_uses_another_store_has_runs_of_its_own_there(supervised, script, the_run, first):
    """Runs there are autologged and masked; the command's run stays in its store."""
    body = BODY.format(first=first) + (
        "mlflow.log_param('database', 'postgresql://ada:example-secret@db/prices')\n"
        "mlflow.end_run()\n"
        "from sklearn.linear_model import LinearRegression\n"
        "LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])\n"
    )
    ended = supervised("--no-system-metrics", "--set", "mlflow.autolog_log_models=false", script(body))

    assert ended.returncode == 0, ended.stderr
    assert (the_run().info.status, the_run().data.metrics) == ("FINISHED", {})
    found = runs_of("other.db")
    mine = found.pop("mine")
    assert (mine.info.status, mine.data.metrics) == ("FINISHED", {"loss": 0.5})
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert "fit_intercept" in str([run.data.params for run in found.values()])
    assert "prices" in str([run.data.params for run in found.values()])
    assert "example-secret" not in str([run.data.params for run in found.values()])


ENDS = {
    "an explicit end": ("mlflow.start_run()\nmlflow.end_run('FAILED')", "the job has ended its run as FAILED"),
    "an exception that is handled": (
        "try:\n    with mlflow.start_run():\n        raise ValueError('no data')\nexcept ValueError:\n    pass",
        "ValueError: no data",
    ),
    "an exception in a context of its own": (
        (
            "from autogen_team import GlobalContext\n"
            "try:\n"
            "    with GlobalContext() as context, context.run('mine'):\n"
            "        raise ValueError('no data')\n"
            "except ValueError:\n"
            "    pass"
        ),
        "ValueError: no data",
    ),
    "a client": (
        "run = mlflow.start_run()\nmlflow.MlflowClient().set_terminated(run.info.run_id, 'FAILED')",
        "the job has ended its run as FAILED",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("body", "reason"), ENDS.values(), ids=ENDS)
def test_a_failed_end_of_the_run_by_the_script_is_kept(supervised, script, the_run, body, reason):
    """The run is FAILED although the exit status is 0."""
    ended = supervised("--no-system-metrics", script(f"import mlflow\n{body}"))

    assert ended.returncode == 0, ended.stderr
    assert (the_run().info.status, the_run().data.tags.get(REASON)) == ("FAILED", reason)


def test_the_exit_status_overrides_a_normal_end_by_the_script(supervised, script, the_run):
    """The run represents the whole job."""
    ended = supervised(script("import mlflow, sys\nwith mlflow.start_run(): pass\nmlflow.end_run()\nsys.exit(3)"))

    assert ended.returncode == 3
    assert (the_run().info.status, the_run().data.tags[REASON]) == ("FAILED", "exit status 3")


@pytest.mark.parametrize(
    ("end", "wanted"),
    [
        ("raise ValueError('no data')", ("FAILED", "ValueError: no data")),
        ("sys.exit(3)", ("FAILED", "exit status 3")),
        ("os.kill(os.getpid(), signal.SIGTERM)", ("KILLED", "SIGTERM")),
        ("os.kill(os.getpid(), signal.SIGINT)", ("KILLED", "SIGINT")),
        ("pass", ("RUNNING", None)),
    ],
)
def test_a_run_of_a_client_ends_with_a_failing_job(supervised, script, end, wanted):
    """If the job fails in any way, the run is closed; otherwise it stays open."""
    body = f"import mlflow, os, signal, sys\nmlflow.MlflowClient().create_run('0', run_name='logger')\n{end}"

    supervised("--no-system-metrics", script(body))

    run = runs_of("mlflow.db")["logger"]
    assert (run.info.status, run.data.tags.get(REASON)) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("names", [["MLFLOW_RUN_ID"], ["MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"]])
def test_a_run_from_the_environment_is_continued(supervised, script, store_uri, monkeypatch, names):
    """The run may be in another experiment than that of the settings."""
    client = mlflow.MlflowClient(store_uri)
    given = client.create_run(client.create_experiment("theirs"))
    values = {"MLFLOW_RUN_ID": given.info.run_id, "MLFLOW_EXPERIMENT_ID": given.info.experiment_id}
    for name in names:
        monkeypatch.setenv(name, values[name])

    ended = supervised("--no-system-metrics", script(BODY.format(first="")))

    assert ended.returncode == 0, ended.stderr
    found = client.get_run(given.info.run_id)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"loss": 0.5})


@pytest.mark.slow
def test_a_killed_script_with_another_store_leaves_nothing_in_the_wrong_one(supervised, script, the_run, wait_until):
    """The supervisor closes the command's run, and the agent closes the runs in the other store."""
    body = (
        "import mlflow, os, signal\n"
        "mlflow.log_metric('here', 1)\n"
        "mlflow.set_tracking_uri('sqlite:///other.db')\n"
        "mlflow.start_run(run_name='mine')\n"
        "mlflow.log_metric('there', 1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = supervised("--no-system-metrics", script(body))

    assert ended.returncode == 137, ended.stderr
    assert (the_run().info.status, the_run().data.metrics) == ("KILLED", {"here": 1})
    wait_until(lambda: runs_of("other.db")["mine"].info.status == "KILLED")
    assert runs_of("other.db")["mine"].data.metrics == {"there": 1}


@pytest.mark.parametrize("by", ["an option", ".env"])
def test_the_state_folder_of_the_command_is_that_of_the_job(supervised, script, the_run, monkeypatch, tmp_path, by):
    """A relative path is resolved where the command was called, even if the job changes its folder."""
    options = ["--set", "mlflow.state_dir=own"] if by == "an option" else []
    if not options:
        monkeypatch.delenv("AUTOGEN_TEAM_STATE_DIR")
        Path(".env").write_text("AUTOGEN_TEAM_STATE_DIR=own\n")
    body = "import os\nos.mkdir('elsewhere')\nos.chdir('elsewhere')\nimport mlflow\nmlflow.log_metric('loss', 0.5)\n"
    ended = supervised("--no-system-metrics", *options, script(body))

    assert ended.returncode == 0, ended.stderr
    assert the_run().data.metrics == {"loss": 0.5}
    assert {"journals", "locks"} <= {path.name for path in Path("own").iterdir()}
    assert [path for path in (tmp_path / "state", Path("elsewhere", "own")) if path.exists()] == []


def test_an_offline_job_that_traces_and_registers_a_model_ends(supervised, script, tmp_path, monkeypatch):
    """The offline store contains its run, trace and model; the job once waited for its own lock."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    body = (
        "import mlflow; from autogen_team import GlobalContext\n"
        "class Echo(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, model_input: list[str]) -> list[str]: return model_input\n"
        "with GlobalContext() as context, context.run('train'):\n"
        "    with mlflow.start_span('ask'): pass\n"
        "    mlflow.pyfunc.log_model(name='model', python_model=Echo(), pip_requirements=[], "
        "registered_model_name='fraud')\n"
    )
    ended = supervised("--mode", "offline", "--no-system-metrics", script(body))

    assert ended.returncode == 0, ended.stderr
    (uri,) = offline_store.find(tmp_path / "state")
    client = mlflow.MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("autogen_team")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert len(client.search_traces(locations=[experiment.experiment_id], run_id=run.info.run_id)) == 1
    assert [one.run_id for one in client.search_model_versions()] == [run.info.run_id]


@pytest.mark.parametrize("durable", ["true", "false"])
@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), 9)", "os._exit(0)"])
def test_the_run_has_the_sums_of_the_jobs_traces(supervised, script, the_run, monkeypatch, durable, end):
    """The sums of tokens and cost are metrics of the command's run, however the job ends."""
    monkeypatch.setenv("AUTOGEN_TEAM_MLFLOW_DURABLE", durable)
    body = """
import mlflow, os
for _ in range(3):
    with mlflow.start_span("ask", span_type="CHAT_MODEL") as span:
        span.set_attribute("mlflow.llm.cost", {"input_cost": 0.2, "output_cost": 0.05, "total_cost": 0.25})
        span.set_attribute("mlflow.chat.tokenUsage", {"input_tokens": 4, "output_tokens": 1, "total_tokens": 5})
mlflow.flush_trace_async_logging()
"""
    supervised(script(body + end))

    metrics = the_run().data.metrics
    assert [metrics[f"trace.{name}"] for name in ("count", "total_tokens", "cost")] == [3, 15, 0.75]
