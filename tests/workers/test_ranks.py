"""Ranks of one launch, as torchrun starts them: one script, several times, distinguished by variables."""

from __future__ import annotations

import signal

import pytest

NODE_NAMES = [{"MLFLOW_SYSTEM_METRICS_NODE_ID": name} for name in ("a", "b")]
TRAIN = """
with make_context() as context, ranks.run(context, "train", nested="nested" in sys.argv, timeout=TIMEOUT):
    rank = int(os.environ["RANK"])
    logger.info("rank {}", rank)
    mlflow.log_metric("accuracy", 0.5, step=rank)
    context.notify("epoch", "done")
    if "fail" in sys.argv and rank == 1:
        raise ValueError("no batch")
    if rank == 0:
        sys.stdin.readline()
"""


@pytest.fixture
def launch(start_python, write_job, store):
    """Return a function that starts all ranks, and returns status and output of each; rank 0 ends last."""

    def start(*arguments: str, size: int = 3, timeout: float = 60.0, **environment: str) -> list[tuple[int, str, str]]:
        job = write_job(TRAIN, f"from autogen_team.workers import ranks\nTIMEOUT = {timeout}\n")
        variables = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", **environment}
        processes = [
            start_python(job, *arguments, stdin=-1, RANK=str(rank), LOCAL_RANK=str(rank), **variables)
            for rank in range(size)
        ]
        others = [process.finish() for process in processes[1:]]
        return [processes[0].finish("\n"), *others]

    return start


def test_all_ranks_log_to_one_run(launch, store, log_lines):
    """Rank 0 opens the run and the others find it; each has its own log, and only rank 0 sends its alert."""
    ended = launch()

    assert [status for status, _, _ in ended] == [0, 0, 0], ended
    [run] = store.runs()
    assert (run.info.run_name, run.info.status, store.steps(run)) == ("train", "FINISHED", [0, 1, 2])
    assert [out for _, out, _ in ended] == ["[job] epoch: done\n", "", ""]
    lines = [line for line in log_lines("job*.log") if line["function"] == "<module>"]
    assert sorted((line["message"], line["rank"], "worker" in line) for line in lines) == [
        ("rank 0", "0", False),
        ("rank 1", "1", True),
        ("rank 2", "2", True),
    ]
    assert {line["run_id"] for line in lines} == {run.info.run_id}
    assert len(store.logs(run)) == 3


def test_ranks_can_have_children(launch, store):
    """Child runs are named after their ranks."""
    launch("nested", size=2)

    [child] = store.children()
    assert (child.info.run_name, child.info.status, store.steps(child)) == ("rank 1", "FINISHED", [1])
    assert store.steps(store.run("train")) == [0]


NODES = """
from autogen_team.io.services import MlflowService
with make_context() as context, ranks.run(context, "train", log_system_metrics=True):
    seen, rank = set(), os.environ["RANK"]
    deadline = time.monotonic() + 60
    while (rank == "0" or rank == "2") and len(seen) < 2 and time.monotonic() < deadline:
        run = mlflow.MlflowClient().get_run(mlflow.active_run().info.run_id)
        seen = {key.split("/")[1] for key in run.data.metrics if key.endswith("/cpu_utilization_percentage")}
        time.sleep(0.1)
    print(sorted(seen))
    sys.stdin.readline()
"""


def test_each_node_is_sampled_once(start_python, write_job, store):
    """The first rank of each node samples, under the node's name; a single machine has no name."""
    job = write_job(NODES, "import time\nfrom autogen_team.workers import ranks\n")
    variables = {
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
        "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.2",
    }
    processes = [
        start_python(
            *(job,), stdin=-1, RANK=f"{2 * node + local}", LOCAL_RANK=str(local), **NODE_NAMES[node], **variables
        )
        for node in range(2)
        for local in range(2)
    ]
    # Rank 0 keeps the run open until the others are done.
    ended = [*reversed([process.finish("\n") for process in reversed(processes)])]

    assert [status for status, _, _ in ended] == [0] * 4, ended
    assert [out for _, out, _ in ended] == ["['a', 'b']\n", "[]\n", "['a', 'b']\n", "[]\n"]
    [run] = store.runs()
    assert {key.split("/")[1] for key in run.data.metrics if key.startswith("system/")} == {"a", "b"}


