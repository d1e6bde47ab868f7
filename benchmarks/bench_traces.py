"""Compare the cost of traces and log lines to the job, and the time until the store has them, with plain MLflow.

`python benchmarks/bench_traces.py [--count N] [--delivery-rounds N] [--only-delivery]`. A trace has three spans, one of
them with 2 kB each of inputs and outputs. Plain MLflow exports traces asynchronously, as it does by default, with a
queue long enough to lose none.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench_tracking import ENVIRONMENT, HERE, Bench
from report import Row, show

PAUSE = 0.02
"""Seconds between traces of a job that also does other work."""


def job(bench: Bench, script: str, *arguments: str) -> dict[str, Any]:
    """Run a script of `peers/`, and return the figures that it prints."""
    folder = Path(tempfile.mkdtemp(dir=bench.folder))
    environment = {
        **os.environ,
        **ENVIRONMENT,
        "MLFLOW_ASYNC_TRACE_LOGGING_MAX_QUEUE_SIZE": "1000000",
        "AUTOGEN_TEAM_STATE_DIR": str(folder / "state"),
    }
    command = [sys.executable, "-W", "ignore", str(HERE / "peers" / script), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=folder)
    shutil.rmtree(folder, ignore_errors=True)
    return json.loads(done.stdout.splitlines()[-1])


def of_a_trace(bench: Bench, count: int) -> Iterator[Row]:
    """Compare the time that a trace takes from its caller."""
    for what, pause in (("apart", PAUSE), ("in a row", 0.0)):
        found: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
        for _ in range(bench.rounds):
            for kind, figures in found.items():
                figures.append(job(bench, "trace_job.py", kind, bench.database(), str(count), str(pause)))
        for figure in ("median", "mean"):
            ours, plain = (statistics.median(one[figure] for one in figures) for figures in found.values())
            yield Row(f"a trace of three spans, {what}, SQLite, {figure}", ours, plain, "MLflow", "us", 1.3)


def of_all_delivered(bench: Bench, count: int) -> Iterator[Row]:
    """Compare the time until a server has all traces; each round begins with the other contender."""
    found: dict[str, list[float]] = {"ours": [], "plain": []}
    for number in range(bench.rounds):
        for kind, figures in list(found.items())[:: -1 if number % 2 else 1]:
            with bench.server() as server:
                answer = job(bench, "trace_job.py", kind, server.uri, str(count), "0")
            if answer["stored"] < count:
                raise RuntimeError(f"{kind}: the store has {answer['stored']} of {count} traces")
            figures.append(answer["all"])
    ours, plain = (statistics.median(figures) for figures in found.values())
    yield Row(f"until a server has {count} traces", ours, plain, "MLflow", "s", 1.0)


def of_a_line(bench: Bench) -> Iterator[Row]:
    """Compare the cost of a log line with and without an OpenTelemetry collector."""
    for what, pause, clock in (("apart", 0.001, "wall"), ("in a row", 0.0, "wall"), ("in a row, CPU", 0.0, "cpu")):
        rounds = [job(bench, "log_job.py", str(pause)) for _ in range(bench.rounds)]
        ours, plain = (statistics.median(found[kind][clock] for found in rounds) for kind in ("with", "without"))
        yield Row(f"a log line with otlp, {what}", ours, plain, "the same without", "us", 1.3)


def main() -> None:
    """Measure and print the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=2000, help="traces that a server gets in each round")
    parser.add_argument("--delivery-rounds", type=int, default=1, help="rounds with a server")
    parser.add_argument("--only-delivery", action="store_true", help="measure only the time until a server has them")
    parser.add_argument("--peers-python", type=Path, default=HERE.parent / ".venv-peers" / "bin" / "python")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bench = Bench(Path(folder), arguments.rounds, arguments.peers_python, stack)
        if not arguments.only_delivery:
            show(list(of_a_trace(bench, 200)))
            show(list(of_a_line(bench)))
        bench.rounds = arguments.delivery_rounds
        show(list(of_all_delivered(bench, arguments.count)))


if __name__ == "__main__":
    main()
