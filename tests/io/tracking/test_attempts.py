"""One run for all attempts of a job: what is kept, what continues, and how earlier attempts ended."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import socket

import mlflow
import pytest

from autogen_team import GlobalContext
from autogen_team._capture import attempts
from autogen_team._process.run_events import ATTEMPT_TAG, EXCEPTION_TAG, JOB_TAG, PREEMPTED_TAG
from autogen_team.errors import ConfigurationError
from autogen_team.io.services import MlflowService

STORES = pytest.mark.parametrize("store", ["store_uri", "mlflow_server"])
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
UNWATCHED = "from autogen_team._ship import agent_link; agent_link.AgentLink.watch = lambda *_: None\n"
JOB = """
import json, logging, os, signal, sys, mlflow
from autogen_team import GlobalContext
with GlobalContext() as context:
    with context.run("train", job=os.environ.get("JOB", "nightly"), log_system_metrics=False) as run:
        told = {"run": run.info.run_id, "attempt": context.attempt, "last": context.last_step("loss")}
        print("told", json.dumps(told), flush=True)
        context.logger.info("attempt {}", context.attempt)
        BODY
"""
LOGS_THREE = """
        first = (told["last"] if told["last"] is not None else -1) + 1
        mlflow.log_param("lr", os.environ.get("LR", "0.1"))
        for step in range(first, first + 3):
            mlflow.log_metric("loss", step, step=step)
            context.log_metrics({"lane": step}, step)
        context.mlflow_service.flush()
        print("logged", flush=True)
        sys.stdin.readline()
"""
NOTHING = "\n        pass\n"
FAILS = '\n        raise ValueError("no batch")\n'
CUT_OFF = """
        from autogen_team._ship.backend import Unreachable
        from autogen_team._ship.batches import Delivery
        def away(*_): raise Unreachable("away")
        Delivery.deliver = away
        for step in range(3):
            mlflow.log_metric("loss", step, step=step)
        print("logged", flush=True)
        sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def without_autologging(monkeypatch):
    """Disable autologging, so that jobs start faster."""
    monkeypatch.setenv("AUTOGEN_TEAM_MLFLOW_AUTOLOG_DISABLE", "true")


@pytest.fixture
def start_job(start_python, tmp_path):
    """Return a function that starts a job with its own state folder; it returns the process and the job's report."""
    number = 0

    def start(uri: str, body: str = LOGS_THREE, *, before: str = "", **environment: str):
        nonlocal number
        number += 1
        environment.setdefault("AUTOGEN_TEAM_STATE_DIR", str(tmp_path / f"state{number}"))
        process = start_python(
            "-c", before + JOB.replace("        BODY", body), stdin=-1, MLFLOW_TRACKING_URI=uri, **environment
        )
        return process, json.loads(process.wait_for("told").removeprefix("told "))

    return start


@pytest.fixture
def context(store_uri):
    """Return a context that runs in this process."""
    with GlobalContext(mlflow_service=MlflowService(tracking_uri=store_uri, autolog_disable=True)) as context:
        yield context


def _steps(uri: str, run_id: str, key: str = "loss") -> list[int]:
    return sorted(metric.step for metric in mlflow.MlflowClient(uri).get_metric_history(run_id, key))


@STORES
def test_a_job_that_was_killed_continues_its_run(start_job, request, store, tmp_path):
    """The run continues although the agent and the state folder are lost with the machine."""
    uri = request.getfixturevalue(store)
    first, told = start_job(uri, before=UNWATCHED)
    assert told == {"run": told["run"], "attempt": 1, "last": None}
    first.wait_for("logged")
    first.send(signal.SIGKILL)
    first.finish()
    shutil.rmtree(tmp_path / "state1")
    second, again = start_job(uri)
    second.wait_for("logged")
    status, _, err = second.finish("\n")

    assert status == 0, err
    assert again == {"run": told["run"], "attempt": 2, "last": 2}
    run = mlflow.MlflowClient(uri).get_run(told["run"])
    assert (run.info.status, run.data.tags[JOB_TAG], run.data.tags[ATTEMPT_TAG]) == ("FINISHED", "nightly", "2")
    place = re.escape(f"{socket.gethostname()}-{first.popen.pid}")
    assert re.fullmatch(rf"KILLED, without a word, on {place}, {TIME}", run.data.tags[f"{ATTEMPT_TAG}.1"])
    assert EXCEPTION_TAG not in run.data.tags
    assert _steps(uri, told["run"]) == [0, 1, 2, 3, 4, 5] == _steps(uri, told["run"], "lane")


