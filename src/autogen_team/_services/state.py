"""The state folder: a setting of tracking, and of commands that need no other setting."""

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
        raise ValueError("expected the path of a folder")
    try:
        path = str(Path(text).expanduser().absolute())
    except (RuntimeError, OSError):
        raise ValueError("the user in it or the current folder does not exist; use an absolute path") from None
    if os.path.exists(path) and not os.path.isdir(path):  # noqa: PTH110, PTH112 - pathlib raises if access is denied
        raise ValueError("this is not a folder; use the path of a folder, which is created if it is missing")
    return path


Folder: TypeAlias = Annotated[Place, AfterValidator(_absolute)]
"""The absolute path of a folder, given as text or a `Path`; the folder may not exist yet."""


class StateFolder(Settings):
    """The only setting of `MlflowService` that commands and workers read separately."""

    __slots__ = ()

    state_dir: Annotated[Folder | None, Variable(STATE_DIR)] = None
    """Folder of journals, offline runs, logs and locks; readable only by you."""

    def settings(self) -> list[Setting]:
        """Return every setting; if no state folder is chosen, show the default one of this machine."""
        shown = show("state_dir", str(state_folder(self.state_dir)))
        return [replace(one, value=shown) if one.variable == STATE_DIR else one for one in super().settings()]