def test_the_failure_of_a_rank_is_reported(launch, store):
    """The rank's alert and a tag of the run report it, although rank 0 may close the run as FINISHED."""
    (status, first, _), (failed, second, _) = launch("fail", size=2)

    assert (status, failed) == (0, 1)
    assert "failed" not in first
    assert second.startswith("[job] train failed (rank 1): ")
    [run] = store.runs()
    assert run.data.tags["autogen_team.exception.rank_1"] == "ValueError: no batch"


def test_a_launch_does_not_join_the_one_before(launch, store):
    """Launches differ by their ids or, with equal ids, by the end of the previous run."""
    launch(size=2, TORCHELASTIC_RUN_ID="a")
    launch(size=2, TORCHELASTIC_RUN_ID="b")
    launch(size=2, TORCHELASTIC_RUN_ID="b")

    assert [store.steps(run) for run in store.runs()] == [[0, 1]] * 3


def test_agents_count_their_restarts_separately(start_python, write_job, store):
    """The ranks of one launch may have different restart counts."""
    job = write_job(TRAIN, "from autogen_team.workers import ranks\nTIMEOUT = 60\n")
    variables = {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "digits", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    first, second = [
        start_python(job, stdin=-1, RANK=str(rank), TORCHELASTIC_RESTART_COUNT=str(rank), **variables)
        for rank in range(2)
    ]
    assert second.finish()[0] == 0
    assert first.finish("\n")[0] == 0

    [run] = store.runs()
    assert store.steps(run) == [0, 1]


JOB = """
with make_context() as context, ranks.run(context, "train", job="auto", nested="nested" in sys.argv) as run:
    rank = int(os.environ["RANK"])
    mlflow.log_metric("accuracy", 0.5, step=2 * context.attempt + rank)
    mlflow.log_param(f"restarts of {rank}", os.environ["TORCHELASTIC_RESTART_COUNT"])
    print("joined", run.info.run_id, context.attempt, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("nested", ["", "nested"])
def test_restarted_ranks_are_the_same_ranks(start_python, write_job, store, tmp_path, nested):
    """They use the same run or child runs, although agents count differently and share no state folder."""
    job = write_job(JOB, "from autogen_team.workers import ranks\n")

    def start(rank: int, restarts: int):
        state = str(tmp_path / f"node{rank}")
        variables = {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "digits", "MASTER_PORT": "29500"}
        return start_python(
            *(job, nested),
            stdin=-1,
            RANK=str(rank),
            TORCHELASTIC_RESTART_COUNT=str(restarts),
            AUTOGEN_TEAM_STATE_DIR=state,
            **variables,
        )

    before = [start(0, 0), start(1, 0)]
    ids = [process.wait_for("joined").split()[1] for process in before]
    for process in before:
        process.send(signal.SIGKILL)
        process.finish()
    again = [start(1, 1), start(0, 0)]
    told = [process.wait_for("joined").split() for process in reversed(again)]
    assert [process.finish("\n")[0] for process in again] == [0, 0]

    assert [one[1] for one in told] == ids
    assert [one[2] for one in told] == ["2", "2"]
    if nested:
        [child] = store.children()
        assert (child.info.run_name, child.info.status, store.steps(child)) == ("rank 1", "FINISHED", [3, 5])
        assert store.steps(store.run("train")) == [2, 4]
    else:
        [run] = store.runs()
        assert (run.info.status, store.steps(run)) == ("FINISHED", [2, 3, 4, 5])


def test_a_rank_without_rank_0_opens_its_own_run(run_python, write_job, store):
    """The rank's metrics are kept in a separate run."""
    job = write_job(TRAIN, "from autogen_team.workers import ranks\nTIMEOUT = 0.5\n")
    status, _, err = run_python(job, RANK="1", WORLD_SIZE="2")

    assert status == 0, err
    [run] = store.runs()
    assert (run.info.run_name, store.steps(run)) == ("train", [1])


def test_without_ranks_it_is_a_run_like_any_other(run_job, store):
    """The same script can be started manually."""
    run_job(
        """
        with make_context() as context, ranks.run(context, "train", tags={"fold": 1}):
            fold(3)
        """,
        "from autogen_team.workers import ranks\n",
    )

    [run] = store.runs()
    assert (run.data.tags["fold"], store.steps(run)) == ("1", [3])
    assert "autogen_team.launch" not in run.data.tags