def test_a_changed_parameter_keeps_its_first_value(start_job, store_uri):
    """The new value is a tag of the attempt, with a warning; a name that a later attempt logs first is a parameter."""
    first, told = start_job(store_uri)
    first.wait_for("logged")
    first.send(signal.SIGTERM)
    assert first.finish()[0] == 128 + signal.SIGTERM
    body = """
        mlflow.log_params({"lr": 0.2, "depth": 3, "name": "b"})
        mlflow.MlflowClient().log_param(run.info.run_id, "lr", "0.2")
        mlflow.log_param("depth", 3)
        try:
            mlflow.log_param("lr", 0.3)
        except mlflow.MlflowException as error:
            print("refused", type(error).__name__, flush=True)
"""
    second, _ = start_job(store_uri, body)
    status, out, err = second.finish()

    assert (status, "refused MlflowException" in out) == (0, True), err
    assert err.count("was 0.1 in an earlier attempt") == 1
    run = mlflow.MlflowClient(store_uri).get_run(told["run"])
    params = {name: value for name, value in run.data.params.items() if not name.startswith("autogen_team.")}
    assert params == {"lr": "0.1", "depth": "3", "name": "b"}
    assert run.data.tags[f"{ATTEMPT_TAG}.2.param.lr"] == "0.2"
    assert re.fullmatch(rf"KILLED, SIGTERM, on .*, {TIME}", run.data.tags[f"{ATTEMPT_TAG}.1"])


def test_a_finished_run_is_not_continued(start_job, store_uri):
    """After a finished run, the next start of the job opens a new run."""
    runs = []
    for _ in range(2):
        process, told = start_job(store_uri, NOTHING)
        assert process.finish()[0] == 0
        runs.append(told["run"])
        assert told["attempt"] == 1

    assert len(set(runs)) == 2


def test_a_job_that_failed_continues_its_run(start_job, store_uri):
    """The scheduler decides to start it again; the reason moves to a tag of the attempt."""
    first, told = start_job(store_uri, FAILS)
    assert first.finish()[0] == 1
    second, again = start_job(store_uri, NOTHING)
    assert second.finish()[0] == 0

    assert again["run"] == told["run"]
    run = mlflow.MlflowClient(store_uri).get_run(told["run"])
    assert run.info.status == "FINISHED"
    assert run.data.tags[f"{ATTEMPT_TAG}.1"].startswith("FAILED, ValueError: no batch, on ")
    assert EXCEPTION_TAG not in run.data.tags


def test_each_attempt_has_its_own_log(start_job, store_uri):
    """The names contain the attempt, because host and process id may be equal in all containers."""
    first, told = start_job(store_uri, FAILS)
    first.finish()
    second, _ = start_job(store_uri, NOTHING)
    second.finish()

    host = socket.gethostname()
    names = {file.path for file in mlflow.MlflowClient(store_uri).list_artifacts(told["run"], "logs")}
    assert names == {f"logs/{host}-{first.popen.pid}.log", f"logs/{host}-{second.popen.pid}-attempt-2.log"}


def test_entries_of_an_earlier_attempt_are_delivered_first(start_job, store_uri, tmp_path):
    """Undelivered entries arrive before the job reads its last step."""
    state = {"AUTOGEN_TEAM_STATE_DIR": str(tmp_path / "shared")}
    first, told = start_job(store_uri, CUT_OFF, before=UNWATCHED, **state)
    first.wait_for("logged")
    first.send(signal.SIGKILL)
    first.finish()
    assert _steps(store_uri, told["run"]) == []
    second, again = start_job(store_uri, **state)
    second.wait_for("logged")
    second.finish("\n")

    assert again == {"run": told["run"], "attempt": 2, "last": 2}
    assert _steps(store_uri, told["run"]) == [0, 1, 2, 3, 4, 5]


