"""Ranks under real agents of torchrun, which restart their workers and count restarts separately."""

from __future__ import annotations

from pathlib import Path

import pytest

from autogen_team._process.run_events import ATTEMPT_TAG, JOB_TAG

pytest.importorskip("torch", reason="PyTorch is not installed (pip install torch)")

JOB = """
import torch.distributed as dist
from autogen_team.workers import ranks

dist.init_process_group("gloo")
rank, node = dist.get_rank(), os.environ["NODE"]
with make_context() as context, ranks.run(context, "train", job="auto", log_system_metrics=False) as run:
    told = [node, rank, os.environ["TORCHELASTIC_RESTART_COUNT"], context.attempt, run.info.run_id, time.time()]
    with open("joined", "a") as file:
        file.write(" ".join(map(str, told)) + "\\n")
    mlflow.log_metric("accuracy", 0.5, step=10 * context.attempt + rank)
    if not os.path.exists("killed"):
        if node == "b":
            open("killed", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        while True:  # until its agent learns of the others
            time.sleep(0.1)
    dist.barrier()
"""


@pytest.mark.timeout(900)
def test_agents_with_separate_states_share_one_run(start_python, write_job, store, free_port, tmp_path):
    """One agent's worker is killed, and each agent counts its own restarts."""
    job = write_job(JOB)
    port = free_port()
    words = ["-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3"]
    words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "digits", job]
    agents = [
        start_python(
            *words,
            fresh=True,
            NODE=node,
            AUTOGEN_TEAM_STATE_DIR=str(tmp_path / node),
            AUTOGEN_TEAM_MLFLOW_AUTOLOG_DISABLE="true",
            OMP_NUM_THREADS="1",
        )
        for node in "ab"
    ]
    ended = [agent.finish() for agent in agents]

    assert [status for status, _, _ in ended] == [0, 0], ended
    joined = [line.split() for line in Path("joined").read_text().splitlines()]
    [run] = store.runs()
    assert {line[4] for line in joined} == {run.info.run_id}
    assert (run.info.status, run.data.tags[JOB_TAG], run.data.tags[ATTEMPT_TAG]) == ("FINISHED", "torchrun-digits", "2")
    assert store.steps(run)[-2:] == [20, 21]
    last = [line for line in joined if line[3] == "2"]
    assert sorted(line[1] for line in last) == ["0", "1"]
    assert all(int(line[2]) > 0 for line in last)
