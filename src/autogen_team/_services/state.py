"""The state folder, a setting of tracking, and of commands that read nothing else."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import AfterValidator

from autogen_team._process.folders import state_folder
from autogen_team._services.fields import Place
from autogen_team._services.settings import PREFIX, Settings, Variable, show

if TYPE_CHECKING:
    from autogen_team._services.settings import Setting

STATE_DIR = PREFIX + "STATE_DIR"


def _absolute(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError("the path of a folder is expected")
    try:
        path = str(Path(text).expanduser().absolute())
    except (RuntimeError, OSError):
        raise ValueError("its user or the current folder does not exist: write an absolute path") from None
    if os.path.exists(path) and not os.path.isdir(path):  # noqa: PTH110, PTH112 - pathlib raises if it may not look
        raise ValueError("this is not a folder: name another one; it is made if it is missing")
    return path


Folder: TypeAlias = Annotated[Place, AfterValidator(_absolute)]
"""A folder, given as text or a `Path`, as an absolute path; it need not exist."""


class StateFolder(Settings):
    """The one setting of `MlflowService` that commands and workers read by itself."""

    __slots__ = ()

    state_dir: Annotated[Folder | None, Variable(STATE_DIR)] = None
    """Folder of journals, offline runs, logs and locks; readable only by you."""

    def settings(self) -> list[Setting]:
        """Return every setting; if no state folder is chosen, the one of this machine is shown."""
        shown = show("state_dir", str(state_folder(self.state_dir)))
        return [replace(one, value=shown) if one.variable == STATE_DIR else one for one in super().settings()]
