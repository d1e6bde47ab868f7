"""The loops in which all contenders are measured, and the orders that their processes execute; needs only numpy.

A contender provides a function that opens a run and yields a function that logs a metric at a step. Orders are JSON
lines on stdin, answers are on stdout. The output of the contender itself goes to stderr.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

WARM = 20
"""Calls before the clock starts."""
PART = 500
"""Number of steps of a loop that are timed together: half a second."""
_IS_BUSY = "BENCH_BUSY" in os.environ

Log = Callable[[int], object]
Open = Callable[..., AbstractContextManager[Log]]
Order = Callable[..., Any]

_answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


def serve(runs: Mapping[str, Open], **orders: Order) -> None:
    """Execute orders until stdin ends."""
    orders = {"calls": calls, "total": total, "steps": steps, **orders}
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        say(orders[order.pop("order")](runs, **order))


def say(answer: object) -> None:
    """Print the answer to an order."""
    _answers.write(json.dumps(answer) + "\n")


def calls(runs: Mapping[str, Open], *, run: str, seconds: float, block: int = 100) -> dict[str, float]:
    """Log for some seconds without a pause; return the mean and median time of a call, in us.

    The mean is over all calls, the median over one call after each block.
    """
    clock, singles, step = time.perf_counter, [], WARM
    with runs[run](delivers=False) as log:
        _warm_up(log)
        taken = stopwatch()
        begun = now = clock()
        while now < begun + seconds:
            for number in range(step, step + block):
                log(number)
            last = clock()
            log(step + block)
            now = clock()
            singles.append(now - last)
            step += block + 1
        seconds = taken()
    return {"mean": seconds / (step - WARM) * 1e6, "median": statistics.median(singles) * 1e6}


def total(runs: Mapping[str, Open], *, run: str, steps: int) -> dict[str, Any]:
    """Log some metrics and close the run; return the time per metric, in us, from the first call to the end."""
    with runs[run](delivers=True) as log:
        _warm_up(log)
        taken = stopwatch()
        for step in range(WARM, WARM + steps):
            log(step)
    return {"mean": taken() / steps * 1e6}


def steps(
    runs: Mapping[str, Open], *, names: list[str], work: str, steps: int, rounds: int, settle: float = 0.0
) -> dict[str, dict[str, float]]:
    """Do a millisecond of work and log a metric in each step; return the ms of a step with and without the metric.

    Loops with and without metrics take turns. They are timed in parts of `PART` steps, long enough to include
    deliveries. A part with metrics is compared with the loops without metrics before and after it. `noise` is the share
    by which two neighbouring loops without metrics differ. A loop with metrics runs for `settle` seconds before it is
    timed.
    """
    do = WORK[work]()
    found: dict[str, list[float]] = {name: [] for name in names}
    bare = [_loop(do, _nothing, steps)]
    for _ in range(rounds):
        logging = {}
        for name in names:
            with runs[name](delivers=True) as log:
                _warm_up(log)
                settled = time.monotonic() + settle
                while time.monotonic() < settled:
                    do()
                    log(0)
                logging[name] = _loop(do, log, steps)
        bare.append(_loop(do, _nothing, steps))
        beside = _middle(bare[-2] + bare[-1])
        for name, parts in logging.items():
            found[name] += [part / beside for part in parts]
    levels = [_middle(parts) for parts in bare]
    noise = statistics.mean(abs(after / before - 1) for before, after in itertools.pairwise(levels))
    without = statistics.mean(levels) * 1e3
    return {
        name: {"with": without * _middle(ratios), "without": without, "noise": noise} for name, ratios in found.items()
    }


def _middle(values: list[float]) -> float:
    """Return the mean of the middle half, which is robust against bursts of other load."""
    aside = len(values) // 4
    return statistics.mean(sorted(values)[aside : len(values) - aside])


def _loop(do: Callable[[], object], log: Log, steps: int) -> list[float]:
    found = []
    for begin in range(WARM, WARM + steps, PART):
        taken = stopwatch()
        for step in range(begin, begin + PART):
            do()
            log(step)
        found.append(taken() / PART)
    return found


def stopwatch() -> Callable[[], float]:
    """Return a function that returns the seconds since this call; with `BENCH_BUSY`, without the waits for a core."""
    begun = time.perf_counter() - _waited()
    return lambda: time.perf_counter() - _waited() - begun


def _waited() -> float:
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9 if _IS_BUSY else 0.0


def _nothing(step: int) -> None:
    pass


def _warm_up(log: Log) -> None:
    for step in range(WARM):
        log(step)


def python_work() -> Callable[[], object]:
    """Return a function that works for about a millisecond in Python, and holds the interpreter lock."""

    def work(size: int) -> int:
        found = 0
        for number in range(size):
            found += number * number % 7
        return found

    size = _calibrated(work)
    return lambda: work(size)


def numpy_work() -> Callable[[], object]:
    """Return a function that works for about a millisecond in numpy, and releases the interpreter lock."""
    import numpy as np

    values = np.linspace(0.0, 1.0, 2**20)
    result = np.empty_like(values)
    size = _calibrated(lambda size: np.sin(values[:size], out=result[:size]))
    return lambda: np.sin(values[:size], out=result[:size])


WORK = {"python": python_work, "numpy": numpy_work}


def _calibrated(work: Callable[[int], object], size: int = 10_000) -> int:
    def seconds() -> float:
        begun = time.perf_counter()
        work(size)
        return time.perf_counter() - begun

    return int(size * 1e-3 / min(seconds() for _ in range(200)))
