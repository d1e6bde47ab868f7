"""Where a store of this machine is kept, as its URI says; nothing here loads MLflow."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname


def is_folder(uri: str) -> bool:
    """Tell whether MLflow would keep this store in a folder."""
    scheme = urlsplit(uri).scheme
    return scheme in ("", "file") or len(scheme) == 1  # C:\runs


def local_place(uri: str) -> Path | None:
    """Return the file or the folder that a store, or artifacts, are kept in; None for a server, and for memory.

    >>> local_place("sqlite:////data/mlflow.db?timeout=5"), local_place("file:///data/my%20runs")
    (PosixPath('/data/mlflow.db'), PosixPath('/data/my runs'))
    >>> local_place("http://localhost:5000"), local_place("sqlite:///:memory:")
    (None, None)
    """
    if is_folder(uri):
        return Path(url2pathname(urlsplit(uri).path) if uri.startswith("file:") else uri).absolute()
    scheme, _, rest = uri.partition(":///")
    path = rest.partition("?")[0].removeprefix("file:")
    return Path(path).absolute() if scheme.startswith("sqlite") and path and not path.startswith(":memory:") else None
