"""trackio, with its local store and no dashboard."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ["TRACKIO_DIR"] = str(Path.cwd() / "trackio")  # read when trackio is imported

import loop
import trackio


@contextmanager
def run(*, delivers: bool) -> Iterator[loop.Log]:  # noqa: ARG001 - it always delivers
    trackio.init("bench", embed=False, auto_log_gpu=False, auto_log_cpu=False)
    try:
        yield lambda step: trackio.log({"loss": 1 / (step + 1)}, step=step)
    finally:
        trackio.finish()


loop.serve({"log": run})
