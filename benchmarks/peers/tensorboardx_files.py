"""tensorboardX, which writes event files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import loop
from tensorboardX import SummaryWriter


@contextmanager
def run(*, delivers: bool) -> Iterator[loop.Log]:  # noqa: ARG001 - it always delivers
    with SummaryWriter(tempfile.mkdtemp(dir=".")) as writer:
        yield lambda step: writer.add_scalar("loss", 1 / (step + 1), step)


loop.serve({"log": run})
