"""Snapshots: the code, packages and machine of a job, written to a folder by a separate process.

`process` starts that process, and `make` is its main module. Nothing here imports MLflow, and the job imports only
`process`.

- `git`: runs git with a private index and private objects, so that the repository is not modified.
- `changes`: the differences from the commit, including untracked files and submodules.
- `patch`: the sections of a patch; limits their size and masks their secrets.
- `packages`: the installed distributions, as `pip freeze` writes them.
- `machine`: the interpreter, the machine, the container and the scheduler.
"""

from __future__ import annotations

ARTIFACTS = "code"
"""Artifact folder of a run's snapshot."""
PATCH, PACKAGES, FACTS, CELLS = "changes.patch", "packages.txt", "run.json", "cells.py"
"""Files in that folder; a lock file keeps its own name."""
DIRTY_TAG = "autogen_team.dirty"
"""Tag: whether the code differed from the commit, `true` or `false`."""
COMMIT_TAG = "mlflow.source.git.commit"
"""MLflow's own tag for the commit."""
MOST_BYTES = 1_000_000
"""Maximum size in bytes, without `packages.txt` and `run.json`, which take some thousand bytes and are never cut."""
MOST_CPU = 2.0
"""Maximum CPU time of a snapshot, in seconds."""
