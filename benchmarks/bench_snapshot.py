"""Measure the cost of a snapshot in a repository of 50,000 files with a few changes.

The snapshot takes turns with git commands that do less: `git stash create` and `git diff HEAD` omit untracked files,
and the first writes to the repository. wandb saves code and `git diff` when a run starts; it is measured from that
moment until its `diff.patch` is on disk. A job computes while its snapshot is taken, and again without a snapshot.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import Row, show

FILES, FOLDERS = 50_000, 500
CHANGES = 40
ROUNDS = 5
SECONDS = 4.0
PEERS = Path(__file__).parent.parent / ".venv-peers/bin/python"
IDENTITY = ("-c", "user.name=bench", "-c", "user.email=bench@example.org")
JOB = """
import json, sys, time
from autogen_team import GlobalContext

def work(seconds):
    count, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        sum(range(1000))
        count += 1
    return count

with GlobalContext() as context:
    work(0.5)
    begun, used = time.perf_counter(), time.process_time()
    with context.run("bench", log_system_metrics=False):
        opened = time.perf_counter() - begun
        thread = time.thread_time()
        steps = work(SECONDS)
        others = time.process_time() - used - (time.thread_time() - thread)
        begun = time.perf_counter()
    print(json.dumps({"open": opened, "steps": steps, "others": others, "close": time.perf_counter() - begun}))
"""
WANDB = """
import glob, time
import wandb
begun = time.perf_counter()
run = wandb.init(project="bench", mode="offline", dir=DIR, save_code=True, settings=wandb.Settings(silent=True))
while not glob.glob(DIR + "/wandb/**/diff.patch", recursive=True) and time.perf_counter() - begun < 60:
    time.sleep(0.005)
print(time.perf_counter() - begun)
run.finish()
"""


def make_repository(folder: Path) -> None:
    """Create a repository with many small files, some of them changed and some untracked."""
    for number in range(FILES):
        path = folder / f"package{number % FOLDERS}" / f"module{number}.py"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(f"value = {number}\n" * 20)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run(["git", "add", "--all"], cwd=folder, check=True)
    subprocess.run(["git", *IDENTITY, "commit", "--quiet", "-m", "all"], cwd=folder, check=True)
    for number in range(CHANGES):
        (folder / f"package{number}" / f"module{number}.py").write_text(f"value = -{number}\n" * 20)
        (folder / f"package{number}" / "new.py").write_text("value = 0\n" * 20)


def snapshot(repository: Path, place: Path, number: int) -> tuple[float, float]:
    """Return the seconds until a snapshot is ready, and its CPU seconds."""
    from autogen_team._snapshot import process

    folder = place / f"snapshot{number}"
    version = ".".join(map(str, sys.version_info[:3]))
    order = process.Order(str(folder), ["bench"], str(repository), None, sys.executable, version, sys.path)
    begun = time.perf_counter()
    assert process.make(order)
    took = time.perf_counter() - begun
    facts = json.loads((folder / "run.json").read_text())
    assert len(facts["git"]["changed"]) == 2 * CHANGES, facts
    return took, facts["processor_seconds"]


def plain_git(repository: Path) -> float:
    """Return the seconds that git takes to record the changes of tracked files."""
    begun = time.perf_counter()
    subprocess.run(["git", *IDENTITY, "stash", "create"], cwd=repository, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["git", "diff", "HEAD"], cwd=repository, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def wandb_code(repository: Path, place: Path) -> float | None:
    """Return the seconds that wandb takes; None if it is not installed."""
    if not PEERS.exists():
        return None
    folder = Path(tempfile.mkdtemp(dir=place))
    script = repository / "train_wandb.py"
    script.write_text(WANDB.replace("DIR", repr(str(folder))))
    done = subprocess.run([PEERS, script], cwd=repository, capture_output=True, text=True, check=False)
    script.unlink()
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def job(repository: Path, place: Path, *, keeps: bool) -> dict[str, float]:
    """Return the times of a job with or without a snapshot."""
    script = place / "job.py"
    script.write_text(JOB.replace("SECONDS", str(SECONDS)))
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db",
        "AUTOGEN_TEAM_STATE_DIR": str(place / "state"),
        "AUTOGEN_TEAM_MLFLOW_SNAPSHOT": str(keeps).lower(),
        "AUTOGEN_TEAM_MLFLOW_AUTOLOG_DISABLE": "true",
    }
    done = subprocess.run(
        [sys.executable, script], cwd=repository, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print the comparisons."""
    if shutil.which("git") is None:
        print("git is not installed")
        return
    with tempfile.TemporaryDirectory() as folder:
        place, repository = Path(folder), Path(folder) / "repository"
        make_repository(repository)
        ours, cpu, bare, wandb = [], [], [], []
        for number in range(ROUNDS):
            took, used = snapshot(repository, place, number)
            ours.append(took)
            cpu.append(used)
            bare.append(plain_git(repository))
            found = wandb_code(repository, place)
            wandb += [] if found is None else [found]
        job(repository, place, keeps=False)
        jobs: dict[bool, list[dict[str, float]]] = {True: [], False: []}
        for _ in range(ROUNDS):
            for keeps in (True, False):
                jobs[keeps].append(job(repository, place, keeps=keeps))

    def of_jobs(name: str, keeps: bool) -> float:
        return statistics.median(one[name] for one in jobs[keeps])

    def compared(what: str, name: str, unit: str, scale: float) -> Row:
        return Row(what, of_jobs(name, True) * scale, of_jobs(name, False) * scale, "without a snapshot", unit)

    show(
        [
            Row(
                "until it is ready", statistics.median(ours), statistics.median(bare), "git stash create, git diff", "s"
            ),
            Row(
                "the same",
                statistics.median(ours),
                statistics.median(wandb) if wandb else None,
                "wandb, save_code",
                "s",
            ),
            Row("its CPU time, at most 2 s", statistics.median(cpu), 2.0, "the limit", "s", 1.0),
            compared("opening the run", "open", "ms", 1000),
            Row(
                "a step of the job",
                1e6 * SECONDS / of_jobs("steps", True),
                1e6 * SECONDS / of_jobs("steps", False),
                "without a snapshot",
                "us",
            ),
            compared("other threads of the job", "others", "ms", 1000),
            compared("closing the run 4 s later", "close", "ms", 1000),
        ]
    )


if __name__ == "__main__":
    main()
