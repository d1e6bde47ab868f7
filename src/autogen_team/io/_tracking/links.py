"""Addresses for people."""

from __future__ import annotations

from urllib.parse import urlsplit


def of_run(tracking_uri: str, experiment_id: str, run_id: str) -> str | None:
    """Return the page of a run on its server, without any password; None for a store that is not a server."""
    parts = urlsplit(tracking_uri)
    if parts.scheme not in ("http", "https"):
        return None
    base = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl().rstrip("/")
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}"
