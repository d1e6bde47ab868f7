"""Measure the cost of a large artifact to a job whose server accepts 10 MB/s.

The job logs a file, and runs a loop of steps of one millisecond during the upload. The call is compared with a copy of
the file to the same disk, and again with a smaller file, because after some gigabytes the disk is slower than the page
cache.
Plain MLflow uploads the same file over the same line; wandb and trackio keep it on this machine as their own artifacts.
`BYTES` is the size of the file, by default 1 GB; the whole benchmark then takes six minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from report import Row, show

BYTES = int(float(os.environ.get("BYTES", "1e9")))
RATE = 10_000_000
"""Bandwidth of the line to the server, in bytes per second."""
ROUNDS = 5
SMALLER = 300_000_000
"""Size in bytes of the file that is logged and copied in turn."""
HERE = Path(__file__).parent
PEERS = HERE.parent / ".venv-peers/bin/python"
CALLS = """
import json, os, shutil, statistics, sys, time
import mlflow
from autogen_team import GlobalContext
path, rounds = sys.argv[1], int(sys.argv[2])
copies, calls = [], []
with GlobalContext() as context, context.run("bench", log_system_metrics=False):
    mlflow.log_text("first", "first.txt")
    for number in range(rounds):
        for figures in (copies, calls) if number % 2 else (calls, copies):
            os.sync()  # otherwise the second one waits until the first one's data is on the disk
            begun = time.perf_counter()
            if figures is calls:
                mlflow.log_artifact(path, f"round{number}")
            else:
                shutil.copyfile(path, os.environ["AUTOGEN_TEAM_STATE_DIR"] + f"/copy{number}")
            figures.append(time.perf_counter() - begun)
    print(json.dumps({"copy": statistics.median(copies), "call": statistics.median(calls)}), flush=True)
    os._exit(0)
"""
UPLOAD = """
import json, os, shutil, statistics, sys, time
import mlflow
from autogen_team import GlobalContext
path, seconds = sys.argv[1], float(sys.argv[2])

def steps():
    found, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        for _ in range(20):
            sum(range(64_000))
        found.append(time.perf_counter() - begun)
    return statistics.median(found)

with GlobalContext() as context, context.run("bench", log_system_metrics=False):
    mlflow.log_text("first", "first.txt")
    context.mlflow_service.flush(60)
    time.sleep(3)
    alone = steps()
    os.sync()
    begun = time.perf_counter()
    shutil.copyfile(path, "copy")
    copy = time.perf_counter() - begun
    os.unlink("copy")
    os.sync()
    begun = time.perf_counter()
    mlflow.log_artifact(path)
    call = time.perf_counter() - begun
    time.sleep(5)
    beside = steps()
    assert context.mlflow_service.flush(3000)
    figures = {"alone": alone, "beside": beside, "call": call, "copy": copy, "all": time.perf_counter() - begun}
    print(json.dumps(figures), flush=True)
"""
PLAIN = """
import json, sys, time
import mlflow
with mlflow.start_run():
    mlflow.log_text("first", "first.txt")
    begun = time.perf_counter()
    mlflow.log_artifact(sys.argv[1])
    print(json.dumps({"all": time.perf_counter() - begun}), flush=True)
"""
WANDB = """
import json, sys, time
import wandb
run = wandb.init(project="bench", mode="offline", dir=sys.argv[2], settings=wandb.Settings(silent=True))
begun = time.perf_counter()
artifact = wandb.Artifact("file", type="model")
artifact.add_file(sys.argv[1])
run.log_artifact(artifact)
print(json.dumps({"call": time.perf_counter() - begun}), flush=True)
run.finish()
"""
TRACKIO = """
import json, os, sys, time
os.environ |= {"TRACKIO_DIR": sys.argv[2], "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
import trackio
trackio.init("bench", embed=False, auto_log_gpu=False, auto_log_cpu=False)
begun = time.perf_counter()
trackio.log_artifact(sys.argv[1], name="file", type="model")
print(json.dumps({"call": time.perf_counter() - begun}), flush=True)
trackio.finish()
"""


def free_port() -> int:
    """Return a port that no process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def throttled_server(folder: Path) -> Iterator[str]:
    """Yield the URI of a real server behind a slow line."""
    port, slow = free_port(), free_port()
    command = ["-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [
        subprocess.Popen([sys.executable, *command], start_new_session=True, **quiet),
        subprocess.Popen(
            [sys.executable, str(HERE / "peers/throttle.py"), str(slow), str(port), str(RATE)], start_new_session=True
        ),
    ]
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{slow}"
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(code: str, uri: str, state: Path, *arguments: str, python: Path | str = sys.executable) -> dict[str, float]:
    """Run a job and return the figures that it prints."""
    state.mkdir()
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "AUTOGEN_TEAM_STATE_DIR": str(state)}
    done = subprocess.run(
        [python, "-c", code, *arguments], env=environment, cwd=state, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, float] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    return found


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name, throttled_server(Path(name)) as uri:
        folder = Path(name)
        file = folder / "model.bin"
        smaller = folder / "smaller.bin"
        for path, size in ((file, BYTES), (smaller, min(SMALLER, BYTES))):
            with path.open("wb") as written:
                for _ in range(size // 10**6):
                    written.write(os.urandom(10**6))
        calls = run(CALLS, uri, folder / "calls", str(smaller), str(ROUNDS))
        shutil.rmtree(folder / "calls", ignore_errors=True)
        time.sleep(3)
        seconds = str(min(30.0, BYTES / RATE / 3))
        ours = run(UPLOAD, uri, folder / "ours", str(file), seconds)
        plain = run(PLAIN, uri, folder / "plain", str(file))
        wandb = trackio = None
        if PEERS.exists():
            wandb = run(WANDB, uri, folder / "wandb", str(file), str(folder / "wandb"), python=PEERS)["call"]
            trackio = run(TRACKIO, uri, folder / "trackio", str(file), str(folder / "trackio"), python=PEERS)["call"]
        size, small = f"{BYTES / 1e9:g} GB", f"{min(SMALLER, BYTES) / 1e9:g} GB"
        beside, alone = ours["beside"] * 1000, ours["alone"] * 1000
        show(
            [
                Row(f"a call that logs {size}", ours["call"], ours["copy"], "a copy of the file", "s", at_most=1.2),
                Row("", ours["call"], plain["all"], "plain MLflow, which waits", "s"),
                Row("", ours["call"], wandb, "wandb, offline", "s"),
                Row("", ours["call"], trackio, "trackio, local", "s"),
                Row(f"the same, {small}", calls["call"], calls["copy"], "a copy of the file", "s", at_most=1.2),
                Row(
                    "twenty steps of 1 ms during the upload",
                    beside,
                    alone,
                    "alone",
                    "ms",
                    at_most=1.02,
                ),
                Row("until the server has the file", ours["all"], plain["all"], "plain MLflow", "s", at_most=1.1),
            ]
        )


if __name__ == "__main__":
    main()
