"""The simplest way to survive the death of the process: one system call per metric, for a line of 100 bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import loop

LINE = b"x" * 99 + b"\n"


@contextmanager
def run(*, delivers: bool) -> Iterator[loop.Log]:  # noqa: ARG001 - there is nothing to deliver
    descriptor = os.open("lines", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    try:
        yield lambda _: os.write(descriptor, LINE)
    finally:
        os.close(descriptor)
        Path("lines").unlink()


loop.serve({"write": run})
