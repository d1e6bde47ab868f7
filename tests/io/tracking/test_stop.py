"""The tag `autogen_team.stop`, set in a run's web page, ends its job."""

from __future__ import annotations

import pickle
import signal
import time

import mlflow
import psutil
import pytest

from autogen_team._capture.signals import Terminated, verdict
from autogen_team._process.run_events import EXCEPTION_TAG
from autogen_team._ship.backend import Batch, RunState
from autogen_team._ship.owners import Owners
from autogen_team._ship.signs import ALIVE_TAG, STOP_REQUESTED_TAG, STOP_TAG, RunsOfOthers, Signs, Stop
from autogen_team.io.services import MlflowService

pytestmark = pytest.mark.usefixtures("forked_children")

START = """
import os, signal, sys, time, mlflow
from autogen_team import GlobalContext
from autogen_team._capture import write_behind
from autogen_team._process import stopping
from autogen_team.io.services import MlflowService
write_behind._HANDOVER_TO_DATABASE = write_behind._HANDOVER_TO_SERVER = float(os.environ.get("HANDOVER", "0"))
stopping._PATIENCE = 0.5
service = MlflowService(autolog_disable=True, heartbeat=0.5)
"""
JOB = (
    START
    + """
resumed = os.environ.get("RESUMED")
with GlobalContext(mlflow_service=service) as context:
    with context.run("train", log_system_metrics=False, run_id=resumed) as run:
        print("run", run.info.run_id, flush=True)
        try:
            BODY
        finally:
            print("finally", flush=True)
"""
)
WAIT = "sys.stdin.readline()"
SLEEP = "time.sleep(600)"
HELD = "import ctypes; print('held', flush=True); ctypes.PyDLL(None).sleep(600)"
ASKED = "stopped from its page: diverges (ada)"
STORES = pytest.mark.parametrize("store", ["store_uri", "mlflow_server"])
SHIPPED_BY = pytest.mark.parametrize("handover", ["0", "1000"], ids=["agent", "thread"])


@pytest.fixture
def start_job(start_python):
    """Return a function that starts a job with this body; it returns process and run id."""

    def start(uri: str, body: str = SLEEP, **environment: str):
        code = JOB.replace("BODY", body)
        process = start_python("-c", code, stdin=-1, MLFLOW_TRACKING_URI=uri, **environment)
        return process, process.wait_for("run ").split()[1]

    return start


@pytest.fixture
def is_signed(wait_until):
    """Return a function that waits for a run's next heartbeat."""

    def wait(uri: str, run_id: str) -> None:
        client = mlflow.MlflowClient(uri)
        first = client.get_run(run_id).data.tags[ALIVE_TAG]
        wait_until(lambda: client.get_run(run_id).data.tags[ALIVE_TAG] > first)

    return wait


def status_of(uri: str, run_id: str) -> tuple[str, str | None]:
    """Return the status and the reason of a run."""
    run = mlflow.MlflowClient(uri).get_run(run_id)
    assert STOP_TAG not in run.data.tags
    return run.info.status, run.data.tags.get(EXCEPTION_TAG)


@STORES
@SHIPPED_BY
def test_the_tag_ends_the_job_like_sigterm(start_job, request, store, handover):
    """`finally` blocks run, the run is KILLED with the tag's text as reason, and the tag is removed."""
    uri = request.getfixturevalue(store)
    job, run_id = start_job(uri, HANDOVER=handover)
    mlflow.MlflowClient(uri).set_tag(run_id, STOP_TAG, "diverges (ada)")
    status, out, err = job.finish()

    assert status == 128 + signal.SIGTERM, err
    assert "finally" in out
    assert status_of(uri, run_id) == ("KILLED", ASKED)
    assert f"sending SIGTERM to the job: {ASKED}" in err


def test_secrets_of_the_text_are_masked():
    """Secrets are masked, whitespace becomes one space, and an empty tag gets a default reason."""
    assert "hunter2" not in Stop.of_tag("password=hunter2hunter2").reason
    assert Stop.of_tag("diverges\n (ada)") == Stop(ASKED)
    assert Stop.of_tag(" ") == Stop("stopped from its page")
    assert Stop.of_tag(" Now ").kills


