"""Private folders."""

from __future__ import annotations

import stat

from autogen_team._process.folders import private_folder


def mode(path):
    """Return the permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def test_each_created_folder_is_private(tmp_path):
    """Missing parents are private as well; `Path.mkdir(parents=True)` would leave them open to others."""
    made = private_folder(tmp_path / "a" / "b" / "c")

    assert made == tmp_path / "a" / "b" / "c"
    assert [mode(folder) for folder in (made, *made.parents[:2])] == [0o700] * 3


def test_an_existing_folder_keeps_its_mode(tmp_path):
    """An existing folder may be shared on purpose."""
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    shared.chmod(0o755)

    private_folder(shared / "mine")
    private_folder(shared / "mine")

    assert (mode(shared), mode(shared / "mine")) == (0o755, 0o700)
