"""Locations and identities of stores, read from their URIs; nothing here loads MLflow."""

from __future__ import annotations

import ipaddress
import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit


def is_folder(uri: str) -> bool:
    """Return whether MLflow would keep the store of this URI in a folder."""
    scheme = urlsplit(uri).scheme
    return scheme in ("", "file") or len(scheme) == 1  # C:\runs


def local_place(uri: str) -> Path | None:
    """Return the file or folder that holds a store or artifacts; None for a server, and for a database in memory.

    >>> local_place("sqlite:////data/mlflow.db?timeout=5"), local_place("file:///data/my%20runs")
    (PosixPath('/data/mlflow.db'), PosixPath('/data/my runs'))
    >>> local_place("http://localhost:5000"), local_place("sqlite:///:memory:")
    (None, None)
    """
    if is_folder(uri):
        from urllib.request import url2pathname  # loads the modules of HTTP and e-mail

        return Path(url2pathname(urlsplit(uri).path) if uri.startswith("file:") else uri).absolute()
    scheme, _, rest = uri.partition(":///")
    path = rest.partition("?")[0].removeprefix("file:")
    return Path(path).absolute() if scheme.startswith("sqlite") and path and not path.startswith(":memory:") else None


def absolute(uri: str) -> str:
    """Return the URI of a SQLite file with its absolute path, which stays valid if the job changes its folder."""
    scheme, _, path = uri.partition(":///")
    is_relative = scheme.startswith("sqlite") and path and not path.startswith((":memory:", "/", "file:"))
    return f"{scheme}:///{Path.cwd() / path}" if is_relative else uri


_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


def identity(uri: str) -> str:
    """Return a text that is the same for all URIs of one store, however they are written.

    It ignores: relative or absolute paths, options of a database file, a slash at the end of a URL, the default port,
    and whether the local machine is given by its name or its loopback address.

    >>> identity("sqlite:////data/mlflow.db?timeout=5") == identity("sqlite:////data/./mlflow.db")
    True
    >>> identity("http://LOCALHOST:80/") == identity("http://127.0.0.1")
    True
    >>> identity("http://localhost:5000") == identity("http://localhost:5001")
    False
    """
    place = local_place(uri)
    if place is not None:
        return os.path.realpath(place)
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0].lower()  # the driver of a database does not change the database
    try:
        port = parts.port or _PORTS.get(scheme, 0)
    except ValueError:
        return uri
    user, at, _ = parts.netloc.rpartition("@")
    return f"{scheme}://{user}{at}{_machine(parts.hostname or '')}:{port}{parts.path.rstrip('/')}?{parts.query}"


def _machine(name: str) -> str:
    with suppress(ValueError):
        address = ipaddress.ip_address(name)
        return "localhost" if address.is_loopback or address.is_unspecified else name
    return name
