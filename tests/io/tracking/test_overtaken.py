"""A process that was frozen or cut off ends once a later attempt of its job has claimed the run."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sqlite3
import time
from contextlib import closing

import mlflow
import psutil
import pytest

from autogen_team._process.run_events import ATTEMPT_TAG, EXCEPTION_TAG
from autogen_team._ship import agent_link
from autogen_team._ship.backend import Batch, RunState, Unreachable
from autogen_team._ship.owners import CLAIM, Claim, Owners
from autogen_team._ship.signs import HOST_TAG, PID_TAG, Signs, before_claims

pytestmark = pytest.mark.usefixtures("forked_children")

START = """
import json, os, socket, sys, time, mlflow
from autogen_team import GlobalContext
from autogen_team._capture import write_behind
from autogen_team._ship import agent_link, owners, signs
from autogen_team.errors import JobRunningError
from autogen_team.io.services import AlertsService, MlflowService
write_behind._HANDOVER_TO_DATABASE = write_behind._HANDOVER_TO_SERVER = float(os.environ.get("HANDOVER", "1000"))
if "UNWATCHED" in os.environ:
    agent_link.AgentLink.watch = lambda *_: None
signs.LAUNCH = 0.0
if "AWAY" in os.environ:  # another machine, as the claims and the heartbeats of this process name it
    socket.gethostname = lambda: os.environ["AWAY"]
    owners._machine = lambda: os.environ["AWAY"]
def context(alert_on="failure"):
    service = MlflowService(autolog_disable=True, heartbeat=0.5, snapshot=False)
    return GlobalContext(mlflow_service=service, alerts_service=AlertsService(enable=False), alert_on=alert_on)
def opened(context):
    while True:
        try:
            run = context.run("train", job=os.environ["JOB"], stale=1.5, log_system_metrics=False)
            return run, run.__enter__()
        except JobRunningError:
            time.sleep(0.1)
"""
JOB = (
    START
    + """
with context() as context, context.run("train", job=os.environ["JOB"], stale=1.5, log_system_metrics=False) as run:
    mlflow.log_param("first", 1)
    step = 0
    mlflow.log_metric("loss", step, step=step)
    if "HANDOVER" in os.environ:
        (one,) = write_behind._working.values()
        while not one.shipper._handed_over:
            mlflow.log_metric("loss", step, step=step)
            time.sleep(0.05)
    context.mlflow_service.flush()
    print("run", run.info.run_id, flush=True)
    try:
        while True:
            step += 1
            mlflow.log_metric("loss", step, step=step)
            print("logged", step, flush=True)
            time.sleep(0.02)
    finally:
        mlflow.log_metric("late", 1)
        mlflow.log_param("late", 1)
        mlflow.set_tag("late", "1")
        print("finally", flush=True)
"""
)
LATER = (
    START
    + """
with context("never") as context:
    block, run = opened(context)
    mlflow.log_metric("later", 1)
    context.mlflow_service.flush()
    print("claimed", json.dumps([run.info.run_id, context.attempt, os.getpid()]), flush=True)
    sys.stdin.readline()
    block.__exit__(None, None, None)
"""
)
STORES = pytest.mark.parametrize("store", ["store_uri", "mlflow_server"])


@pytest.fixture(autouse=True)
def name_of_job(monkeypatch, tmp_path):
    """Name the job after the test, because tests share a server."""
    monkeypatch.setenv("JOB", tmp_path.name)


@pytest.fixture
def claim(start_python, tmp_path):
    """Return a function that claims the run on another machine; it returns the process and what it has told."""

    def start(uri: str, **environment: str):
        state = str(tmp_path / "away")
        process = start_python(
            "-c", LATER, stdin=-1, MLFLOW_TRACKING_URI=uri, AWAY="node8", AUTOGEN_TEAM_STATE_DIR=state, **environment
        )
        return process, json.loads(process.wait_for("claimed ").removeprefix("claimed "))

    return start


@pytest.fixture
def agents(fresh_agents, tmp_path):
    """Return a function that returns the agents of the job's state folder."""

    def find() -> list[psutil.Process]:
        place = str(agent_link.place_of(tmp_path / "state"))
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if (words := process.info["cmdline"] or []) and agent_link.NAME in words and place in words
        ]

    return find


