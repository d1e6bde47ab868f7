"""Heartbeats of runs, and runs whose heartbeat has stopped."""

from __future__ import annotations

import email.utils
import itertools
import json
import signal
import socket
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import mlflow
import pytest

from autogen_team._process.run_events import EXCEPTION_TAG
from autogen_team._ship import agent_link, lost, rest_backend
from autogen_team._ship.backend import RunState
from autogen_team._ship.signs import ALIVE_TAG, HOST_TAG, LOST, PID_TAG, moment

pytestmark = pytest.mark.usefixtures("forked_children")

JOB = """
import os, sys, mlflow
from autogen_team import GlobalContext
from autogen_team._capture import write_behind
from autogen_team.io.services import MlflowService
write_behind._HANDOVER_TO_DATABASE = write_behind._HANDOVER_TO_SERVER = float(os.environ.get("HANDOVER", "0"))
service = MlflowService(autolog_disable=True, heartbeat=float(os.environ.get("EVERY", "0.5")))
with GlobalContext(mlflow_service=service) as context, context.run("train", log_system_metrics=False) as run:
    print("run", run.info.run_id, flush=True)
    sys.stdin.readline()
"""
STORES = pytest.mark.parametrize("store", ["store_uri", "mlflow_server"])


@pytest.fixture
def start_job(start_python):
    """Return a function that starts a job that logs nothing; it returns process and run id."""

    def start(uri: str, **environment: str):
        process = start_python("-c", JOB, stdin=-1, MLFLOW_TRACKING_URI=uri, **environment)
        return process, process.wait_for("run ").split()[1]

    return start


@pytest.fixture
def tags_of():
    """Return a function that returns the tags of a run."""
    return lambda uri, run_id: mlflow.MlflowClient(uri).get_run(run_id).data.tags


@pytest.fixture
def command(run_python):
    """Return a function that runs a command with `--json` and returns the parsed output."""

    def run(*words: str):
        status, out, err = run_python("-m", "autogen_team", *words, "--json")
        assert status == 0, err
        return json.loads(out)

    return run


@STORES
@pytest.mark.parametrize("handover", ["0", "1000"], ids=["agent", "thread"])
def test_a_job_that_logs_nothing_sends_heartbeats(start_job, request, tags_of, wait_until, store, handover):
    """The agent, or the job's thread if there is none, sends heartbeats with the job's host and process id."""
    uri = request.getfixturevalue(store)
    job, run_id = start_job(uri, HANDOVER=handover)
    first = tags_of(uri, run_id)
    wait_until(lambda: tags_of(uri, run_id)[ALIVE_TAG] > first[ALIVE_TAG])
    second = tags_of(uri, run_id)
    wait_until(lambda: tags_of(uri, run_id)[ALIVE_TAG] > second[ALIVE_TAG])

    assert (second[HOST_TAG], second[PID_TAG]) == (socket.gethostname(), str(job.popen.pid))
    assert abs(moment(second[ALIVE_TAG]) - time.time()) < 60
    job.finish("\n")
    assert mlflow.MlflowClient(uri).get_run(run_id).info.status == "FINISHED"


def test_heartbeats_of_a_supervised_job_name_the_job(start_python, tags_of, wait_until, store_uri, tmp_path):
    """The tags have the process id of the job, not of the process that keeps its run."""
    path = tmp_path / "job.py"
    path.write_text("import os, sys\nprint('pid', os.getpid(), flush=True)\nsys.stdin.readline()\n")
    environment = {"MLFLOW_TRACKING_URI": store_uri, "AUTOGEN_TEAM_MLFLOW_HEARTBEAT": "0.5"}
    job = start_python("-m", "autogen_team", "run", str(path), stdin=-1, fresh=True, **environment)
    pid = job.wait_for("pid").split()[1]
    client = mlflow.MlflowClient(store_uri)
    wait_until(lambda: client.search_runs(["1"]))
    (run,) = client.search_runs(["1"])

    assert run.data.tags[PID_TAG] == pid
    wait_until(lambda: tags_of(store_uri, run.info.run_id)[ALIVE_TAG] > run.data.tags[ALIVE_TAG])
    assert tags_of(store_uri, run.info.run_id)[PID_TAG] == pid
    assert job.finish("\n")[0] == 0