@SHIPPED_BY
def test_a_handler_of_the_job_decides(start_job, store_uri, handover):
    """The job may continue, which is logged once, and end in any way."""
    body = (
        "signal.signal(signal.SIGTERM, lambda *_: print('heard', flush=True))\n"
        "            print('ready', flush=True)\n"
        f"            {WAIT}"
    )
    job, run_id = start_job(store_uri, body, HANDOVER=handover)
    job.wait_for("ready")
    client = mlflow.MlflowClient(store_uri)
    for _ in range(2):
        client.set_tag(run_id, STOP_TAG, "diverges (ada)")
        job.wait_for("heard")
    said = ""
    while "the job still runs, 0.5 s after SIGTERM" not in said:
        said = job.popen.stderr.readline()
        assert said
    status, _, err = job.finish("\n")

    assert status == 0, err
    assert "the job still runs" not in err
    assert status_of(store_uri, run_id) == ("FINISHED", None)


@SHIPPED_BY
def test_now_kills_a_job_that_continues(start_job, store_uri, wait_until, handover):
    """The job is killed after its grace period; the agent closes the run with the reason."""
    body = (
        f"signal.signal(signal.SIGTERM, lambda *_: None)\n            print('ready', flush=True)\n            {SLEEP}"
    )
    job, run_id = start_job(store_uri, body, HANDOVER=handover, AUTOGEN_TEAM_GRACE="1")
    job.wait_for("ready")
    mlflow.MlflowClient(store_uri).set_tag(run_id, STOP_TAG, "now")

    assert job.popen.wait(60) == -signal.SIGKILL
    wait_until(lambda: mlflow.MlflowClient(store_uri).get_run(run_id).info.status != "RUNNING")
    assert status_of(store_uri, run_id) == ("KILLED", "stopped from its page: now")


def test_now_kills_a_job_whose_interpreter_is_held(start_job, store_uri, wait_until):
    """The agent kills the job from outside, once it has taken over shipping."""
    body = (
        "(one,) = write_behind._working.values()\n"
        "            while not one.shipper._handed_over: time.sleep(0.05)\n"
        f"            {HELD}"
    )
    job, run_id = start_job(store_uri, body, AUTOGEN_TEAM_GRACE="1")
    job.wait_for("held")
    mlflow.MlflowClient(store_uri).set_tag(run_id, STOP_TAG, "now")

    assert job.popen.wait(60) == -signal.SIGKILL
    wait_until(lambda: mlflow.MlflowClient(store_uri).get_run(run_id).info.status != "RUNNING")
    assert status_of(store_uri, run_id) == ("KILLED", "stopped from its page: now")


def test_a_run_that_is_resumed_does_not_stop_at_once(start_job, store_uri, is_signed):
    """An old tag of a killed job is removed when the run is resumed."""
    client = mlflow.MlflowClient(store_uri)
    old = client.create_run(client.create_experiment("autogen_team"), tags={STOP_TAG: "diverges (ada)"}).info.run_id
    client.set_terminated(old, "KILLED")
    job, run_id = start_job(store_uri, WAIT, RESUMED=old, HANDOVER="1000")
    is_signed(store_uri, run_id)
    status, _, err = job.finish("\n")

    assert (run_id, status) == (old, 0), err
    assert status_of(store_uri, run_id) == ("FINISHED", None)


@pytest.mark.parametrize(
    "target",
    [["job.py"], ["--", "bash", "-c", "trap 'echo finally; exit 3' TERM; echo ready; while true; do sleep 0.1; done"]],
    ids=["python", "command"],
)
def test_a_supervised_job_is_stopped(start_python, store_uri, wait_until, tmp_path, target):
    """The supervisor receives the signal and forwards it; the keeper records the reason."""
    (tmp_path / "work" / "job.py").write_text(
        "import time, mlflow\ntry:\n    print('ready', flush=True)\n    time.sleep(600)\n"
        "finally:\n    print('finally', flush=True)\n"
    )
    environment = {"MLFLOW_TRACKING_URI": store_uri, "AUTOGEN_TEAM_MLFLOW_HEARTBEAT": "0.5"}
    job = start_python("-m", "autogen_team", "run", *target, fresh=True, **environment)
    job.wait_for("ready")
    client = mlflow.MlflowClient(store_uri)
    wait_until(lambda: client.search_runs(["1"]))
    run_id = client.search_runs(["1"])[0].info.run_id
    client.set_tag(run_id, STOP_TAG, "diverges (ada)")
    status, out, err = job.finish()

    assert status == (3 if "--" in target else 128 + signal.SIGTERM), err
    assert "finally" in out
    assert status_of(store_uri, run_id) == ("KILLED", ASKED)


