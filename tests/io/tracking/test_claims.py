"""One owner: of several starts of a job, one owns its run, and a living owner keeps it."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import socket
import time
from datetime import UTC, datetime

import mlflow
import pytest
from mlflow.entities import Param, RunStatus, RunTag

from autogen_team import GlobalContext
from autogen_team._process.run_events import ATTEMPT_TAG, JOB_TAG
from autogen_team._ship import mlflow_backend
from autogen_team._ship.owners import CLAIM, Claim, latest_claim
from autogen_team._ship.signs import ALIVE_TAG, HOST_TAG, PID_TAG
from autogen_team.errors import JobRunningError
from autogen_team.io.services import MlflowService

CLAIMANT = """
import os, sys, mlflow
from autogen_team import GlobalContext
from autogen_team.errors import JobRunningError
with GlobalContext() as context:
    print("ready", flush=True)
    for line in sys.stdin:
        job, ending = line.split()
        try:
            with context.run("train", job=job, log_system_metrics=False) as run:
                print("owner of", run.info.run_id, context.attempt, flush=True)
                sys.stdin.readline()
                if ending == "fails":
                    raise ValueError("as told")
        except JobRunningError as error:
            print("refused:", error, flush=True)
            sys.stdin.readline()
        except ValueError:
            pass
        context.mlflow_service.flush()
        print("done", flush=True)
"""


@pytest.fixture
def context(store_uri):
    """Return a context that runs in this process."""
    service = MlflowService(tracking_uri=store_uri, autolog_disable=True, heartbeat=30)
    with GlobalContext(mlflow_service=service) as context:
        yield context


@pytest.fixture
def plain(store_uri):
    """Return MLflow's own store, without our additions."""
    return mlflow_backend.plain_store(store_uri)


@pytest.fixture
def left(context, plain):
    """Return a function that creates a RUNNING run claimed on another machine, and returns its id."""

    def make(*, age: float, sign: float | None = None, **fields: object) -> str:
        now = time.time()
        experiment = context.mlflow_service.client().get_experiment_by_name("autogen_team").experiment_id
        run_id = plain.create_run(experiment, "ada", int(1000 * (now - age)), [], "train").info.run_id
        claim = dataclasses.replace(
            Claim.here(1, 0), host="node7", pid=4242, machine="elsewhere", at=now - age, **fields
        )
        plain.log_param(run_id, Param(f"{CLAIM}1", str(claim)))
        tags = {JOB_TAG: "nightly", ATTEMPT_TAG: "1", HOST_TAG: "node7", PID_TAG: "4243"}
        if sign is not None:
            tags[ALIVE_TAG] = f"{datetime.fromtimestamp(now - sign, UTC):%Y-%m-%dT%H:%M:%SZ}"
        for name, value in tags.items():
            plain.set_tag(run_id, RunTag(name, value))
        return run_id

    return make


def _open(context, **fields):
    with context.run("train", job="nightly", log_system_metrics=False, **fields) as run:
        return run.info.run_id


@pytest.mark.parametrize("sign", [None, 400.0])
def test_a_dead_owner_is_replaced(context, left, sign):
    """An owner on another machine is dead if neither its claim nor a heartbeat is younger than five minutes."""
    run_id = left(age=400, sign=sign)

    assert _open(context) == run_id


@pytest.mark.parametrize(("age", "sign"), [(100, None), (4000, 100)])
def test_a_living_owner_is_not_replaced(context, left, age, sign):
    """The error names the owner's process and host, and the time of its last heartbeat."""
    run_id = left(age=age, sign=sign)
    with pytest.raises(JobRunningError) as refused:
        _open(context)

    text = r"the job 'nightly' is already running: process 4243 on node7, last heartbeat \d{3} s ago \(run (\w+)\); .*"
    assert re.fullmatch(text, str(refused.value))[1] == run_id


def test_the_user_sets_the_limit(context, left):
    """`stale` is in seconds."""
    run_id = left(age=4000)
    with pytest.raises(JobRunningError):
        _open(context, stale=8000)

    assert _open(context, stale=2000) == run_id


def test_an_owner_may_miss_three_heartbeats(left, context, store_uri):
    """An owner is alive for three heartbeat intervals, even if `stale` is shorter."""
    left(age=4000)
    context.stop()
    service = MlflowService(tracking_uri=store_uri, autolog_disable=True, heartbeat=3000)
    with GlobalContext(mlflow_service=service) as patient, pytest.raises(JobRunningError):
        _open(patient, stale=60)


def test_the_restart_count_of_a_scheduler_is_trusted(context, left, monkeypatch):
    """The scheduler's restart count proves that the previous start has ended."""
    run_id = left(age=10, sign=5, starts=1)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(JobRunningError):
        _open(context)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")

    assert _open(context) == run_id


