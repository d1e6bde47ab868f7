"""Compare `autogen-team run` with plain Python, and with the overhead of other trackers on the same script.

Times and CPU time are in units of `import mlflow` on this machine, which is measured in the same rounds. The contenders
take turns, and each figure is the median of the rounds. A script prints one line, which is its own peak memory.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from report import Row, show

ROUNDS = int(os.environ.get("ROUNDS", "10"))
PEERS = Path(__file__).parents[1] / ".venv-peers/bin"
RUN = [str(Path(sys.executable).with_name("autogen-team")), "run"]
EMPTY = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)"
SLEEP = f"import time; time.sleep(3); {EMPTY}"
SKLEARN = f"import sklearn; {EMPTY}"


def block(before: str, *within: str) -> str:
    """Return a script whose last block prints the peak memory."""
    return before + "".join(f"\n    {line}" for line in (*within, *EMPTY.split("; ")))


MLFLOW = block("import mlflow\nwith mlflow.start_run():")
AUTOLOG = block("import mlflow\nmlflow.autolog()\nwith mlflow.start_run():", "import sklearn")
WANDB = block("import wandb\nwith wandb.init(mode='offline'):")
OUTPUT = "import sys\nline = 'x' * 79 + '\\n'\nfor _ in range(262_144): sys.stdout.write(line)"


@dataclass
class Found:
    """The measurements of one command, a figure for each round."""

    first: list[float] = field(default_factory=list)
    """Seconds to the first line."""
    whole: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    """CPU seconds of all processes, except those that are left behind."""
    memory: list[float] = field(default_factory=list)
    """Peak memory of the script's process, in MB."""


def measure(command: list[str], found: Found, **more: str) -> None:
    """Run the command once."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env={**os.environ, **more}
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found.first.append(time.perf_counter() - begun)
        process.stdout.read()
    found.whole.append(time.perf_counter() - begun)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found.processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    found.memory.append(int(line or 0) / 1024)


def output_seconds(command: list[str]) -> float:
    """Return the seconds that a command with 20 MB of output runs in a terminal."""
    begun = time.perf_counter()
    subprocess.run(
        ["script", "-qc", " ".join(command), "/dev/null"],
        stdout=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - begun


def commands(folder: Path, server: str) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Return the commands to compare, by name, with the variables that they need."""
    for name, text in {
        "empty": EMPTY,
        "sleep": SLEEP,
        "sk": SKLEARN,
        "mlflow_run": MLFLOW,
        "autolog": AUTOLOG,
        "wandb_run": WANDB,
        "out": OUTPUT,
    }.items():
        (folder / f"{name}.py").write_text(text)
    sqlite = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    found = {
        "import mlflow": ([sys.executable, "-c", f"import mlflow; {EMPTY}"], {}),
        "plain": ([sys.executable, "empty.py"], {}),
        "ours": ([*RUN, "empty.py"], sqlite),
        "ours, server": ([*RUN, "empty.py"], {"MLFLOW_TRACKING_URI": server}),
        "plain, 3 s": ([sys.executable, "sleep.py"], {}),
        "ours, 3 s": ([*RUN, "sleep.py"], sqlite),
        "ours, server, 3 s": ([*RUN, "sleep.py"], {"MLFLOW_TRACKING_URI": server}),
        "plain sklearn": ([sys.executable, "sk.py"], {}),
        "ours, sklearn": ([*RUN, "sk.py"], sqlite),
        "mlflow.autolog, sklearn": ([sys.executable, "autolog.py"], sqlite),
        "mlflow.start_run": ([sys.executable, "mlflow_run.py"], sqlite),
    }
    if (PEERS / "python").exists():
        found["wandb offline"] = ([str(PEERS / "python"), "wandb_run.py"], {"WANDB_SILENT": "true"})
    if (PEERS / "opentelemetry-instrument").exists():
        silent = ["--traces_exporter", "none", "--metrics_exporter", "none", "--logs_exporter", "none"]
        command = [str(PEERS / "opentelemetry-instrument"), *silent, str(PEERS / "python"), "empty.py"]
        found["opentelemetry-instrument"] = (command, {})
    return found


