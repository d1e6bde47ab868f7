"""Environment variables by which any child process joins the context."""

from __future__ import annotations

import pickle
import shutil

import mlflow
import pytest

from autogen_team import GlobalContext
from autogen_team.errors import ConfigurationError, NotStartedError
from autogen_team.io.services import AlertsService, LoggerService, MlflowService

CHILD = '''
CHILD = """
import mlflow
from autogen_team import GlobalContext
with GlobalContext() as context:
    context.logger.info("in the child")
    mlflow.log_metric("accuracy", 0.5, step=7)
    with context.run("inner"):
        mlflow.log_metric("accuracy", 0.5, step=8)
    context.notify("done", "a child")
"""

OWN = """
import mlflow
from autogen_team import GlobalContext
with GlobalContext() as context, context.run("own"):
    mlflow.log_metric("accuracy", 0.5, step=5)
"""

PLAIN = """
import mlflow
with mlflow.start_run(run_name="plain"):
    mlflow.log_metric("accuracy", 0.5, step=9)
"""


def call(context, code):
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **context.worker_env()}, check=True)
'''


def test_a_child_process_works_for_the_run(run_job, store, log_lines, journals):
    """The child has the parent's settings, and its own runs are child runs."""
    out, err = run_job(
        """
        with make_context() as context, context.run("train"):
            call(context, CHILD)
        """,
        CHILD,
    )

    parent = store.run("train")
    assert (parent.info.status, store.steps(parent)) == ("FINISHED", [7])
    [inner] = store.children()
    assert (inner.info.run_name, inner.info.status, store.steps(inner)) == ("inner", "FINISHED", [8])
    [line] = [line for line in log_lines("job-*.log") if line["message"] == "in the child"]
    assert line["run_id"] == parent.info.run_id
    assert line["worker"].rpartition("-")[2] == str(line["process"])
    assert out == ""
    assert err == ""
    assert journals() == []


def test_a_program_with_plain_mlflow_has_child_runs_too(run_job, store):
    """Plain MLflow in a child process reads MLflow's own variables."""
    run_job(
        """
        with make_context() as context, context.run("train"):
            call(context, PLAIN)
        """,
        CHILD,
    )

    [plain] = store.children()
    assert (plain.info.run_name, plain.info.status, store.steps(plain)) == ("plain", "FINISHED", [9])


def test_the_command_in_a_child_process_is_a_worker_too(run_job, store, tmp_path):
    """Inside a worker, `autogen-team run` runs its target in a child run."""
    (tmp_path / "target.py").write_text("import mlflow\nmlflow.log_metric('accuracy', 0.5, step=3)\n")
    run_job(
        f"""
        with make_context() as context, context.run("train"):
            command = [sys.executable, "-m", "autogen_team", "run", {str(tmp_path / "target.py")!r}]
            subprocess.run(command, env={{**os.environ, **context.worker_env()}}, check=True)
        """
    )

    [child] = store.children()
    assert (child.info.run_name, store.steps(child)) == ("target.py", [3])


def test_secrets_are_not_passed_on(store_uri, monkeypatch):
    """Channel URLs are secret and not passed on; a child still inherits existing variables."""
    context = GlobalContext(
        logger_service=LoggerService(sink="job.log"),
        alerts_service=AlertsService(enable=False, urls=["json://bob:hunter2@127.0.0.1"]),
        mlflow_service=MlflowService(tracking_uri=store_uri, autolog_disable=True),
    )
    with context, context.run("train", log_system_metrics=False) as run:
        variables = context.worker_env()

    assert "hunter2" not in str(variables)
    assert run.info.run_id in variables["AUTOGEN_TEAM_WORKER_OF"]
    assert variables["MLFLOW_TRACKING_URI"] == store_uri
    assert variables["AUTOGEN_TEAM_LOGGER_SINK"].endswith("/job.log")
    assert "MLFLOW_RUN_ID" not in variables