def test_an_interval_of_0_disables_heartbeats(start_job, tags_of, store_uri):
    """No heartbeat tags are set, neither at the start nor later."""
    job, run_id = start_job(store_uri, EVERY="0")
    job.finish("\n")

    assert {ALIVE_TAG, HOST_TAG, PID_TAG}.isdisjoint(tags_of(store_uri, run_id))


@STORES
def test_a_job_that_was_only_frozen_opens_its_run_again(start_job, request, tags_of, wait_until, command, store):
    """Another machine has closed the run meanwhile; the reason is removed, and the job ends normally."""
    uri = request.getfixturevalue(store)
    job, run_id = start_job(uri)
    wait_until(lambda: _agent_gives(uri, run_id, tags_of))
    job.send(signal.SIGSTOP)
    closed: list[dict] = []
    wait_until(lambda: closed or closed.extend(_closed(command, uri, run_id, "2s")))
    assert tags_of(uri, run_id)[EXCEPTION_TAG].startswith(LOST)
    job.send(signal.SIGCONT)
    client = mlflow.MlflowClient(uri)
    wait_until(lambda: client.get_run(run_id).info.status == "RUNNING")
    wait_until(lambda: EXCEPTION_TAG not in tags_of(uri, run_id))
    job.finish("\n")

    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert EXCEPTION_TAG not in run.data.tags
    assert run.info.end_time > run.info.start_time


def _agent_gives(uri: str, run_id: str, tags_of) -> bool:
    tags = tags_of(uri, run_id)
    return tags[ALIVE_TAG] > f"{datetime.fromtimestamp(int(_started(uri, run_id)) + 1, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _started(uri: str, run_id: str) -> float:
    return mlflow.MlflowClient(uri).get_run(run_id).info.start_time / 1000


def _closed(command, uri: str, run_id: str, limit: str) -> list[dict]:
    found = command("recover", "--stale", limit, "--tracking-uri", uri)
    return [one for one in found if one["run_id"] == run_id]


def test_the_run_of_a_lost_machine_is_closed(start_job, store_uri, wait_until, command, agents_of_state, tmp_path):
    """Another machine lists and closes its run; runs of plain MLflow are closed only with `--all`."""
    job, run_id = start_job(store_uri)
    wait_until(agents_of_state)
    client = mlflow.MlflowClient(store_uri)
    plain = client.create_run("0", start_time=int((time.time() - 7200) * 1000))
    busy = client.create_run("0", start_time=int((time.time() - 7200) * 1000))
    client.log_metric(busy.info.run_id, "loss", 0.5)
    job.send(signal.SIGSTOP)  # so that it starts no other agent
    for agent in agents_of_state():
        agent.kill()
    job.send(signal.SIGKILL)
    job.finish()
    (tmp_path / "state").rename(tmp_path / "state-of-the-lost")

    listed = {one["run_id"]: one for one in command("status", "--store", "--tracking-uri", store_uri)}
    assert listed.keys() == {run_id, plain.info.run_id, busy.info.run_id}
    assert (listed[run_id]["host"], listed[run_id]["pid"]) == (socket.gethostname(), str(job.popen.pid))
    assert listed[plain.info.run_id]["sign"] is None

    assert command("recover", "--stale", "1h", "--tracking-uri", store_uri) == []
    wait_until(lambda: command("recover", "--stale", "1s", "--dry-run", "--tracking-uri", store_uri))
    assert client.get_run(run_id).info.status == "RUNNING"
    (closed,) = command("recover", "--stale", "1s", "--tracking-uri", store_uri)
    run = client.get_run(run_id)
    assert (closed["run_id"], run.info.status) == (run_id, "KILLED")
    assert run.data.tags[EXCEPTION_TAG] == f"{LOST} {run.data.tags[ALIVE_TAG]} ({socket.gethostname()})"
    assert run.info.end_time == moment(run.data.tags[ALIVE_TAG]) * 1000

    (closed,) = command("recover", "--stale", "1h", "--all", "--tracking-uri", store_uri)
    assert closed["run_id"] == plain.info.run_id
    assert client.get_run(busy.info.run_id).info.status == "RUNNING"


