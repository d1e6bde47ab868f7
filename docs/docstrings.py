"""How the site shows docstrings: examples as code, and fields without what pydantic needs to know of them."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"(?m)^>>> (?:.*\S.*\n?)+")


class Docstrings(griffe.Extension):
    """Change each object as it is read; loaded by mkdocstrings (`mkdocs.yml`)."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Put a fence around the lines of each example."""
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(
                lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", obj.docstring.value
            )

    def on_attribute(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Show `Annotated[int, Field(ge=0)] | None = Field(default=None)` as `int | None`."""
        attr.annotation = _plain(attr.annotation)
        if str(attr.value).startswith("Field("):
            attr.value = None


def _plain(annotation: Any) -> Any:
    match annotation:
        case griffe.ExprSubscript(left=griffe.ExprName(name="Annotated"), slice=griffe.ExprTuple(elements=[first, *_])):
            return first
        case griffe.ExprBinOp():
            annotation.left, annotation.right = _plain(annotation.left), _plain(annotation.right)
    return annotation
