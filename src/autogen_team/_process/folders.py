"""Folders for the eyes of their owner only."""

from __future__ import annotations

from pathlib import Path


def private_folder(path: Path) -> Path:
    """Create a folder and the missing ones above it, each with mode 0700; return it.

    `Path.mkdir` with `parents` gives its mode to the last folder alone, and leaves the ones above open to others.

    Raises:
        OSError: it cannot be created.

    """
    for missing in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    return path