def test_a_journal_that_is_recovered_later_adds_only_logged_items(start_job, run_python, store_uri, tmp_path):
    """Recovery adds the logged items, and does not change the status, owner or attempt of the present start."""
    first, told = start_job(store_uri, CUT_OFF, before=UNWATCHED)
    first.wait_for("logged")
    first.send(signal.SIGKILL)
    first.finish()
    second, again = start_job(store_uri)
    second.wait_for("logged")
    client = mlflow.MlflowClient(store_uri)
    before = client.get_run(told["run"])
    elsewhere = {"MLFLOW_TRACKING_URI": store_uri, "AUTOGEN_TEAM_STATE_DIR": str(tmp_path / "state1")}
    status, out, err = run_python("-m", "autogen_team", "recover", "--json", **elsewhere)
    assert status == 0, err

    assert (again["run"], again["attempt"], again["last"]) == (told["run"], 2, None)
    (result,) = json.loads(out)
    assert (result["closed"], result["problem"]) == ([], "")
    after = client.get_run(told["run"])
    assert (after.info.status, after.data.tags) == ("RUNNING", before.data.tags)
    assert _steps(store_uri, told["run"]) == [0, 0, 1, 1, 2, 2]
    assert second.finish("\n")[0] == 0


@pytest.mark.parametrize(("replay", "values"), [("keep", [0, 0, 1, 1, 2, 2, 3]), ("skip", [0, 1, 2, 3])])
def test_repeated_steps_are_kept_or_skipped(start_job, store_uri, replay, values):
    """If the checkpoint is older than the last logged step, steps repeat; every way to log is covered."""
    first, told = start_job(store_uri, before=UNWATCHED)
    first.wait_for("logged")
    first.send(signal.SIGKILL)
    first.finish()
    body = """
        for step in range(4):
            mlflow.log_metrics({"loss": step, "lane" if step == 3 else "new": step}, step=step)
            context.log_metrics({"lane": step} if step < 3 else {}, step)
            mlflow.log_metric("fresh", step, step=step)
"""
    second, _ = start_job(store_uri, body, AUTOGEN_TEAM_MLFLOW_REPLAY=replay)
    status, _, err = second.finish()

    assert status == 0, err
    assert _steps(store_uri, told["run"]) == values == _steps(store_uri, told["run"], "lane")
    assert _steps(store_uri, told["run"], "fresh") == [0, 1, 2, 3]
    assert _steps(store_uri, told["run"], "new") == [0, 1, 2]


def test_system_metrics_continue(context, store_uri):
    """System metrics continue after the last step."""
    with context.run("train", job="nightly", log_system_metrics=False) as run:
        mlflow.log_metric("system/system_memory_usage_percentage", 1.0, step=41)
        mlflow.log_metric("loss", 1.0, step=7)
        mlflow.MlflowClient().set_terminated(run.info.run_id, "FAILED")
    with context.run("train", job="nightly", log_system_metrics=True) as again:
        monitor = mlflow.tracking.fluent.run_id_to_system_metrics_monitor[again.info.run_id]
        assert (again.info.run_id, monitor._order.first_step) == (run.info.run_id, 42)
        assert (context.last_step(), context.last_step("loss"), context.last_step("no such")) == (7, 7, None)


def test_the_variable_names_the_first_run_only(context, monkeypatch, store_uri):
    """As with MLFLOW_RUN_ID, neither a child nor the next run uses the variable."""
    monkeypatch.setattr(attempts, "_is_named", False)
    monkeypatch.setenv(attempts.VARIABLE, "nightly")
    with context.run("train") as run, context.run("child", nested=True) as child:
        pass
    with context.run("evaluate") as later:
        pass

    client = mlflow.MlflowClient(store_uri)
    jobs = [client.get_run(one.info.run_id).data.tags.get(JOB_TAG) for one in (run, child, later)]
    assert jobs == ["nightly", None, None]


def test_a_child_may_be_a_job(context, store_uri):
    """The name of a child job is unique per parent."""
    client, runs = mlflow.MlflowClient(store_uri), []
    for _ in range(2):
        with context.run("study", job="study", log_system_metrics=False) as parent:
            for _ in range(2):
                with context.run("trial", job="trial", nested=True, log_system_metrics=False) as child:
                    client.set_terminated(child.info.run_id, "FAILED")
                runs.append((child.info.run_id, child.data.tags["mlflow.parentRunId"] == parent.info.run_id))

    assert [is_child for _, is_child in runs] == [True] * 4
    assert (runs[0] == runs[1], runs[1] == runs[2], runs[2] == runs[3]) == (True, False, True)


def test_auto_is_the_scheduler_s_id_of_the_job(context, monkeypatch, store_uri):
    """Without a scheduler, the error lists the variables that were searched."""
    with (
        pytest.raises(ConfigurationError, match=r"SLURM_JOB_ID, .*JOB_NAME, none is set"),
        context.run("a", job="auto"),
    ):
        pass
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with context.run("train", job="auto") as run:
        pass

    assert mlflow.MlflowClient(store_uri).get_run(run.info.run_id).data.tags[JOB_TAG] == "slurm-4711"