@pytest.fixture
def agents_of_state(tmp_path, fresh_agents):
    """Return a function that returns the agents of this test's state folder."""
    import psutil

    def find() -> list[psutil.Process]:
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if agent_link.NAME in (words := process.info["cmdline"] or [])
            and any(str(tmp_path / "state") in word for word in words)
        ]

    return find


def test_all_lost_runs_are_closed_and_no_live_ones(store_uri, command):
    """Of 200 live and 20 dead runs only the dead are closed, in one experiment or in all."""
    client = mlflow.MlflowClient(store_uri)
    other = client.create_experiment("other")
    ages = itertools.chain(itertools.repeat(1, 180), itertools.repeat(240, 20), itertools.repeat(400, 20))
    for number, age in enumerate(ages):
        alive = f"{datetime.fromtimestamp(time.time() - age, UTC):%Y-%m-%dT%H:%M:%SZ}"
        client.create_run(("0", other)[number % 2], tags={ALIVE_TAG: alive, HOST_TAG: "node"}, run_name=f"{age}")

    some = command("recover", "--stale", "5m", "--experiment", "other", "--tracking-uri", store_uri)
    rest = command("recover", "--stale", "5m", "--tracking-uri", store_uri)

    assert [one["name"] for one in some] == ["400"] * 10
    assert [one["name"] for one in rest] == ["400"] * 10
    assert len(command("status", "--store", "--tracking-uri", store_uri)) == 200


def test_a_run_with_a_new_heartbeat_stays_open(store_uri):
    """The heartbeat is read again before the run is closed."""
    client = mlflow.MlflowClient(store_uri)
    run = client.create_run("0", tags={ALIVE_TAG: "2026-01-01T00:00:00Z"})
    store = lost.Store(store_uri, 5.0)
    (found,) = store.running()
    client.set_tag(run.info.run_id, ALIVE_TAG, "2026-01-01T00:10:00Z")

    assert not store.close(found)
    assert client.get_run(run.info.run_id).info.status == "RUNNING"


@dataclass
class Answer:
    """An answer of a server whose clock is an hour ahead."""

    status_code: int = 200
    text: str = "{}"
    content: bytes = b'{"run": {"info": {"status": "RUNNING"}, "data": {}}}'
    headers: dict[str, str] = field(default_factory=lambda: {"Date": email.utils.formatdate(time.time() + 3600)})


def test_the_clock_of_the_server_counts():
    """A machine whose clock is behind sends heartbeats in the server's time."""
    server = rest_backend.Server(lambda _path, _body: Answer())
    assert server.ahead == 0.0
    assert server.look("a") == RunState("RUNNING", {})

    assert abs(server.ahead - 3600) < 60


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["recover", "--stale", "5"], "'5' is not a duration: write 90s, 5m, 2h or 1d"),
        (["recover", "--stale", "0s"], "is not a duration"),
        (["recover", "--all"], "only valid with --stale"),
        (["recover", "--stale", "5m", "--host", "a"], "use one of them"),
        (["status", "--experiment", "a"], "only valid with --store"),
        (["status", "--store", "--tracking-uri", "sqlite:///none.db"], "there is no store at"),
        (["recover", "--stale", "5m", "--experiment", "none"], "the store has no experiment 'none'"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_invalid_options_are_refused(run_python, store_uri, words, said):
    """The error says what is wrong, and nothing is created."""
    status, _, err = run_python("-m", "autogen_team", *words, MLFLOW_TRACKING_URI=store_uri)

    assert status == 2
    assert said in " ".join(err.replace("│", " ").split())
    assert not Path("none.db").exists()