SUPERVISED_POOL = """
import mlflow, os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from autogen_team._capture import write_behind
write_behind._HANDOVER_TO_DATABASE = float(os.environ["HANDOVER"])

if __name__ == "__main__":
    mlflow.log_metric("loss", 1.0)
    (one,) = write_behind._working.values()
    while not (one.shipper._handed_over or write_behind._HANDOVER_TO_DATABASE):
        mlflow.log_metric("loss", 1.0)
        time.sleep(0.05)
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        print("ready", mlflow.active_run().info.run_id, flush=True)
        list(pool.map(time.sleep, [600]))
"""


@SHIPPED_BY
def test_the_pool_of_a_supervised_job_ends_with_it(start_python, store_uri, tmp_path, handover):
    """The job learns from its keeper that it must end, whether or not the agent has taken over."""
    (tmp_path / "work" / "job.py").write_text(SUPERVISED_POOL)
    environment = {"MLFLOW_TRACKING_URI": store_uri, "AUTOGEN_TEAM_MLFLOW_HEARTBEAT": "0.5", "AUTOGEN_TEAM_GRACE": "4"}
    job = start_python("-m", "autogen_team", "run", "job.py", fresh=True, HANDOVER=handover, **environment)
    run_id = job.wait_for("ready").split()[1]
    mlflow.MlflowClient(store_uri).set_tag(run_id, STOP_TAG, "diverges (ada)")
    status, _, err = job.finish()

    assert status == 128 + signal.SIGTERM, err
    assert status_of(store_uri, run_id) == ("KILLED", ASKED)


POOL = (
    START
    + """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

def work(number):
    if "quiet" not in sys.argv:
        mlflow.log_metric("worked", number, step=number)
    print("works", flush=True)
    try:
        time.sleep(600)
    finally:
        print("worker finally", flush=True)

if __name__ == "__main__":
    with GlobalContext(mlflow_service=service) as context, context.run("train", log_system_metrics=False) as run:
        print("run", run.info.run_id, flush=True)
        with ProcessPoolExecutor(2, get_context(sys.argv[1])) as pool:
            list(pool.map(work if "plain" in sys.argv else context.bind(work), range(2)))
"""
)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_workers_of_the_job_end_with_it(start_python, store_uri, tmp_path, method):
    """They work for the same run, even if they log nothing, and would hold up the end of their pool."""
    path = tmp_path / "work" / "pool.py"
    path.write_text(POOL)
    job = start_python(str(path), method, *(["quiet"] if method == "fork" else []), MLFLOW_TRACKING_URI=store_uri)
    run_id = job.wait_for("run ").split()[1]
    for _ in range(2):
        job.wait_for("works")
    mlflow.MlflowClient(store_uri).set_tag(run_id, STOP_TAG, "diverges (ada)")
    status, out, err = job.finish()

    assert status == 128 + signal.SIGTERM, err
    assert out.count("worker finally") == 2
    assert status_of(store_uri, run_id) == ("KILLED", ASKED)


@pytest.mark.parametrize("method", ["fork", "os.fork"])
def test_children_without_the_context_end_with_the_job(start_python, store_uri, tmp_path, wait_until, method):
    """They die by SIGTERM: those of a pool would hold up its end, and a forked one would outlive the job."""
    path = tmp_path / "work" / "pool.py"
    path.write_text(POOL if method == "fork" else FORKED)
    job = start_python(str(path), method, "plain", "quiet", MLFLOW_TRACKING_URI=store_uri, AUTOGEN_TEAM_GRACE="2")
    run_id = job.wait_for("run ").split()[1]
    child = job.wait_for("works").split()
    mlflow.MlflowClient(store_uri).set_tag(run_id, STOP_TAG, "diverges (ada)")
    status, _, err = job.finish()

    assert status == 128 + signal.SIGTERM, err
    assert status_of(store_uri, run_id) == ("KILLED", ASKED)
    if method == "os.fork":
        wait_until(lambda: not psutil.pid_exists(int(child[1])))


