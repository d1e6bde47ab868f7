"""Types of fields that several services have."""

from __future__ import annotations

import os
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, Field


def _as_text(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


Place: TypeAlias = Annotated[str, BeforeValidator(_as_text)]
"""A URI, a path or a name of a stream; given as a text or a `Path`."""

Seconds: TypeAlias = Annotated[float, Field(gt=0, le=86_400.0)]
"""How long to wait; whoever wants to wait for longer than a day has mistaken the unit."""
