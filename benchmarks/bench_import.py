"""Compare our import times with those of the libraries behind them, and `--help` with `mlflow --version`.

Each import runs in a new interpreter. The contenders take turns, and the figures are medians of the rounds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from report import Row, show

ROUNDS = 15
CODE = "import time; begun = time.perf_counter(); import {}; print(time.perf_counter() - begun)"
MODULES = ["autogen_team", "autogen_team.io.services", "loguru, pydantic_settings", "mlflow"]


def seconds(modules: str) -> float:
    """Return the seconds that importing the modules takes in a new interpreter."""
    command = [sys.executable, "-c", CODE.format(modules)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def seconds_of(*words: str) -> float:
    """Return the seconds that a command of this environment takes from start to end."""
    program = Path(sys.executable).with_name(words[0])
    begun = time.perf_counter()
    subprocess.run([program, *words[1:]], capture_output=True, check=True)
    return time.perf_counter() - begun


def main() -> None:
    """Measure and print the comparisons."""
    found: dict[str, list[float]] = {modules: [] for modules in MODULES}
    for _ in range(ROUNDS + 1):  # the first round warms up the caches of the file system
        for modules in MODULES:
            found[modules].append(seconds(modules))
    commands = {("autogen-team", "--help"): [], ("mlflow", "--version"): []}
    for _ in range(ROUNDS + 1):
        for words, times in commands.items():
            times.append(seconds_of(*words))
    ours, theirs = (statistics.median(times[1:]) * 1000 for times in commands.values())
    package, services, floor, mlflow = (statistics.median(times[1:]) * 1000 for times in found.values())
    show(
        [
            Row("import autogen_team.io.services", services, floor, "import loguru, pydantic_settings", "ms", 1.25),
            Row("import autogen_team.io.services", services, mlflow, "import mlflow", "ms", 0.25),
            Row("import autogen_team", package, mlflow, "import mlflow", "ms", 0.05),
            Row("autogen-team --help", ours, theirs, "mlflow --version", "ms", 1 / 3),
        ]
    )


if __name__ == "__main__":
    main()
