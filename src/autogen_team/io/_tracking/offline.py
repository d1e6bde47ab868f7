"""Where runs are that cannot or shall not be brought to their server yet: in an ordinary SQLite store of MLflow's."""

from __future__ import annotations

import hashlib
from pathlib import Path

import orjson

from autogen_team.io._redact import mask_url
from autogen_team.io._tracking.places import local_place

_ABOUT = "about.json"
_STORE = "mlflow.db"


def folder(state: Path, destination: str) -> Path:
    """Return where runs wait that are meant for the store `destination`."""
    return state / "offline" / hashlib.sha256(mask_url(destination).encode()).hexdigest()[:12]


def store_uri(state: Path, destination: str) -> str:
    """Return the store of these runs."""
    return f"sqlite:///{folder(state, destination) / _STORE}"


def existing_store(state: Path, destination: str) -> str | None:
    """Return the store of these runs, if there are any."""
    return store_uri(state, destination) if (folder(state, destination) / _STORE).exists() else None


def prepare(state: Path, destination: str) -> str:
    """Return the store, with a place made for it."""
    place = folder(state, destination)
    for each in (state, place.parent, place):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    (place / _ABOUT).write_bytes(orjson.dumps({"destination": mask_url(destination)}))
    return store_uri(state, destination)


def make_experiment(uri: str, name: str) -> None:
    """Make the experiment if it is not there, with its artifacts beside the store instead of in the working folder."""
    import mlflow  # here, because the rest of this module is for those who do not load it

    client = mlflow.MlflowClient(uri)
    if client.get_experiment_by_name(name) is None:
        place = local_place(uri)
        assert place is not None  # see `prepare`
        artifacts = place.parent / "artifacts"
        experiment_id = hashlib.sha256(name.encode()).hexdigest()[:12]
        client.create_experiment(name, artifact_location=(artifacts / experiment_id).as_uri())


def find(state: Path) -> dict[str, str]:
    """Return the stores that there are, each with the destination of its runs, masked."""
    found = {}
    for about in sorted((state / "offline").glob(f"*/{_ABOUT}")):
        if (about.parent / _STORE).exists():
            found[f"sqlite:///{about.parent / _STORE}"] = orjson.loads(about.read_bytes())["destination"]
    return found
