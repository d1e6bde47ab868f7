"""Compare the cost of tracking to the job with MLflow, trackio, tensorboardX and wandb in the same loops (`peers/`).

Each contender is a separate process; they take turns in rounds. The figures are medians of the rounds. Each round is a
mean over a loop that lasts long enough to include deliveries. Servers are `mlflow server` on 127.0.0.1, with SQLite.
The peers have their own venv, which `make bench` creates; without it, their rows say so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from report import Row, show

HERE = Path(__file__).parent
PEERS = {"trackio": "trackio_local.py", "tensorboardX": "tensorboardx_files.py", "wandb offline": "wandb_offline.py"}
PATIENCE = 240.0
"""Seconds after which a contender or a server that does not answer is killed."""
SUSTAINED = 2.0
"""Duration of our loops in seconds; the journal is delivered four times per second."""
STEPS = 2000
SETTLED = 8.0
"""Seconds after which the agent ships the data of a job with a database, unless the job is about to end."""
LANES = "log_metric", "log_metrics"
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass
class Bench:
    """The parts that all comparisons share."""

    folder: Path
    rounds: int
    peers_python: Path
    stack: contextlib.ExitStack
    """Ends all started processes when it is closed."""
    before: Path | None = None
    """Another checkout of this project, to compare this one with."""

    def contender(self, script: str, *arguments: str, python: Path = Path(sys.executable)) -> Contender:
        """Start a contender, a script of `peers/`."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        return self.stack.enter_context(Contender([str(python), str(HERE / "peers" / script), *arguments], folder))

    def seconds_of_a_job(self, kind: str, uri: str, source: Path | None = None) -> float:
        """Run `short_job.py` with the package of the checkout `source`; return the seconds, including the start."""
        environment = {**os.environ, **ENVIRONMENT, "TMPDIR": str(self.folder)}
        if source is not None:
            environment["PYTHONPATH"] = str(source / "src")
        command = [sys.executable, str(HERE / "peers" / "short_job.py"), kind, uri]
        begun = time.monotonic()
        subprocess.run(command, check=True, capture_output=True, env=environment, cwd=self.folder)
        return time.monotonic() - begun

    def ourselves(self, *arguments: str) -> dict[str, Contender]:
        """Start `ours.py`, and the same with the package of the other checkout, if there is one."""
        found = {"our": self.contender("ours.py", *arguments)}
        if self.before is not None:
            os.environ["PYTHONPATH"] = str(self.before / "src")
            found["before, our"] = self.contender("ours.py", *arguments)
            del os.environ["PYTHONPATH"]
        return found

    def peers(self) -> dict[str, Contender | None]:
        """Start the peers that are installed; the others are None."""
        return {name: self._peer(name) for name in PEERS}

    def database(self) -> str:
        """Return the URI of a new database with MLflow's empty tables."""
        template = self.folder / "template.db"
        if not template.exists():
            code = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1]).search_experiments()"
            environment = {**os.environ, **ENVIRONMENT, "TMPDIR": str(self.folder)}
            command = [sys.executable, "-c", code, f"sqlite:///{template}"]
            subprocess.run(command, check=True, capture_output=True, env=environment)
        return f"sqlite:///{shutil.copy(template, Path(tempfile.mkdtemp(dir=self.folder)) / 'mlflow.db')}"

    def server(self, *options: str) -> Server:
        """Start an MLflow server on a new database."""
        return self.stack.enter_context(Server(self.database(), Path(tempfile.mkdtemp(dir=self.folder)), *options))

    def _peer(self, name: str) -> Contender | None:
        module = PEERS[name].partition("_")[0].replace("boardx", "boardX")
        with contextlib.suppress(OSError):
            if subprocess.run([self.peers_python, "-c", f"import {module}"], capture_output=True).returncode == 0:  # noqa: PLW1510
                return self.contender(PEERS[name], python=self.peers_python)
        return None


class Group:
    """A process and its children, which end with it."""

    def __init__(self, command: Sequence[str], folder: Path, **pipes: Any) -> None:
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **ENVIRONMENT, "TMPDIR": str(folder)},
                stderr=log,
                start_new_session=True,
                **{"stdout": log, **pipes},
            )

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Kill the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)


