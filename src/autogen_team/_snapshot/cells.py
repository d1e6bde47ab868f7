"""The cells of the notebook or IPython session in this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

Cells = Sequence[tuple[int, str]]


def executed() -> list[tuple[int, str]]:
    """Return the cells that this session has executed, as they were typed, each with its number."""
    history = getattr(_shell(), "history_manager", None)
    sources = getattr(history, "input_hist_raw", ())
    return [(number, str(source)) for number, source in enumerate(sources) if number and str(source).strip()]


def notebook() -> str | None:
    """Return the path of the notebook if Jupyter or VS Code provides it; otherwise None."""
    shell = _shell()
    if shell is None:
        return None
    return getattr(shell, "user_ns", {}).get("__vsc_ipynb_file__") or os.environ.get("JPY_SESSION_NAME")


def as_script(cells: Cells, mask: Callable[[str], str]) -> str:
    """Return the cells as a script that Jupytext, Spyder and VS Code open as a notebook, without secrets."""
    return mask("\n\n".join(f"# %% [{number}]\n{source}" for number, source in cells) + "\n")


def _shell() -> Any:
    loaded = sys.modules.get("IPython")
    return None if loaded is None else loaded.get_ipython()