@pytest.fixture
def freeze(wait_until):
    """Return a function that freezes processes, but not in a transaction, which would lock a SQLite file for all."""

    def suspend(uri: str, processes: list[psutil.Process]) -> bool:
        for process in processes:
            process.suspend()
        if not uri.startswith("sqlite:///") or _is_free(uri.removeprefix("sqlite:///")):
            return True
        for process in processes:
            process.resume()
        return False

    return lambda uri, processes: wait_until(lambda: suspend(uri, processes))


def _is_free(path: str) -> bool:
    with closing(sqlite3.connect(path, timeout=0)) as database:
        try:
            database.execute("BEGIN EXCLUSIVE")
            database.rollback()
        except sqlite3.OperationalError:
            return False
    return True


def _tree(job) -> list[psutil.Process]:
    return [psutil.Process(job.popen.pid), *psutil.Process(job.popen.pid).children(recursive=True)]


def _times(uri: str, run_id: str, key: str) -> list[float]:
    return [metric.timestamp / 1000 for metric in mlflow.MlflowClient(uri).get_metric_history(run_id, key)]


def _claimed(uri: str, run_id: str) -> float:
    return Claim.read(2, mlflow.MlflowClient(uri).get_run(run_id).data.params[f"{CLAIM}2"]).at


def _wait_past_claim(uri: str, run_id: str, wait_until) -> None:
    """Wait until nothing that is logged can be taken for earlier than the claim, whose time is known to a second."""
    until = _claimed(uri, run_id) + 1.1
    wait_until(lambda: time.time() > until)


def _is_of_the_later_attempt(uri: str, run_id: str, pid: int, *, has_logged: bool = True) -> None:
    give_up = time.monotonic() + 30
    while True:
        run = mlflow.MlflowClient(uri).get_run(run_id)
        # A heartbeat that a suspension has interrupted may arrive late; the next one of the later attempt replaces it.
        if run.data.tags[PID_TAG] == str(pid) or time.monotonic() > give_up:
            break
        time.sleep(0.1)
    assert (run.info.status, run.data.tags[ATTEMPT_TAG]) == ("RUNNING", "2")
    assert (run.data.tags[HOST_TAG], run.data.tags[PID_TAG]) == ("node8", str(pid))
    assert EXCEPTION_TAG not in run.data.tags
    assert {"late"}.isdisjoint({**run.data.params, **run.data.tags, **run.data.metrics})
    if has_logged:
        assert max(_times(uri, run_id, "loss")) <= _claimed(uri, run_id) + 1


@STORES
@pytest.mark.parametrize("shipped_by", ["thread", "agent", "frozen agent"])
def test_a_frozen_owner_ends_once_it_is_overtaken(
    start_python, claim, agents, freeze, wait_until, request, store, shipped_by
):
    """Its `finally` blocks run, an alert says where the job goes on, and the run is that of the later attempt."""
    uri = request.getfixturevalue(store)
    handover = {} if shipped_by == "thread" else {"HANDOVER": "0"}
    job = start_python("-c", JOB, MLFLOW_TRACKING_URI=uri, **handover)
    run_id = job.wait_for("run ").split()[1]
    job.wait_for("logged 5")
    frozen = agents() if shipped_by == "frozen agent" else []
    assert bool(frozen) == (shipped_by == "frozen agent")
    freeze(uri, [psutil.Process(job.popen.pid), *frozen])
    later, (claimed, attempt, pid) = claim(uri)
    assert (claimed, attempt) == (run_id, 2)
    _wait_past_claim(uri, run_id, wait_until)
    for agent in frozen:
        agent.resume()
    job.send(signal.SIGCONT)
    status, out, err = job.finish()

    assert status == 128 + signal.SIGTERM, err
    assert "finally" in out
    assert f"sending SIGTERM to the job: overtaken by attempt 2 on node8-{pid}" in err
    assert "train was overtaken" in out
    assert f"the job {os.environ['JOB']} goes on there, in the same run; this was start 1" in out
    _is_of_the_later_attempt(uri, run_id, pid)
    steps = {metric.step for metric in mlflow.MlflowClient(uri).get_metric_history(run_id, "loss")}
    assert steps >= set(range(6))
    assert steps == set(range(len(steps)))
    assert later.finish("\n")[0] == 0
    assert mlflow.MlflowClient(uri).get_run(run_id).info.status == "FINISHED"