@pytest.mark.parametrize(
    ("here", "argument", "there", "handed_on", "used"),
    [
        (None, None, None, None, None),
        (None, None, "there", None, "there"),
        ("here", None, None, "here", None),
        ("here", None, "there", "here", "there"),
        ("here", "argument", "there", "argument", "argument"),
    ],
)
def test_a_worker_uses_the_state_folder_of_its_machine(
    store_uri, run_python, monkeypatch, tmp_path, here, argument, there, handed_on, used
):
    """Workers use their machine's own state folder, unless the job was given one by argument."""

    def place(name):
        return {} if name is None else {"AUTOGEN_TEAM_STATE_DIR": str(tmp_path / name)}

    monkeypatch.delenv("AUTOGEN_TEAM_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "default"))
    for name, value in place(here).items():
        monkeypatch.setenv(name, value)
    given = {} if argument is None else {"state_dir": tmp_path / argument}
    service = MlflowService(tracking_uri=store_uri, autolog_disable=True, **given)
    with GlobalContext(alerts_service=AlertsService(enable=False), mlflow_service=service) as context:
        variables, sent = context.worker_env(), pickle.dumps(context.initializer())
        for name in place(here):
            monkeypatch.delenv(name)
        code = (
            f"import pickle; pickle.loads({sent!r})()\n"
            "from autogen_team import GlobalContext; print(GlobalContext.current().mlflow_service.state_dir)"
        )
        status, out, err = run_python("-c", code, **place(there))

    assert status == 0, err
    assert {name: value for name, value in variables.items() if "STATE" in name} == place(handed_on)
    assert out.strip() == str(used and tmp_path / used)


def test_an_unreadable_variable_is_an_error(store_uri, monkeypatch):
    """The error names the variable, its value and its source."""
    monkeypatch.setenv("AUTOGEN_TEAM_WORKER_OF", "yes")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)

    with pytest.raises(ConfigurationError, match=r"AUTOGEN_TEAM_WORKER_OF is 'yes'.*worker_env"):
        GlobalContext().start()


def test_a_process_with_another_store_is_not_a_worker(run_job, store, tmp_path, migrated_database):
    """A process told to use another store logs there."""
    other = type(store)(f"sqlite:///{shutil.copy(migrated_database, tmp_path / 'other.db')}")
    run_job(
        f"""
        with make_context() as context, context.run("train"):
            environment = {{**os.environ, **context.worker_env(), "MLFLOW_TRACKING_URI": {other.uri!r}}}
            subprocess.run([sys.executable, "-c", OWN], env=environment, check=True)
        """,
        CHILD,
    )

    assert [run.info.run_name for run in store.runs()] == ["train"]
    assert store.steps(store.run("train")) == []
    assert other.steps(other.run("own")) == [5]


def test_a_worker_that_is_restarted_without_its_job_is_not_a_worker(store_uri, monkeypatch):
    """Without its job, the worker's runs are in the experiment of its own settings."""

    def context(experiment):
        service = MlflowService(tracking_uri=store_uri, autolog_disable=True, experiment_name=experiment)
        return GlobalContext(alerts_service=AlertsService(enable=False), mlflow_service=service)

    with context("job") as job, job.run("train", log_system_metrics=False):
        variables = job.worker_env()
    monkeypatch.setenv("AUTOGEN_TEAM_WORKER_OF", variables["AUTOGEN_TEAM_WORKER_OF"])
    again = context("other")
    with again:
        pass
    monkeypatch.delenv("AUTOGEN_TEAM_WORKER_OF")
    with again, again.run("own", log_system_metrics=False) as run:
        pass

    client = mlflow.MlflowClient(store_uri)
    assert client.get_experiment(run.info.experiment_id).name == "other"


@pytest.mark.parametrize("make", [lambda c: c.worker_env(), lambda c: c.bind(print), lambda c: c.initializer()])
def test_a_stopped_context_has_no_workers(make):
    """Without a running context there is no run to work for."""
    with pytest.raises(NotStartedError, match="call start"):
        make(GlobalContext())
