"""A change shared by several users."""

from __future__ import annotations

import pytest

from autogen_team._process.refcount import RefCount


def test_the_change_is_made_once_and_undone_with_the_last_user():
    """The order of release does not matter, and the change can be made again."""
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


def test_a_change_that_fails_is_tried_again():
    """The next user tries again."""
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
