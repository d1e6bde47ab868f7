"""A change that several users share."""

from __future__ import annotations

import pytest

from autogen_team._process.refcount import RefCount


def test_the_change_is_made_once_and_undone_with_the_last_user():
    """Whoever leaves first, and again for those that come later."""
    said = []

    def make(what):
        said.append(f"made {what}")
        return lambda: said.append("undone")

    change = RefCount(make)
    for _ in range(2):
        first, second = change.take("a"), change.take("b")
        first()
        assert said[-1] == "made a"
        second()

    assert said == ["made a", "undone"] * 2


def test_a_change_that_fails_has_no_user():
    """The next one tries it again."""
    faults = [OSError("once")]

    def make():
        if faults:
            raise faults.pop()
        return lambda: faults.append(OSError("undone"))

    change = RefCount(make)
    with pytest.raises(OSError, match="once"):
        change.take()
    change.take()()

    assert len(faults) == 1