FORKED = (
    START
    + """
with GlobalContext(mlflow_service=service) as context, context.run("train", log_system_metrics=False) as run:
    print("run", run.info.run_id, flush=True)
    if not os.fork():
        os.setsid()  # so that nothing else ends it
        print("works", os.getpid(), flush=True)
        os.close(1)
        os.close(2)
        time.sleep(600)
    time.sleep(600)
"""
)


RANK = (
    START
    + """
from autogen_team.workers import ranks
with GlobalContext(mlflow_service=service) as context, ranks.run(context, "train", log_system_metrics=False) as run:
    print("run", run.info.run_id, flush=True)
    try:
        time.sleep(600)
    finally:
        print("finally", flush=True)
        if os.environ["RANK"] == "0":  # for a collective, in which the other ranks are missed
            sys.stdin.readline()
"""
)


def test_a_rank_that_logs_nothing_ends_while_rank_0_waits(start_python, store_uri, tmp_path):
    """Also on another machine, where the agent of rank 0 cannot tell it, and after rank 0 has taken the tag."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    launched = {"WORLD_SIZE": "2", **address, "MLFLOW_TRACKING_URI": store_uri}
    first = start_python("-c", RANK, stdin=-1, RANK="0", **launched)
    run_id = first.wait_for("run ").split()[1]
    second = start_python("-c", RANK, RANK="1", **launched, AUTOGEN_TEAM_STATE_DIR=str(tmp_path / "away"))
    assert second.wait_for("run ").split()[1] == run_id
    mlflow.MlflowClient(store_uri).set_tag(run_id, STOP_TAG, "diverges (ada)")
    first.wait_for("finally")
    status, out, err = second.finish()

    assert status == 128 + signal.SIGTERM, err
    assert "finally" in out
    assert first.finish("\n")[0] == 128 + signal.SIGTERM
    assert status_of(store_uri, run_id) == ("KILLED", ASKED)


CHILD = (
    START
    + """
import subprocess
if len(sys.argv) > 1:
    with GlobalContext(mlflow_service=service) as context, context.run("child", log_system_metrics=False) as run:
        print("child", run.info.run_id, flush=True)
        time.sleep(600)
with GlobalContext(mlflow_service=service) as context, context.run("train", log_system_metrics=False) as run:
    print("run", run.info.run_id, flush=True)
    ended = subprocess.run([sys.executable, __file__, "child"], env={**os.environ, **context.worker_env()})
    print("ended", ended.returncode, flush=True)
    sys.stdin.readline()
