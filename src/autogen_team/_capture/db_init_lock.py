"""A lock that lets only one process at a time create the tables of a new database.

Without the lock, seven of eight MLflow processes that start at once fail.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autogen_team._process.folders import private_folder
from autogen_team._ship.uris import is_folder, local_place

_report = logging.getLogger("autogen_team")

PATIENCE = 120.0
"""Seconds to wait for other processes; one needs about two, so a process that takes this long hangs."""
_PAUSE = 0.02
_held = threading.local()
"""Databases that this thread has locked, in the attribute `places`. A second descriptor of the same file would wait for
the first one, even in one thread."""


@contextmanager
def in_turn(uri: str, state_dir: Path) -> Iterator[None]:
    """Lock the block against other threads, and other processes of this user, if `uri` is a SQLite database.

    The lock is reentrant: an inner block for the same database does not wait.
    """
    database = None if is_folder(uri) else local_place(uri)
    held: set[Path] = vars(_held).setdefault("places", set())
    if database is None or os.name != "posix" or database in held:
        yield
        return
    import fcntl

    try:
        folder = private_folder(state_dir / "locks")
        descriptor = os.open(folder / hashlib.sha256(bytes(database)).hexdigest()[:16], os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        _report.warning("cannot create a lock in AUTOGEN_TEAM_STATE_DIR, %s: %s", state_dir, error.strerror)
        yield
        return
    try:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_PAUSE)
            except OSError as error:  # Lustre without -o flock
                _report.warning("AUTOGEN_TEAM_STATE_DIR, %s, does not support locks: %s", state_dir, error.strerror)
                break
        held.add(database)
        yield
    finally:
        held.discard(database)
        os.close(descriptor)