CUT_OFF = (
    START
    + """
context = context()
context.start()
with context.run("train", job=os.environ["JOB"], stale=1.5, log_system_metrics=False) as run:
    if "HANDOVER" in os.environ:
        (one,) = write_behind._working.values()
        while not one.shipper._handed_over:
            mlflow.log_metric("loss", 0, step=0)
            time.sleep(0.05)
    mlflow.log_metric("loss", 0, step=0)
    context.mlflow_service.flush()
    print("run", run.info.run_id, flush=True)
    sys.stdin.readline()
    mlflow.log_metric("loss", 1, step=1)  # before the claim
    mlflow.log_param("before", 1)
    print("cut off", flush=True)
    sys.stdin.readline()
    mlflow.log_metric("loss", 2, step=2)
    mlflow.log_metric("late", 1)
    mlflow.log_param("late", 1)
    mlflow.set_tag("late", "1")
    print("logged", flush=True)
    if "CONTINUES" in os.environ:
        time.sleep(600)
print("closed", flush=True)
context.stop()
"""
)


def _cut_off(start_python, proxy, **environment: str):
    """Start a job, cut it off from its server, and let it log; return its process and the run."""
    job = start_python("-c", CUT_OFF, stdin=-1, MLFLOW_TRACKING_URI=proxy.uri, **environment)
    run_id = job.wait_for("run ").split()[1]
    proxy.status = 503
    _go_on(job)
    job.wait_for("cut off")
    return job, run_id


def _go_on(job) -> None:
    job.popen.stdin.write("\n")
    job.popen.stdin.flush()


@pytest.mark.parametrize("shipped_by", ["thread", "agent"])
def test_an_owner_that_was_cut_off_ends(start_python, claim, wait_until, proxy, mlflow_server, shipped_by):
    """What it logged before the claim is delivered once its server answers again, and nothing after that."""
    handover = {} if shipped_by == "thread" else {"HANDOVER": "0"}
    job, run_id = _cut_off(start_python, proxy, CONTINUES="1", **handover)
    _, (_, _, pid) = claim(mlflow_server)
    _wait_past_claim(mlflow_server, run_id, wait_until)
    _go_on(job)
    job.wait_for("logged")
    proxy.status = 200
    status, _, err = job.finish()

    assert status == 128 + signal.SIGTERM, err
    assert f"overtaken by attempt 2 on node8-{pid}" in err
    _is_of_the_later_attempt(mlflow_server, run_id, pid)
    run = mlflow.MlflowClient(mlflow_server).get_run(run_id)
    assert (run.data.metrics["loss"], run.data.params["before"]) == (1.0, "1")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("delivered_by", ["the job", "recover"])
def test_a_job_that_ends_while_it_is_cut_off_does_not_close_the_run(
    start_python, run_python, claim, wait_until, proxy, mlflow_server, delivered_by
):
    """Its journal has the end of the run, which belongs to a later attempt by the time it is delivered."""
    timeout = "60" if delivered_by == "the job" else "0.1"
    unwatched = {"UNWATCHED": "1", "AUTOGEN_TEAM_MLFLOW_FLUSH_TIMEOUT": timeout}
    job, run_id = _cut_off(start_python, proxy, **unwatched)
    _, (_, _, pid) = claim(mlflow_server)
    _wait_past_claim(mlflow_server, run_id, wait_until)
    _go_on(job)
    job.wait_for("closed")
    if delivered_by == "the job":
        proxy.status = 200
    status, _, err = job.finish()
    assert status == 0, err
    if delivered_by == "recover":
        proxy.status = 200
        status, out, err = run_python("-m", "autogen_team", "recover", "--json", MLFLOW_TRACKING_URI=proxy.uri)
        assert status == 0, err
        (recovered,) = json.loads(out)
        assert (recovered["problem"], recovered["closed"]) == ("", [])

    _is_of_the_later_attempt(mlflow_server, run_id, pid)
    run = mlflow.MlflowClient(mlflow_server).get_run(run_id)
    assert (run.data.metrics["loss"], run.data.params["before"]) == (1.0, "1")


POOL = (
    START
    + """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

def work(number):
    try:
        for step in range(10**6):
            mlflow.log_metric("loss", step, step=step)
            print("works", number, step, flush=True)
            time.sleep(0.05)
    finally:
        print("worker finally", flush=True)

with context() as context, context.run("train", job=os.environ["JOB"], stale=1.5, log_system_metrics=False) as run:
    print("run", run.info.run_id, flush=True)
    with ProcessPoolExecutor(2, get_context("fork")) as pool:
        list(pool.map(context.bind(work), range(2)))
"""
)


