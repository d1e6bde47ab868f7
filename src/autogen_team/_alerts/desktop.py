"""The channel to the desktop of this machine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autogen_team._alerts.channel import Channel


def desktop(app_name: str, timeout: int | None, *, system: str = sys.platform) -> Channel:
    """Return the channel to the desktop of `system`; nothing is connected before the first alert."""
    if system in {"darwin", "win32"}:
        from autogen_team._alerts.commands import CommandDesktop

        return CommandDesktop(app_name, system=system)
    from autogen_team._alerts.dbus import DBusDesktop

    return DBusDesktop(app_name, timeout)
