"""Offline runs: an ordinary MLflow SQLite store keeps them until they are copied to their server."""

from __future__ import annotations

import hashlib
from pathlib import Path

import orjson

from autogen_team._process.folders import private_folder
from autogen_team._redact import mask_url
from autogen_team._ship.uris import local_place

_ABOUT = "about.json"
_STORE = "mlflow.db"


def folder(state: Path, destination: str) -> Path:
    """Return the folder of the offline runs for the store `destination`."""
    return state / "offline" / hashlib.sha256(mask_url(destination).encode()).hexdigest()[:12]


def store_uri(state: Path, destination: str) -> str:
    """Return the URI of the store that keeps the offline runs for `destination`."""
    return f"sqlite:///{folder(state, destination) / _STORE}"


def existing_store(state: Path, destination: str) -> str | None:
    """Return the URI of the store that keeps the offline runs for `destination`; None if it does not exist."""
    return store_uri(state, destination) if (folder(state, destination) / _STORE).exists() else None


def is_one(uri: str) -> bool:
    """Return whether this is a store of offline runs, whose URI an offline job passes to its child processes."""
    place = local_place(uri)
    return place is not None and place.name == _STORE and (place.parent / _ABOUT).exists()


def prepare(state: Path, destination: str) -> str:
    """Create the folder of the store, and return the URI of the store.

    If the destination is itself a store of offline runs, return its URI, so that offline runs wait in one place.
    """
    if is_one(destination):
        return destination
    place = private_folder(folder(state, destination))
    (place / _ABOUT).write_bytes(orjson.dumps({"destination": mask_url(destination)}))
    return store_uri(state, destination)


def make_experiment(uri: str, name: str) -> None:
    """Create the experiment unless it exists; keep its artifacts beside the store instead of in the working folder."""
    import mlflow  # imported here, because callers of the other functions do not need it

    client = mlflow.MlflowClient(uri)
    if client.get_experiment_by_name(name) is None:
        place = local_place(uri)
        assert place is not None  # see `prepare`
        artifacts = place.parent / "artifacts"
        experiment_id = hashlib.sha256(name.encode()).hexdigest()[:12]
        client.create_experiment(name, artifact_location=(artifacts / experiment_id).as_uri())


def find(state: Path) -> dict[str, str]:
    """Return the masked destinations of the existing stores of offline runs, by store URI."""
    found = {}
    for about in sorted((state / "offline").glob(f"*/{_ABOUT}")):
        if (about.parent / _STORE).exists():
            found[f"sqlite:///{about.parent / _STORE}"] = orjson.loads(about.read_bytes())["destination"]
    return found
