"""What was run: the code, the packages and the machine of a job, written into a folder by a process of its own.

`process` starts that process, and `make` is what it does. Nothing here imports MLflow, and the job imports `process`
only.

- `git`: runs git with a private index and private objects, so that the repository is not touched.
- `changes`: what differs from the commit, also what is untracked and in submodules.
- `patch`: the sections of a patch: their size, and the secrets in them.
- `packages`: the installed distributions, as `pip freeze` writes them.
- `machine`: the interpreter, the machine, the container and the scheduler.
"""

from __future__ import annotations

ARTIFACTS = "code"
"""The folder of a run's artifacts that says what was run."""
PATCH, PACKAGES, FACTS, CELLS = "changes.patch", "packages.txt", "run.json", "cells.py"
"""The files in it; a lock file keeps its own name."""
DIRTY_TAG = "autogen_team.dirty"
"""The tag that says whether the code differed from the commit: `true` or `false`."""
COMMIT_TAG = "mlflow.source.git.commit"
"""MLflow's own tag for the commit."""
MOST_BYTES = 1_000_000
"""What a snapshot may take, in bytes; `packages.txt` and `run.json` are not cut, and take a few thousand."""
MOST_CPU = 2.0
"""What a snapshot may take, in seconds of processor time."""
