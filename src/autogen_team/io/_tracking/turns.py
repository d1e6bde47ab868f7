"""One process at a time makes the tables of a new database; of eight that start at once, plain MLflow fails seven."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

PATIENCE = 120.0
"""Seconds to wait for the others; a migration takes two, so whoever takes longer hangs and is not waited for."""
_PAUSE = 0.02


@contextmanager
def in_turn(uri: str, state_dir: Path) -> Iterator[None]:
    """Keep other processes of this user out of the block, if `uri` is a SQLite database."""
    if not urlsplit(uri).scheme.startswith("sqlite") or os.name != "posix":
        yield
        return
    import fcntl

    folder = state_dir / "locks"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = str(Path(uri.partition(":///")[2]).absolute())
    descriptor = os.open(folder / hashlib.sha256(database.encode()).hexdigest()[:16], os.O_CREAT | os.O_RDWR, 0o600)
    try:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(_PAUSE)
        yield
    finally:
        os.close(descriptor)
