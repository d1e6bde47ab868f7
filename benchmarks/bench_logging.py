"""Compare the time of a log line with that of loguru and of the standard library.

Each variant logs the same message with four arguments to a file. The variants take turns, and each turn is timed in
short batches of lines. We compare the batches that are faster than 95 % of all, because other programs on the machine
slow a batch down, but never speed it up.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from loguru import logger

from autogen_team._logs import pipeline
from autogen_team._process import run_events
from autogen_team.io.services import LoggerService

ROUNDS = 15
BATCHES = 100
LINES = 20
FORMAT = (
    "<green>{time:YYYY-MM-DD HH:mm:ss.SSS}</green> | <level>{level: <8}</level> | "
    "<cyan>{name}</cyan>:<cyan>{function}</cyan>:<cyan>{line}</cyan> - <level>{message}</level>"
)
FULL_FORMAT = FORMAT + " {extra[run_id]}"
STATE = Path(tempfile.gettempdir()) / "autogen-team-bench"
FACTS = {"run_id": "0123456789abcdef", "run_name": "train", "experiment": "digits"}


def main():
    logger.remove()
    folder = Path(tempfile.mkdtemp())
    try:
        variants = {name: make(folder / name.replace(" ", "-")) for name, make in VARIANTS.items()}
        times = {name: [] for name in variants}
        for _ in range(ROUNDS):
            for name, run in variants.items():
                times[name] += run()
        cost = {name: statistics.quantiles(found, n=20)[0] * 1e6 for name, found in times.items()}
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(STATE, ignore_errors=True)
    print(f"{'what':44} {'us':>6}  {'peer':34} {'us':>6} {'ratio':>6} {'target':>7}")
    for name, peer, target in TARGETS:
        ratio = cost[name] / cost[peer]
        mark = "" if ratio <= target else "  missed"
        print(f"{name:44} {cost[name]:6.2f}  {peer:34} {cost[peer]:6.2f} {ratio:6.2f} {target:7.2f}{mark}")
    extra = cost["text, redact"] - cost["text"]
    share = extra / cost["loguru text"]
    mark = "" if share <= REDACTION else "  missed"
    print(f"redaction adds {extra:.2f} us to a clean line of about 100 bytes, {share:.2f} of loguru's line", end="")
    print(f" (target {REDACTION:.2f}){mark}")


def timed(log):
    for _ in range(50):
        log("step {} loss {:.4f} accuracy {:.3f} rate {}", 1, 0.5, 0.9, 1e-3)
    found = []
    for _ in range(BATCHES):
        began = time.perf_counter()
        for step in range(LINES):
            log("step {} loss {:.4f} accuracy {:.3f} rate {}", step, 0.5, 0.9, 1e-3)
        found.append((time.perf_counter() - began) / LINES)
    return found


def ours(log=logger.info, *, active=False, **fields):
    def make(path):
        def run():
            with contextlib.ExitStack() as undo:
                if active:
                    undo.callback(run_events.set_source(lambda: FACTS))
                settings = LoggerService(**{**PLAIN, "sink": str(path), **fields})
                undo.callback(pipeline.start(settings))
                if active:
                    folder = run_events.log_folder(STATE, "0123456789abcdef")
                    made = run_events.Run(folder.name, "train", "digits", None, lambda *_: None, log_folder=folder)
                    run_events.run_started(made)
                    undo.callback(run_events.run_ending, made, run_events.End("FINISHED", None, None, 1.0))
                return timed(log)

        return run

    return make


def loguru(log=logger.info, **options):
    def make(path):
        def run():
            handler = logger.add(path, **{"format": FORMAT, "level": "INFO", "diagnose": False, **options})
            try:
                return timed(log)
            finally:
                logger.remove(handler)

        return run

    return make


def on_stderr(make):
    """Redirect stderr to a file, as in a job on a cluster, while the variant runs."""

    def made(path):
        run = make("stderr")

        def redirected():
            with path.open("a", buffering=1) as stream, contextlib.redirect_stderr(stream):
                return run()

        return redirected

    return made


def loguru_on_stderr(_):
    def run():
        return loguru()(sys.stderr)()  # loguru binds the stream when the handler is added

    return run


def standard(path):
    source = logging.getLogger("bench.standard")

    def run():
        handler = logging.FileHandler(path)
        handler.setFormatter(
            logging.Formatter("%(asctime)s | %(levelname)-8s | %(name)s:%(funcName)s:%(lineno)d - %(message)s")
        )
        source.addHandler(handler)
        source.setLevel(logging.INFO)
        source.propagate = False
        try:
            return timed(with_percent(source))
        finally:
            source.removeHandler(handler)
            handler.close()

    return run


def with_percent(source):
    return lambda _, *args: source.info("step %s loss %.4f accuracy %.3f rate %s", *args)


def bridged(path):
    source = logging.getLogger("bench.bridged")
    source.setLevel(logging.INFO)
    return ours(with_percent(source), intercept=True)(path)


PLAIN = {
    "level": "INFO",
    "format": FORMAT,
    "colorize": True,
    "serialize": False,
    "backtrace": True,
    "diagnose": False,
    "catch": True,
    "rotation": None,
    "retention": None,
    "compression": None,
    "intercept": False,
    "redact": False,
    "uncaught": False,
    "run_log": False,
}
EVERYTHING = {"intercept": True, "redact": True, "uncaught": True, "run_log": True, "active": True}
VARIANTS = {
    "loguru text": loguru(),
    "loguru serialize": loguru(serialize=True),
    "loguru below the level": loguru(logger.debug),
    "standard library text": standard,
    "text": ours(),
    "text, redact": ours(redact=True),
    "text, everything": ours(format=FULL_FORMAT, **EVERYTHING),
    "json": ours(serialize=True),
    "json, everything": ours(serialize=True, **EVERYTHING),
    "below the level": ours(logger.debug, **EVERYTHING),
    "standard library through the bridge": bridged,
    "text, rotation": ours(rotation="1 GB"),
    "loguru text on stderr": on_stderr(loguru_on_stderr),
    "text on stderr": on_stderr(ours()),
}
REDACTION = 0.17
"""2 us if a loguru line takes 12 us."""
TARGETS = [
    ("text", "loguru text", 1.05),
    ("text, everything", "loguru text", 1.6),
    ("json", "loguru serialize", 0.45),
    ("json", "standard library text", 1.45),
    ("json, everything", "loguru serialize", 0.6),
    ("below the level", "loguru below the level", 1.2),
    ("standard library through the bridge", "standard library text", 3.0),
    ("text, rotation", "loguru text", 1.5),
    ("text on stderr", "loguru text on stderr", 1.05),
]

if __name__ == "__main__":
    main()
