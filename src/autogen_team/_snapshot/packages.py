"""The installed distributions of an interpreter, as `pip freeze --all` writes them, without pip.

Metadata is parsed by hand, because the parser of `importlib.metadata` reads the whole description of each distribution.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

from autogen_team._snapshot.git import without_user

Source: TypeAlias = Callable[[Path], "tuple[str | None, str | None, str]"]
"""Callable that returns the remote and the commit of a folder's repository, and the path of the folder in it."""

_NAME = re.compile(r"^Name: *(.+?)\s*$", re.MULTILINE)
_VERSION = re.compile(r"^Version: *(.+?)\s*$", re.MULTILINE)


def freeze(path: Sequence[str], source: Source) -> tuple[list[str], dict[str, str]]:
    """Return the lines for all distributions, and the folders of editable installs by name."""
    lines: dict[str, list[str]] = {}
    editable: dict[str, str] = {}
    for distribution in importlib.metadata.distributions(path=list(path)):
        text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
        head = text.partition("\n\n")[0]
        name, version = _NAME.search(head), _VERSION.search(head)
        if name is None or version is None:
            continue
        key = re.sub(r"[-_.]+", "-", name[1]).lower()
        if key in lines:  # Python imports the first one on the path
            continue
        direct = _direct(distribution)
        folder = _folder(direct) if direct.get("dir_info", {}).get("editable") else None
        if folder is not None:
            editable[name[1]] = folder
            lines[key] = _in_place(name[1], version[1], folder, source)
        else:
            lines[key] = [_from(name[1], direct) if direct else f"{name[1]}=={version[1]}"]
    return [line for _, found in sorted(lines.items()) for line in found], editable


def _direct(distribution: importlib.metadata.Distribution) -> dict[str, Any]:
    """Return where a distribution was installed from, if not from an index (PEP 610)."""
    try:
        found = json.loads(distribution.read_text("direct_url.json") or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("url"), str) else {}


def _folder(direct: dict[str, Any]) -> str | None:
    parts = urlsplit(direct["url"])
    return unquote(parts.path) if parts.scheme == "file" else None


def _in_place(name: str, version: str, folder: str, source: Source) -> list[str]:
    remote, commit, inside = source(Path(folder))
    if remote is None or commit is None:
        return [f"# editable install without a known remote ({name}=={version})", f"-e {folder}"]
    where = f"&subdirectory={inside}" if inside else ""
    return [f"-e git+{_as_url(remote)}@{commit}#egg={name.replace('-', '_')}{where}"]


def _as_url(remote: str) -> str:
    r"""Return the remote as a URL that pip accepts.

    >>> _as_url("git@github.com:ada/tools.git")
    'ssh://git@github.com/ada/tools.git'
    """
    if "://" in remote:
        return remote
    if ":" in remote and not remote.startswith(("/", ".")):
        host, _, path = remote.partition(":")
        return f"ssh://{host}/{path.lstrip('/')}"
    return Path(remote).absolute().as_uri()


def _from(name: str, direct: dict[str, Any]) -> str:
    url = without_user(direct["url"])
    options = []
    if vcs := direct.get("vcs_info"):
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    elif found := _hash(direct.get("archive_info") or {}):
        options.append(found)
    if inside := direct.get("subdirectory"):
        options.append(f"subdirectory={inside}")
    return f"{name} @ {url}" + (f"#{'&'.join(options)}" if options else "")


def _hash(archive: dict[str, Any]) -> str | None:
    hashes = archive.get("hashes") or {}
    if hashes:
        return "=".join(next(iter(hashes.items())))
    found = archive.get("hash")
    return found if isinstance(found, str) else None
