"""Refuses to run code that is not committed: `autogen-team run --require-clean`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from autogen_team._snapshot import changes
from autogen_team._snapshot import git as gits
from autogen_team.cli import _look

_PATIENCE = 120.0
"""Timeout in seconds for git."""
_SHOWN = 20


def require(script: str | None) -> None:
    """Exit with 125 and list the files if the script's repository differs from its commit.

    Without a script, the repository of the current folder counts. Code outside a repository is refused too.
    """
    with tempfile.TemporaryDirectory(prefix="autogen-team-clean-") as scratch:
        try:
            found = gits.find_of(script, str(Path.cwd()), Path(scratch), gits.Budget(_PATIENCE, _PATIENCE))
            commit = None if found is None else found.commit()
            names = [] if found is None else changes.names(found)
        except gits.GitError as error:
            _look.fail(f"--require-clean: git cannot tell whether the code is committed: {error}", _look.NOT_STARTED)
    if found is None:
        _look.fail("--require-clean: the code is not in a git repository, so it has no commit", _look.NOT_STARTED)
    if commit is None:
        _look.fail(f"--require-clean: there are no commits in {found.top}", _look.NOT_STARTED)
    if names:
        more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
        files = "\n  ".join([*(_readable(name) for name in names[:_SHOWN]), *more])
        what = "1 file differs" if len(names) == 1 else f"{len(names)} files differ"
        remedy = "commit them, or add them to .gitignore"
        _look.fail(f"--require-clean: {what} from the commit {commit[:12]}; {remedy}:\n  {files}", _look.NOT_STARTED)


def _readable(name: str) -> str:
    return name if name.isprintable() else repr(name)
