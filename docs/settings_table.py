"""Write the table of settings into the README: `python docs/settings_table.py`, or `make readme`."""

from __future__ import annotations

import os
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
BEGIN = "<!-- settings: written by `make readme` -->\n"
END = "<!-- /settings -->"


def table() -> str:
    """Return every setting with its variable, its default and its description, as Markdown."""
    from autogen_team import GlobalContext

    lines = ["| setting | variable | default | meaning |", "|---|---|---|---|"]
    for setting in GlobalContext().settings():
        default = "the user's state folder" if setting.name == "state_dir" else f"`{setting.value}`"
        cells = (f"`{setting.name}`", f"`{setting.variable}`", default, setting.description)
        lines.append("| " + " | ".join("" if cell == "``" else cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def with_table(readme: str) -> str:
    """Return the text of the README with the table of now."""
    before, _, rest = readme.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    for name in [name for name in os.environ if name.startswith(("AUTOGEN_TEAM_", "MLFLOW_"))]:
        del os.environ[name]
    README.write_text(with_table(README.read_text()))