class Contender(Group):
    """A process that runs a script of `peers/`."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        super().__init__(command, folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            self.process.stdin.close()
            self.process.wait(10)
        super().__exit__()

    def ask(self, order: str, **details: Any) -> Any:
        """Send an order to the contender, and return its answer; kill it if it does not answer in time."""
        watch = threading.Timer(PATIENCE, self.kill)
        watch.start()
        try:
            self.process.stdin.write(json.dumps({"order": order, **details}).encode() + b"\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        finally:
            watch.cancel()
        if not answer:
            raise RuntimeError(f"{self.process.args} died: {self.log.read_text()[-3000:]}")
        return json.loads(answer)


class Server(Group):
    """A process that runs `mlflow server`."""

    def __init__(self, database: str, folder: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{port}"
        stores = ["--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts")]
        place = ["--host", "127.0.0.1", "--port", str(port)]
        super().__init__([sys.executable, "-m", "mlflow", "server", *place, *stores, *options], folder)

    def __enter__(self):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
            except OSError:
                time.sleep(0.1)
            else:
                return self
        self.kill()
        raise RuntimeError(f"the MLflow server did not start: {self.log.read_text()[-3000:]}")


def medians(rounds: int, *turns: Callable[[], dict[str, float]]) -> list[dict[str, float]]:
    """Call the turns alternately in rounds, and return the medians of the figures of each."""
    found = [[turn() for turn in turns] for _ in range(rounds)]
    return [
        {name: statistics.median(one[name] for one in answers) for name in answers[0]}
        for answers in zip(*found, strict=True)
    ]


def calls(contender: Contender, run: str, **details: Any) -> Callable[[], dict[str, float]]:
    """Return a function that asks the contender for the time of a call."""
    return lambda: contender.ask("calls", run=run, **{"seconds": SUSTAINED, **details})


def of_a_call(bench: Bench) -> Iterator[Row]:
    """Compare how long `mlflow.log_metric` blocks its caller."""
    what, peer = "mlflow.log_metric, {}", "MLflow, {}"
    uri = bench.database()
    ours, plain = bench.contender("ours.py", uri), bench.contender("plain_mlflow.py", uri)
    mine, theirs, nothing = medians(
        bench.rounds,
        calls(ours, "log_metric"),
        calls(plain, "log_metric", seconds=1.0, block=9),
        calls(plain, "nothing", seconds=1.0),
    )
    yield Row(what.format("SQLite"), mine["mean"], theirs["mean"], peer.format("SQLite"), "us", at_least=60)
    for figure in ("mean", "median"):
        store = f"MLflow, a store that does nothing, {figure}"
        yield Row(what.format(f"SQLite, {figure}"), mine[figure], nothing[figure], store, "us", 1.5)
    for name, options, seconds, promise in (
        ("server of 1 worker", ("--workers", "1"), 2.0, 200),
        ("default server", (), 5.0, 1000),
    ):
        uri = bench.server(*options).uri
        ours, plain = bench.contender("ours.py", uri), bench.contender("plain_mlflow.py", uri)
        mine, theirs = medians(
            bench.rounds, calls(ours, "log_metric"), calls(plain, "log_metric", seconds=seconds, block=9)
        )
        yield Row(what.format(name), mine["mean"], theirs["mean"], peer.format(name), "us", at_least=promise)


def of_all_delivered(bench: Bench) -> Iterator[Row]:
    """Compare the time until a server has all metrics."""
    steps = 10_000
    uri = bench.server("--workers", "1").uri
    ours, plain = bench.contender("ours.py", uri), bench.contender("plain_mlflow.py", uri)

    def mine() -> dict[str, float]:
        found = ours.ask("total", run="log_metric", steps=steps)
        stored = ours.ask("stored")
        if stored < steps:
            raise RuntimeError(f"the store has {stored} of {steps} metrics")
        return found

    us, them = medians(bench.rounds, mine, lambda: plain.ask("total", run="log_metric", steps=150))
    what = "until the server has it, per metric"
    yield Row(what, us["mean"], them["mean"], "MLflow, server of 1 worker", "us", at_least=20)


def of_the_fast_lane(bench: Bench) -> Iterator[Row]:
    """Compare the time of `log_metrics`."""
    ours, write = bench.contender("ours.py", bench.database()), bench.contender("os_write.py")
    peers = bench.peers()
    installed = {name: peer for name, peer in peers.items() if peer is not None}
    mine, line, *theirs = medians(
        bench.rounds,
        calls(ours, "log_metrics"),
        calls(write, "write", seconds=0.5),
        *(calls(peer, "log", seconds=1.0) for peer in installed.values()),
    )
    what = "service.log_metrics, {}"
    for figure in ("mean", "median"):
        at_most = 8.0 if figure == "mean" else None
        yield Row(what.format(figure), mine[figure], line[figure], f"os.write of 100 bytes, {figure}", "us", at_most)
    found = dict(zip(installed, theirs, strict=True))
    for name in peers:
        yield Row(what.format("mean"), mine["mean"], found[name]["mean"] if name in found else None, name, "us", 1.0)


def of_a_loop(bench: Bench) -> Iterator[Row]:
    """Compare a loop with a millisecond of work and a metric in each step with a loop without metrics.

    Our loop runs for `SETTLED` seconds before it is timed, so that the agent has taken over.
    """
    stores = {"SQLite": bench.database(), "server of 1 worker": bench.server("--workers", "1").uri}
    ours = {name: bench.ourselves(uri) for name, uri in stores.items()}
    plain, peers = bench.contender("plain_mlflow.py", bench.database()), bench.peers()

    def rows(
        what: str, contender: Contender | None, promises: dict[str, float | None], **details: Any
    ) -> Iterator[Row]:
        if contender is None:
            yield Row(what, None, None, "the same without", "ms")
            return
        details = {"steps": STEPS, "rounds": bench.rounds, **details}
        for run, found in contender.ask("steps", names=list(promises), **details).items():
            without = f"the same without (noise {found['noise']:.1%})"
            yield Row(what.format(run), found["with"], found["without"], without, "ms", promises[run])

    for work in ("python", "numpy"):
        for store, contenders in ours.items():
            for whose, contender in contenders.items():
                promises = {"log_metric": 1.03, "log_metrics": 1.01} if whose == "our" else dict.fromkeys(LANES)
                yield from rows(f"{work} loop, {whose} {{}}, {store}", contender, promises, work=work, settle=SETTLED)
        what = f"{work} loop, MLflow, SQLite"
        yield from rows(what, plain, {"log_metric": None}, work=work, steps=STEPS // 4, rounds=2)
        for name, peer in peers.items():
            yield from rows(f"{work} loop, {name}", peer, {"log": None}, work=work)


def of_a_short_job(bench: Bench) -> Iterator[Row]:
    """Compare a whole process that logs one metric and ends with one that does the same with plain MLflow."""
    for store, uri in {"SQLite": bench.database(), "server of 1 worker": bench.server("--workers", "1").uri}.items():

        def turn(kind: str, source: Path | None = None, uri: str = uri) -> dict[str, float]:
            return {"seconds": bench.seconds_of_a_job(kind, uri, source)}

        turns: dict[str, Callable[[], dict[str, float]]] = {
            "plain": partial(turn, "plain"),
            "ours": partial(turn, "ours"),
        }
        if bench.before is not None:
            turns["before"] = partial(turn, "ours", bench.before)
        found = dict(zip(turns, medians(2 * bench.rounds + 1, *turns.values()), strict=True))
        for whose in list(turns)[1:]:
            seconds, plain = found[whose]["seconds"], found["plain"]["seconds"]
            yield Row(f"a job of one metric, {whose}, {store}", seconds, plain, "MLflow", "s")


def of_an_outage(bench: Bench) -> Iterator[Row]:
    """Measure the memory of a million metrics while the server is down."""
    server = bench.server("--workers", "1")
    ours = bench.contender("ours.py", server.uri)
    ours.ask("outage")
    server.kill()
    found = ours.ask("go")
    yield Row("a million metrics, server down: the job grows by", found["growth"], 50.0, "our target", "MB", 1.0)
    yield Row("a million metrics, server down: its agent has", found["agent"], 45.0, "our target", "MB", 1.0)


COMPARISONS = {
    "call": of_a_call,
    "delivered": of_all_delivered,
    "lane": of_the_fast_lane,
    "loop": of_a_loop,
    "outage": of_an_outage,
    "short": of_a_short_job,
}


def main() -> None:
    """Measure and print the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comparisons", nargs="*", choices=[*COMPARISONS, []], metavar=" ".join(COMPARISONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", action="store_true", help="do not count the time spent waiting for a core (Linux)")
    parser.add_argument("--before", type=Path, help="another checkout of this project, to compare this one with")
    parser.add_argument("--peers-python", type=Path, default=HERE.parent / ".venv-peers" / "bin" / "python")
    arguments = parser.parse_args()
    if arguments.busy:
        os.environ["BENCH_BUSY"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.comparisons or COMPARISONS:
            with contextlib.ExitStack() as stack:
                bench = Bench(Path(folder), arguments.rounds, arguments.peers_python, stack, arguments.before)
                show(list(COMPARISONS[name](bench)))
            print(flush=True)


if __name__ == "__main__":
    main()