@pytest.mark.parametrize("job", ["", " ", "it's", 'a"b', "a\nb", "x" * 201, "caf\u00e9"])
def test_a_name_that_cannot_be_searched_for_is_refused(context, job):
    """The name is rejected before anything is created."""
    with pytest.raises(ConfigurationError, match="cannot name a job"), context.run("train", job=job):
        pass


def test_a_run_that_joins_another_is_not_a_job(context, caplog):
    """The name belongs to the process that opened the host run; a warning says so."""
    with context.run("outer", host=True) as outer, context.run("train", job="nightly") as run:
        assert run.info.run_id == outer.info.run_id

    assert "does not become the job 'nightly'" in caplog.text


def test_without_an_identity_a_run_has_no_attempts(context, store_uri):
    """The run has no parameters or tags about attempts."""
    with context.run("train", log_system_metrics=False) as run:
        assert context.attempt == 1

    found = mlflow.MlflowClient(store_uri).get_run(run.info.run_id).data
    assert {JOB_TAG, ATTEMPT_TAG, PREEMPTED_TAG}.isdisjoint(found.tags)
    assert found.params == {}


def test_resuming_takes_two_requests_more_than_a_fresh_start(start_python, proxy, tmp_path):
    """All requests of a start are counted, including those in the background."""
    code = """
import sys, mlflow
from autogen_team import GlobalContext
from autogen_team._ship import agent_link
agent_link.AgentLink.watch = lambda *_: None
with GlobalContext() as context:
    print("started", flush=True)
    sys.stdin.readline()
    job = {} if sys.argv[1] == "none" else {"job": sys.argv[1]}
    with context.run("train", log_system_metrics=False, **job):
        context.mlflow_service.flush()
        print("opened", flush=True)
        sys.stdin.readline()
"""
    seen: list[str] = []
    proxy.blocks = lambda path, _: bool(seen.append(path))

    def count(number: int, job: str) -> int:
        process = start_python(
            *("-c", code, job),
            stdin=-1,
            MLFLOW_TRACKING_URI=proxy.uri,
            AUTOGEN_TEAM_STATE_DIR=str(tmp_path / f"state{number}"),
            AUTOGEN_TEAM_MLFLOW_HEARTBEAT="3600",
        )
        process.wait_for("started")
        before = len(seen)
        process.popen.stdin.write("\n")
        process.popen.stdin.flush()
        process.wait_for("opened")
        requests = len(seen) - before
        process.send(signal.SIGKILL)
        process.finish()
        return requests

    plain = count(1, "none")
    first = count(2, "nightly")
    again = count(3, "nightly")
    assert again <= plain + 2, (plain, first, again)
    assert again <= first


@pytest.mark.timeout(400)
def test_five_kills_make_one_run(start_job, store_uri, tmp_path):
    """A job is killed at random steps and its state folder is lost; each acknowledged metric is in the store once."""
    body = """
        first = (told["last"] if told["last"] is not None else -1) + 1
        for step in range(first, first + int(os.environ["STEPS"])):
            mlflow.log_metric("loss", step, step=step)
            context.mlflow_service.flush()
            print("acknowledged", step, flush=True)
"""
    runs, acknowledged = set(), -1
    for number in range(1, 6):
        process, told = start_job(store_uri, body, before=UNWATCHED, STEPS="1000000")
        runs.add(told["run"])
        assert told["attempt"] == number
        assert (told["last"] if told["last"] is not None else -1) >= acknowledged
        process.wait_for(f"acknowledged {acknowledged + random.randrange(3, 30)}")
        process.send(signal.SIGKILL)
        rest = process.finish()[1]
        acknowledged = max([acknowledged, *map(int, re.findall(r"acknowledged (\d+)\n", rest))])
        shutil.rmtree(tmp_path / f"state{number}")
    last, told = start_job(store_uri, body, STEPS="2")
    status, _, err = last.finish()

    assert status == 0, err
    assert ({told["run"]}, told["attempt"]) == (runs, 6)
    steps = _steps(store_uri, told["run"])
    assert steps == list(range(len(steps)))
    assert len(steps) >= acknowledged + 3
    run = mlflow.MlflowClient(store_uri).get_run(told["run"])
    assert run.info.status == "FINISHED"
    assert all(f"{ATTEMPT_TAG}.{number}" in run.data.tags for number in range(1, 6))
