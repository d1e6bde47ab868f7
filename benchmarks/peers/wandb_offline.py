"""wandb, offline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import loop
import wandb


@contextmanager
def run(*, delivers: bool) -> Iterator[loop.Log]:  # noqa: ARG001 - it always delivers
    with wandb.init(project="bench", mode="offline", dir=".", settings=wandb.Settings(silent=True)) as opened:
        yield lambda step: opened.log({"loss": 1 / (step + 1)}, step=step)


loop.serve({"log": run})
