"""The state folder, and folders and files that only their owner can read."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path
from typing import Literal


def state_folder(chosen: str | None) -> Path:
    """Return the chosen state folder, or else the default one of the user; it may not exist yet."""
    if chosen is not None:
        return Path(chosen)
    import platformdirs

    return platformdirs.user_state_path("autogen-team")


def private_folder(path: Path) -> Path:
    """Create a folder and its missing parents with mode 0700, and return it.

    `Path.mkdir(parents=True)` applies its mode to the last folder only, and leaves the parents open to others.

    Raises:
        OSError: the folder cannot be created.

    """
    for missing in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    return path


def open_private(path: Path, mode: Literal["wb", "ab"]) -> FileIO:
    """Open a file without a buffer; only its owner can read and write a new file.

    Raises:
        OSError: the file cannot be opened or created.

    """
    flags = os.O_TRUNC if mode == "wb" else os.O_APPEND
    return FileIO(os.open(path, os.O_CREAT | os.O_WRONLY | flags, 0o600), mode)
