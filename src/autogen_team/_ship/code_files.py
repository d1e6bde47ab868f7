"""Snapshots in a state folder that wait for their runs; `<state>/code/<run id>` is a link to one."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import suppress
from pathlib import Path

from autogen_team._snapshot import ARTIFACTS as ARTIFACTS  # noqa: PLC0414 - for modules that upload it
from autogen_team._snapshot import COMMIT_TAG, DIRTY_TAG, FACTS
from autogen_team._snapshot.process import PART

_PATIENCE = 10.0
_POLL = 0.1
"""Seconds to wait for an unfinished snapshot, and the polling interval."""


def folder_of(state: Path) -> Path:
    """Return the folder of all snapshots."""
    return state / "code"


def tags(folder: Path) -> dict[str, str]:
    """Return the tags of a run with this snapshot: the commit, and whether the code differs from the commit."""
    git = json.loads((folder / FACTS).read_text(encoding="utf-8")).get("git", {})
    found = {COMMIT_TAG: git["commit"]} if git.get("commit") else {}
    if "is_dirty" in git:
        found[DIRTY_TAG] = str(git["is_dirty"]).lower()
    return found


def waiting_for(state: Path, run_id: str) -> Path | None:
    """Return the snapshot that waits for a run whose process has died; None if there is none.

    Waits for an unfinished snapshot, because the process that takes it may outlive the job.
    """
    link = folder_of(state) / run_id
    if not link.is_symlink():
        return None
    folder = link.parent / link.readlink()
    deadline = time.monotonic() + _PATIENCE
    while not folder.is_dir() and folder.with_name(folder.name + PART).exists() and time.monotonic() < deadline:
        time.sleep(_POLL)
    return folder if folder.is_dir() else None


def forget(state: Path, run_id: str) -> None:
    """Remove an uploaded snapshot, unless another run still waits for it."""
    link = folder_of(state) / run_id
    with suppress(OSError):
        folder = link.parent / link.readlink()
        link.unlink()
        if not links_to(folder):
            shutil.rmtree(folder, ignore_errors=True)


def links_to(folder: Path) -> bool:
    """Return whether a run waits for the snapshot."""
    with suppress(OSError):
        return any(path.is_symlink() and str(path.readlink()) == folder.name for path in folder.parent.iterdir())
    return False
