"""Many worker processes of one job, which log at the pace of a real job, with plain MLflow or inside our context.

Arguments: `plain` or `ours`, the tracking URI, the number of workers. The workers are forked from one parent that has
imported everything, so that hundreds fit on one machine. They have a low priority, so that the server has the machine
as if they ran elsewhere. Each worker has a child run of the parent's run, and starts its loop when all workers are
ready.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import loop
import mlflow

NICENESS = 10
PATIENCE = 200.0
"""Timeout in seconds for a worker to become ready."""

kind, uri, crew_size = sys.argv[1], sys.argv[2], int(sys.argv[3])
forking = multiprocessing.get_context("fork")
ready = forking.Semaphore(0)
begin = forking.Event()
found = forking.SimpleQueue()
orders: dict[str, float] = {}
workers: list[multiprocessing.process.BaseProcess] = []
job = contextlib.ExitStack()


def work(number: int) -> None:
    """Log one metric after another; a late call delays the next one, as in a real loop."""
    clock = time.monotonic
    ready.release()
    begin.wait()
    pause, taken = 1 / orders["rate"], []
    due = clock() + random.random() * pause
    for step in range(int(orders["calls"])):
        time.sleep(max(0.0, due - clock()))
        begun = clock()
        mlflow.log_metric("loss", 1 / (number + step + 1), step=step)
        taken.append(clock() - begun)
        due = max(due + pause, clock())
    found.put((clock(), taken))


def plain_work(parent: str, number: int) -> None:
    with mlflow.start_run(run_name=f"worker {number}", nested=True, parent_run_id=parent, log_system_metrics=False):
        work(number)


@contextlib.contextmanager
def plain() -> Iterator[object]:
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("crew")
    with mlflow.start_run(log_system_metrics=False) as run:
        parent = run.info.run_id
        yield lambda number: plain_work(parent, number)


@contextlib.contextmanager
def ours() -> Iterator[object]:
    from autogen_team import GlobalContext
    from autogen_team.io.services import LoggerService, MlflowService

    os.environ["AUTOGEN_TEAM_STATE_DIR"] = str(Path("state").absolute())
    tracking = MlflowService(tracking_uri=uri, experiment_name="crew", flush_timeout=PATIENCE)
    context = GlobalContext(logger_service=LoggerService(sink="job.log"), mlflow_service=tracking)
    with context, context.run("job", log_system_metrics=False):
        yield context.bind(work, nested=True)


def start(_: object, **details: float) -> dict[str, float]:
    """Fork the workers, and return the seconds until all of them are ready, each with its run."""
    orders.update(details)
    os.nice(NICENESS)
    target = job.enter_context({"plain": plain, "ours": ours}[kind]())
    begun = time.monotonic()
    for number in range(crew_size):
        workers.append(forking.Process(target=target, args=(number,)))
        workers[-1].start()
    for _ in workers:
        if not ready.acquire(timeout=PATIENCE):
            raise TimeoutError("a worker did not become ready")
    return {"seconds": time.monotonic() - begun}


def go(_: object) -> dict[str, float]:
    """Run the loops; return the seconds until the last call and until all workers ended, and the call times in us."""
    begun = time.monotonic()
    begin.set()
    answers = [found.get() for _ in workers]
    for worker in workers:
        worker.join()
    gone = time.monotonic() - begun
    failed = [worker.exitcode for worker in workers if worker.exitcode]
    if failed:
        raise RuntimeError(f"{len(failed)} workers failed: {failed}")
    job.close()
    taken = [one * 1e6 for _, some in answers for one in some]
    return {
        "logged": max(at for at, _ in answers) - begun,
        "gone": gone,
        "median": statistics.median(taken),
        "p99": statistics.quantiles(taken, n=100)[-1],
    }


loop.serve({}, start=start, go=go)