def test_the_workers_of_an_overtaken_owner_end_with_it(start_python, claim, freeze, wait_until, store_uri):
    """What they logged after the claim is not delivered either."""
    job = start_python("-c", POOL, MLFLOW_TRACKING_URI=store_uri, HANDOVER="0")
    run_id = job.wait_for("run ").split()[1]
    job.wait_for("works 0 20")
    job.wait_for("works 1 20")
    tree = _tree(job)
    freeze(store_uri, tree)
    _, (_, _, pid) = claim(store_uri)
    _wait_past_claim(store_uri, run_id, wait_until)
    for process in tree:
        process.resume()
    status, out, err = job.finish()

    assert status == 128 + signal.SIGTERM, err
    assert out.count("worker finally") == 2
    assert "overtaken by attempt 2 on node8" in err
    _is_of_the_later_attempt(store_uri, run_id, pid)


RANK = (
    START
    + """
from autogen_team.workers import ranks
config = MlflowService.RunConfig(name="train", job=os.environ["JOB"], stale=1.5, log_system_metrics=False)
with context() as context, ranks.run(context, config) as run:
    print("run", run.info.run_id, flush=True)
    try:
        time.sleep(600)
    finally:
        print("finally", flush=True)
"""
)


def test_a_rank_on_another_machine_ends_while_rank_0_is_frozen(start_python, claim, freeze, store_uri, tmp_path):
    """It reads with its own heartbeats that the job goes on elsewhere, without it."""
    launched = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    first = start_python("-c", RANK, RANK="0", MLFLOW_TRACKING_URI=store_uri, **launched)
    run_id = first.wait_for("run ").split()[1]
    away = {"AUTOGEN_TEAM_STATE_DIR": str(tmp_path / "node2"), "AWAY": "node2"}
    second = start_python("-c", RANK, RANK="1", MLFLOW_TRACKING_URI=store_uri, **launched, **away)
    assert second.wait_for("run ").split()[1] == run_id
    freeze(store_uri, [psutil.Process(first.popen.pid)])
    _, (_, _, pid) = claim(store_uri)
    status, out, err = second.finish()

    assert status == 128 + signal.SIGTERM, err
    assert "finally" in out
    assert f"overtaken by attempt 2 on node8-{pid}" in err
    first.send(signal.SIGCONT)
    assert first.finish()[0] == 128 + signal.SIGTERM
    _is_of_the_later_attempt(store_uri, run_id, pid, has_logged=False)


@pytest.mark.timeout(300)
def test_a_supervised_job_ends_once_it_is_overtaken(start_python, claim, freeze, wait_until, store_uri, tmp_path):
    """The supervisor gets the signal and passes it on; its keeper leaves the run to the later attempt."""
    (tmp_path / "work" / "job.py").write_text(
        "import time, mlflow\nstep = 0\ntry:\n    while True:\n"
        "        mlflow.log_metric('loss', step, step=step)\n        print('logged', step, flush=True)\n"
        "        step += 1\n        time.sleep(0.05)\n"
        "finally:\n    mlflow.log_metric('late', 1)\n    print('finally', flush=True)\n"
    )
    words = ("run", "--job", os.environ["JOB"], "--name", "train", "job.py")
    quick = {"AUTOGEN_TEAM_MLFLOW_HEARTBEAT": "0.5", "AUTOGEN_TEAM_ALERTS_ENABLE": "false"}
    job = start_python("-m", "autogen_team", *words, MLFLOW_TRACKING_URI=store_uri, **quick)
    job.wait_for("logged 20")
    tree = _tree(job)
    freeze(store_uri, tree)
    _, (run_id, attempt, pid) = claim(store_uri)
    assert attempt == 2
    _wait_past_claim(store_uri, run_id, wait_until)
    for process in tree:
        process.resume()
    status, out, err = job.finish()

    assert status == 128 + signal.SIGTERM, err
    assert "finally" in out
    assert f"overtaken by attempt 2 on node8-{pid}" in err
    assert "train was overtaken" in err
    _is_of_the_later_attempt(store_uri, run_id, pid)


class OneRun:
    """A store with a single run, which may be cut off."""

    ahead = 0.0

    def __init__(self, tags: dict[str, str], params: dict[str, str]) -> None:
        self.tags, self.params = tags, params
        self.asked, self.logged = 0, 0
        self.is_cut = False

    def look(self, _run_id: str) -> RunState:
        """Return the state of the run."""
        if self.is_cut:
            raise Unreachable("cut off")
        self.asked += 1
        return RunState("RUNNING", dict(self.tags), self.params)

    def log(self, _batch: Batch) -> None:
        """Count the heartbeat."""
        self.logged += 1


