"""The state folder, and folders for the eyes of their owner only."""

from __future__ import annotations

from pathlib import Path


def state_folder(chosen: str | None) -> Path:
    """Return the chosen state folder, or else the user's own on this machine; it need not exist yet."""
    if chosen is not None:
        return Path(chosen)
    import platformdirs

    return platformdirs.user_state_path("autogen-team")


def private_folder(path: Path) -> Path:
    """Create a folder and the missing ones above it, each with mode 0700; return it.

    `Path.mkdir` with `parents` gives its mode to the last folder alone, and leaves the ones above open to others.

    Raises:
        OSError: it cannot be created.

    """
    for missing in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    return path
