"""Write `docs/reference/settings.md` from the fields of the services: `make readme`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autogen_team._services.settings import Setting

DOCS = Path(__file__).parent
PAGE = DOCS / "reference" / "settings.md"
SECTIONS = {"": "The context", "logger": "Logging", "alerts": "Alerts", "mlflow": "Tracking"}
HEAD = """\
# Settings

<!-- written by `make readme` -->

An argument takes precedence over an environment variable, then a line in `.env` in the working folder, then the
default. `autogen-team run --set NAME=VALUE` counts as an argument. Settings are read when a service is created;
`autogen-team config` shows where each value comes from.

A value that cannot be parsed is an error that names the variable. A misspelt variable (`AUTOGEN_TEAM_LOGER_LEVEL`) is
reported with the closest known name.

The state folder is a setting of tracking, and holds all data that waits. It belongs to one machine: workers on another
machine read their own environment, unless the folder is given as an argument.
"""


def page() -> str:
    """Return the page of the reference, with a section for each service."""
    from autogen_team import GlobalContext

    settings = GlobalContext().settings()
    sections = [
        f"## {title}\n\n" + _table(one for one in settings if one.name.rpartition(".")[0] == service)
        for service, title in SECTIONS.items()
    ]
    return "\n".join([HEAD, *sections])


def _table(settings: Iterable[Setting]) -> str:
    lines = ["| setting | variable | default | meaning |", "|---|---|---|---|"]
    for setting in settings:
        default = "the user's state folder" if setting.name == "mlflow.state_dir" else f"`{setting.value}`"
        cells = (f"`{setting.name}`", f"`{setting.variable}`", default, setting.description)
        lines.append("| " + " | ".join("" if cell == "``" else cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for name in [name for name in os.environ if name.startswith(("AUTOGEN_TEAM_", "MLFLOW_"))]:
        del os.environ[name]
    PAGE.write_text(page())