def test_a_claim_of_an_ended_run_counts(context, left, plain):
    """A process that has claimed an ended run may not have opened it yet."""
    run_id = left(age=4000)
    plain.update_run_info(run_id, RunStatus.FAILED, 1000, None)
    other = dataclasses.replace(Claim.here(2, 1000), host="node8", machine="elsewhere")
    plain.log_param(run_id, Param(f"{CLAIM}2", str(other)))
    with pytest.raises(JobRunningError, match="on node"):
        _open(context)
    plain.update_run_info(run_id, RunStatus.FAILED, 1001, None)

    assert _open(context) == run_id
    assert latest_claim(plain.get_run(run_id).data.params).attempt == 3


def test_on_this_machine_the_process_is_checked(start_python, context, store_uri, wait_until):
    """The process itself is checked: a living owner is refused and a dead one replaced at once."""
    process = start_python("-c", CLAIMANT, stdin=-1, MLFLOW_TRACKING_URI=store_uri)
    process.wait_for("ready")
    process.popen.stdin.write("nightly ends\n")
    process.popen.stdin.flush()
    run_id = process.wait_for("owner of").split()[2]
    with pytest.raises(JobRunningError, match=f"process {process.popen.pid} on {socket.gethostname()}"):
        _open(context)
    assert [run.info.run_id for run in _runs(store_uri)] == [run_id]
    process.send(signal.SIGKILL)
    process.finish()

    assert _open(context) == run_id


def test_a_claim_is_read_as_it_was_written():
    """Other texts are not parsed as a claim."""
    claim = Claim.here(3, 17)
    read = latest_claim({f"{CLAIM}2": "x", f"{CLAIM}3": str(claim), "lr": "1"})

    assert dataclasses.replace(read, at=claim.at) == claim
    assert abs(read.at - claim.at) < 1
    assert (read.is_of_this_machine, read.lives, read.pid) == (True, True, os.getpid())
    assert latest_claim({"lr": "1"}) is None
    assert latest_claim({f"{CLAIM}4": "by hand"}).attempt == 4


def _runs(uri):
    client = mlflow.MlflowClient(uri)
    return client.search_runs([client.get_experiment_by_name("autogen_team").experiment_id])


class _Pairs:
    """Two processes that claim the same jobs at the same moments."""

    def __init__(self, start_python, uri: str, tmp_path) -> None:
        self.uri = uri
        self.both = [
            start_python(
                "-c", CLAIMANT, stdin=-1, MLFLOW_TRACKING_URI=uri, AUTOGEN_TEAM_STATE_DIR=str(tmp_path / str(number))
            )
            for number in range(2)
        ]
        for process in self.both:
            process.wait_for("ready")

    def meet(self, job: str, ending: str) -> str:
        """Let both processes claim the job; return the run of the one that got it."""
        self.say(f"{job} {ending}")
        answers = [process.popen.stdout.readline() for process in self.both]
        owners = [answer.split() for answer in answers if answer.startswith("owner of")]
        assert len(owners) == 1, [*answers, *(process.finish()[2] for process in self.both)]
        assert sum(f"the job '{job}' is already running" in answer for answer in answers) == 1
        return owners[0][2]

    def end(self) -> None:
        """Tell the owner to end its run."""
        self.say("")
        for process in self.both:
            process.wait_for("done")

    def say(self, text: str) -> None:
        for process in self.both:
            process.popen.stdin.write(f"{text}\n")
            process.popen.stdin.flush()


def _meet(start_python, uri, tmp_path, count: int) -> None:
    pairs = _Pairs(start_python, uri, tmp_path)
    client = mlflow.MlflowClient(uri)
    for number in range(count):
        job = f"{tmp_path.name}-{number}"
        first = pairs.meet(job, "fails")
        pairs.end()
        assert client.get_run(first).info.status == "FAILED"
        assert pairs.meet(job, "ends") == first
        pairs.end()
        runs = [run for run in _runs(uri) if run.data.tags.get(JOB_TAG) == job]
        assert [(run.info.run_id, run.info.status, run.data.tags[ATTEMPT_TAG]) for run in runs] == [
            (first, "FINISHED", "2")
        ]


MEETINGS = int(os.environ.get("MEETINGS", "4"))
"""Number of jobs that two processes start at once, twice each; `make test-claims` runs 25, which are 50 pairs."""
STORES = pytest.mark.parametrize("store", ["store_uri", "mlflow_server", "postgres_uri"])


@pytest.mark.timeout(120 + 20 * MEETINGS)
@STORES
def test_one_of_two_claimants_is_the_owner(start_python, request, store, tmp_path, monkeypatch):
    """Exactly one of two processes becomes the owner, at the first start and at a restart."""
    monkeypatch.setenv("AUTOGEN_TEAM_MLFLOW_AUTOLOG_DISABLE", "true")
    _meet(start_python, request.getfixturevalue(store), tmp_path, MEETINGS)