"""
)


def test_a_child_run_of_another_process_ends_alone(start_python, store_uri, tmp_path):
    """The job continues."""
    path = tmp_path / "work" / "child.py"
    path.write_text(CHILD)
    job = start_python(str(path), stdin=-1, MLFLOW_TRACKING_URI=store_uri)
    run_id = job.wait_for("run ").split()[1]
    child = job.wait_for("child ").split()[1]
    mlflow.MlflowClient(store_uri).set_tag(child, STOP_TAG, "diverges (ada)")

    assert job.wait_for("ended").split() == ["ended", str(128 + signal.SIGTERM)]
    assert status_of(store_uri, child) == ("KILLED", ASKED)
    assert job.finish("\n")[0] == 0
    assert status_of(store_uri, run_id) == ("FINISHED", None)


class OneRun:
    """A store with a single run."""

    def __init__(self, status: str, tags: dict[str, str]) -> None:
        self.status, self.tags, self.asked = status, tags, 0
        self.ahead = 0.0

    def look(self, _run_id: str) -> RunState:
        """Return the status and tags."""
        self.asked += 1
        return RunState(self.status, dict(self.tags))

    def log(self, batch: Batch) -> None:
        """Store the tags."""
        self.tags |= batch.tags

    def remove_tag(self, _run_id: str, key: str) -> None:
        """Remove a tag."""
        self.tags.pop(key, None)


@pytest.fixture
def stops_of():
    """Return a function that sends some heartbeats, and returns the stops that were found."""

    def give(store: OneRun, runs: list[str], others: list[str], times: int) -> list[tuple[str, Stop]]:
        found: list[tuple[str, Stop]] = []
        signs = Signs(Owners(store), 0.001, given=0.0)
        signs.on_stop = lambda run_id, stop: found.append((run_id, stop))
        for _ in range(times):
            signs.begin(time.time() - 0.001)
            assert signs.give(dict.fromkeys(runs, 1), {}, others)
        return found

    return give


@pytest.mark.parametrize(
    ("status", "tags", "reason"),
    [
        ("RUNNING", {STOP_TAG: "diverges (ada)"}, ASKED),
        ("RUNNING", {STOP_REQUESTED_TAG: "diverges (ada)"}, ASKED),
        ("FINISHED", {STOP_REQUESTED_TAG: "diverges (ada)"}, None),
        ("KILLED", {EXCEPTION_TAG: ASKED}, ASKED),
        ("KILLED", {EXCEPTION_TAG: "SIGTERM"}, None),
        ("FINISHED", {}, None),
    ],
)
def test_a_rank_on_another_machine_stops_once(stops_of, status, tags, reason):
    """The stop is read from the tag, or from the ended run if its opener has removed the tag."""
    store = OneRun(status, tags)
    found = stops_of(store, [], ["a"], 3)

    assert found == ([] if reason is None else [("a", Stop(reason))])
    assert store.tags == tags


def test_the_process_that_has_the_run_open_removes_the_tag(stops_of):
    """Each heartbeat reads the run once; a tag that is set again is a new stop."""
    store = OneRun("RUNNING", {STOP_TAG: "diverges (ada)"})

    assert stops_of(store, ["a"], [], 3) == [("a", Stop(ASKED))]
    assert store.asked == 3
    assert STOP_TAG not in store.tags
    assert store.tags[STOP_REQUESTED_TAG] == "diverges (ada)"
    store.tags[STOP_TAG] = "now"
    assert stops_of(store, ["a"], [], 1) == [("a", Stop("stopped from its page: now", kills=True))]


def test_runs_that_a_worker_opens_are_not_followed():
    """Runs that a worker opens do not count, however many there are."""
    runs = RunsOfOthers(["job"])
    runs.follow([{"op": "open", "run": "child"}, {"op": "metrics", "run": "child"}, {"op": "journal"}])

    assert runs.ids == {"job"}


def test_a_run_that_a_worker_has_joined_counts_until_it_is_left():
    """Once for each call that works for it; a forked child may leave what it has not joined."""
    runs = RunsOfOthers(["logged"])
    runs.join("job")
    runs.join("job")
    runs.leave("job")
    runs.leave("other")

    assert (runs.ids, runs.joined) == ({"logged", "job"}, {"job": 1})
    runs.leave("job")
    assert runs.ids == {"logged"}


def test_the_exception_of_a_stopped_worker_keeps_status_and_reason():
    """A pool pickles it for the job, which may not know the reason yet."""
    error = pickle.loads(pickle.dumps(Terminated(signal.SIGTERM, ASKED)))

    assert error.code == 128 + signal.SIGTERM
    assert verdict(error) == ("KILLED", ASKED)


def test_the_tag_is_removed_if_only_a_worker_has_read_it(store_uri):
    """The worker's exception may end the job before the job's own next heartbeat."""
    service = MlflowService(tracking_uri=store_uri, autolog_disable=True, heartbeat=0)
    with pytest.raises(Terminated), service, service.run_context(service.RunConfig(name="train")) as run:
        mlflow.MlflowClient(store_uri).set_tag(run.info.run_id, STOP_TAG, "diverges (ada)")
        raise Terminated(signal.SIGTERM, ASKED)

    assert status_of(store_uri, run.info.run_id) == ("KILLED", ASKED)
