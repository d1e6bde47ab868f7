"""Items that a store has rejected for good: recorded in `refused.jsonl` in the state folder, with files beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import orjson

from autogen_team._process.folders import private_folder
from autogen_team._spool.files import Waiting

FILE = "refused.jsonl"


def note(state: Path, what: Mapping[str, object]) -> str:
    """Append an entry to the file; return the error, or an empty text."""
    try:
        descriptor = os.open(state / FILE, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        try:
            os.write(descriptor, orjson.dumps(what) + b"\n")
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def set_aside(state: Path, name: str, content: Path) -> Path:
    """Move files to the folder `refused`, and return their new path."""
    aside = private_folder(state / "refused") / name
    content.rename(aside)
    return aside


def note_files(state: Path, one: Waiting, reason: str) -> str:
    """Move rejected files to `refused`, record them, and return a message for the user."""
    order = one.order
    if "status" in order:
        one.remove()
        note(state, {"op": "status", **order, "reason": reason})
        return f"the MLflow store rejected the status of the model {order['model']}: {reason}"
    aside = set_aside(state, f"{one.place.parent.parent.name}-{one.number:06d}", one.content)
    one.remove()
    noted = {"op": "files", "root": order["root"], "path": order.get("path"), "reason": f"{reason}; it is in {aside}"}
    note(state, {name: value for name, value in noted.items() if value is not None})
    return f"the MLflow store rejected files for {order['root']}: {reason}; they are in {aside}"
