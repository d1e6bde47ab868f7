"""Web UI URLs of servers and runs."""

from __future__ import annotations

from urllib.parse import urlsplit


def pages(uri: str) -> str | None:
    """Return the URL of a server's web UI, without any password; None for a store that is not a server."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return None
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl().rstrip("/")


def of_run(tracking_uri: str, experiment_id: str, run_id: str) -> str | None:
    """Return the web UI URL of a run, without any password; None for a store that is not a server."""
    base = pages(tracking_uri)
    return base and f"{base}/#/experiments/{experiment_id}/runs/{run_id}"