def _claim(attempt: int, at: float) -> dict[str, str]:
    return {f"{CLAIM}{attempt}": str(dataclasses.replace(Claim.here(attempt, 0), host="node8", pid=7, at=at))}


@pytest.fixture
def overtaken():
    """Return a store whose run was claimed by a second attempt at the time 1000."""
    return OneRun({ATTEMPT_TAG: "2"}, {**_claim(1, 500.0), **_claim(2, 1000.0)})


def test_a_heartbeat_on_time_detects_a_later_attempt(overtaken):
    """One request, no heartbeat in the run of another process, and one stop."""
    signs = Signs(Owners(overtaken), 0.001)
    for _ in range(2):
        signs.begin(time.time() - 0.001)
        assert signs.give({"a": 1}, {})

    assert (overtaken.asked, overtaken.logged) == (2, 0)
    assert [stop.reason for _, stop in signs.overtaken({"a": 1}, {}, {})] == ["overtaken by attempt 2 on node8-7"]
    assert list(signs.overtaken({"a": 1}, {}, {})) == []


def test_the_latest_attempt_is_not_overtaken(overtaken):
    """Its heartbeats go on, and its entries are kept."""
    signs = Signs(Owners(overtaken), 0.001)
    signs.begin(0.0)
    entries = [{"op": "metrics", "run": "a", "t": 2_000_000}]

    assert signs.give({"a": 2}, {})
    assert (overtaken.logged, list(signs.overtaken({"a": 2}, {}, {}))) == (1, [])
    assert signs.kept(entries, {"a": 2}, {}, {}) == entries


def test_the_store_is_asked_before_a_delivery_only_if_heartbeats_are_missing(overtaken):
    """While they arrive, no request is added; afterwards, nothing is delivered until the store has answered."""
    overtaken.tags = {}
    signs = Signs(Owners(overtaken), 30.0)
    entries = [{"op": "metrics", "run": "a", "t": 2_000_000}]
    assert signs.kept(entries, {"a": 1}, {}, {}) == entries
    assert overtaken.asked == 0

    signs.begin(time.time() - 60)
    overtaken.is_cut = True
    with pytest.raises(Unreachable):
        signs.kept(entries, {"a": 1}, {}, {})
    overtaken.is_cut = False
    for _ in range(3):
        assert signs.kept(entries, {"a": 1}, {}, {}) == entries
    assert overtaken.asked == 1


def test_a_rank_belongs_to_the_claim_of_its_own_launch(overtaken):
    """It may join the run before rank 0 has claimed it; a claim long after the start of the rank overtakes it."""
    owners = Owners(overtaken)
    owners.look("a")
    entries = [{"op": "metrics", "run": "a", "t": 2_000_000}]
    own, other = Signs(owners, 30.0, until=1000.0), Signs(owners, 30.0, until=900.0)

    assert list(own.overtaken({}, {"a": 1}, {})) == []
    assert own.kept(entries, {}, {"a": 1}, {}) == entries
    assert [run_id for run_id, _ in other.overtaken({}, {"a": 1}, {})] == ["a"]
    assert other.kept(entries, {}, {"a": 1}, {}) == []


def test_what_was_logged_before_the_claim_counts():
    """By the time of each entry; what belongs to the run itself never does, and other runs are not affected."""
    before, after = 900_000, 1_100_000
    entries = [
        {"op": "metrics", "run": "a", "t": before},
        {"op": "metrics", "run": "a", "t": after},
        {"op": "params", "run": "a", "t": before, "values": {"lr": "1"}},
        {"op": "params", "run": "a", "t": after, "values": {"lr": "2"}},
        {"op": "tags", "run": "a", "t": before, "values": {"user": "1", HOST_TAG: "node1"}},
        {"op": "tags", "run": "a", "values": {HOST_TAG: "node1"}},
        {"op": "info", "run": "a", "status": "FINISHED"},
        {"op": "untag", "run": "a", "key": "user"},
        {"op": "info", "run": "b", "status": "FINISHED"},
        {"op": "open", "run": "a"},
    ]

    assert list(before_claims(entries, {"a": 1000.0})) == [
        {"op": "metrics", "run": "a", "t": before},
        {"op": "params", "run": "a", "t": before, "values": {"lr": "1"}},
        {"op": "tags", "run": "a", "t": before, "values": {"user": "1"}},
        {"op": "info", "run": "b", "status": "FINISHED"},
        {"op": "open", "run": "a"},
    ]