def serve(folder: Path, undo: ExitStack) -> str:
    """Start a real MLflow server, and return its URL."""
    import socket
    import urllib.request

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "mlflow", "server", "--port", str(port), "--workers", "1", "--backend-store-uri"]
    process = subprocess.Popen(
        [sys.executable, *words, f"sqlite:///{folder}/server.db"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def end() -> None:
        os.killpg(process.pid, 15)
        process.wait()

    undo.callback(end)
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
        except OSError:
            time.sleep(0.2)
        else:
            return f"http://127.0.0.1:{port}"


def main() -> None:
    """Measure and print the comparisons."""
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        os.chdir(folder)
        undo.callback(os.chdir, "/")
        os.environ |= {"AUTOGEN_TEAM_STATE_DIR": str(folder / "state"), "AUTOGEN_TEAM_ALERTS_ENABLE": "false"}
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        wanted = commands(folder, serve(folder, undo))
        found = {name: Found() for name in wanted}
        for turn in range(ROUNDS + 1):  # the first round warms up the file system's caches, and creates the tables
            for name, (command, variables) in wanted.items():
                measure(command, found[name] if turn else Found(), **variables)
        outputs: dict[str, list[float]] = {"ours": [], "script": []}
        for _ in range(max(3, ROUNDS // 3)):
            outputs["script"].append(output_seconds([sys.executable, "out.py"]))
            outputs["ours"].append(output_seconds([*RUN, "out.py"]))
            outputs.setdefault("empty", []).append(output_seconds([*RUN, "empty.py"]))
    show(list(rows(found, outputs)))


def rows(found: dict[str, Found], outputs: dict[str, list[float]]) -> list[Row]:
    """Return the table of the overhead of each contender over plain Python."""

    def median(name: str, figure: Callable[[Found], list[float]]) -> float | None:
        return statistics.median(figure(found[name])) if name in found else None

    first: Callable[[Found], list[float]] = lambda it: it.first  # noqa: E731
    whole: Callable[[Found], list[float]] = lambda it: it.whole  # noqa: E731
    processor: Callable[[Found], list[float]] = lambda it: it.processor  # noqa: E731
    memory: Callable[[Found], list[float]] = lambda it: it.memory  # noqa: E731

    def added(name: str, figure: Callable[[Found], list[float]], base: str = "plain") -> float | None:
        total, plain = median(name, figure), median(base, figure)
        return None if total is None or plain is None else total - plain

    unit, cost = added("import mlflow", whole), added("import mlflow", processor)
    table = []
    limits = {"ours": (0.25, 0.5, 1.6), "ours, server": (0.25, 0.5, 0.7), "ours, sklearn": (0.25, 0.5, 1.6)}
    others = ["mlflow.autolog, sklearn", "mlflow.start_run", "wandb offline", "opentelemetry-instrument"]
    for name in [*limits, *others]:
        base = "plain sklearn" if name.endswith("sklearn") else "plain"
        most = limits.get(name, (None, None, None))
        table += [
            Row(f"{name}: first line later", added(name, first, base), unit, "import mlflow", "s", most[0]),
            Row(f"{name}: whole longer", added(name, whole, base), unit, "import mlflow", "s", most[1]),
            Row(f"{name}: processor", added(name, processor, base), cost, "import mlflow", "s", most[2]),
        ]
    for name in ("ours, 3 s", "ours, server, 3 s"):  # the run is opened while such a job works
        table.append(Row(f"{name}: whole longer", added(name, whole, "plain, 3 s"), unit, "import mlflow", "s"))
    table.append(Row("ours: memory of the job", added("ours", memory), 30, "30 MB", "MB", 1))
    ours = statistics.median(outputs["ours"]) - statistics.median(outputs["empty"])
    table.append(Row("ours: 20 MB of output", ours, statistics.median(outputs["script"]), "script -qc", "s", 1.2))
    return table


if __name__ == "__main__":
    if shutil.which("script") is None:
        sys.exit("script (util-linux) is not installed")
    main()
