"""Write the settings into the README and `docs/reference/settings.md`: `make readme`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autogen_team._services.settings import Setting

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
BEGIN = "<!-- settings: written by `make readme` -->\n"
END = "<!-- /settings -->"
PAGE = DOCS / "reference" / "settings.md"
SECTIONS = {"": "The context", "logger": "Logging", "alerts": "Alerts", "mlflow": "Tracking"}
HEAD = """\
# Settings

<!-- written by `make readme` -->

An argument beats an environment variable, which beats a line in `.env` of the working folder, which beats the default.
`autogen-team run --set NAME=VALUE` is an argument. Settings are read when a service is made, and `autogen-team config`
says where each came from.
"""


def table() -> str:
    """Return every setting with its variable, its default and its description, as Markdown."""
    from autogen_team import GlobalContext

    return _table(GlobalContext().settings())


def with_table(readme: str) -> str:
    """Return the text of the README with the table of now."""
    before, _, rest = readme.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


def page() -> str:
    """Return the page of the reference, a section for each service."""
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
        default = "the user's state folder" if setting.name == "state_dir" else f"`{setting.value}`"
        cells = (f"`{setting.name}`", f"`{setting.variable}`", default, setting.description)
        lines.append("| " + " | ".join("" if cell == "``" else cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for name in [name for name in os.environ if name.startswith(("AUTOGEN_TEAM_", "MLFLOW_"))]:
        del os.environ[name]
    README.write_text(with_table(README.read_text()))
    PAGE.write_text(page())
