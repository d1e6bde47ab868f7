"""Alerts on Linux desktops: a client of freedesktop.org's notification service on the session bus.

https://specifications.freedesktop.org/notification-spec/1.2/
"""

from __future__ import annotations

import html
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from autogen_team._alerts.channel import NoAnswerError, NoDesktopError, UndeliveredError

if TYPE_CHECKING:
    from jeepney.io.blocking import DBusConnection  # type: ignore[import-untyped]  # it comes without types

    from autogen_team._alerts.channel import Alert

ANSWER_WITHIN: Final = 3.0  # seconds; a healthy daemon takes one to ten milliseconds
_FOREVER: Final = 2**31 - 1  # milliseconds, the maximum of the protocol: 24 days

# Never "low": GNOME shows no banner for that urgency. Icons distinguish the other levels.
_URGENCY: Final = {"info": 1, "success": 1, "warning": 1, "error": 2}
_ICON: Final = {
    "info": "dialog-information",
    "success": "emblem-default",
    "warning": "dialog-warning",
    "error": "dialog-error",
}


class DBusDesktop:
    """Channel to the notification daemon on the session bus, over one connection.

    `timeout` is in seconds: None for the daemon's default, 0 to stay until dismissed.
    """

    name = "desktop"
    is_local = True

    def __init__(self, app_name: str, timeout: int | None, *, answer_within: float = ANSWER_WITHIN) -> None:
        self._app_name = app_name
        self._expire = -1 if timeout is None else min(timeout * 1000, _FOREVER)
        self._answer_within = answer_within
        self._connection: DBusConnection | None = None
        self._owner = 0
        self._reads_markup: bool | None = None

    def takes(self, level: str) -> bool:  # noqa: ARG002 - the protocol requires it; a desktop shows all levels
        """Accept every level."""
        return True

    def deliver(self, alert: Alert) -> None:
        """Return when the daemon has confirmed that it shows the alert."""
        if self._owner != os.getpid():
            self.close()  # in a forked child: answers on the parent's connection are for the parent
        fresh = self._connection is None
        try:
            self._notify(alert)
        except TimeoutError as error:
            self.close()  # half a message may have been sent
            raise NoAnswerError(f"the notification daemon did not answer within {self._answer_within:g} s") from error
        except OSError as error:
            self.close()
            if fresh:
                is_gone = isinstance(error, (FileNotFoundError, ConnectionRefusedError))
                kind = NoDesktopError if is_gone else UndeliveredError
                raise kind(f"the session bus cannot be reached: {error}") from error
            self.deliver(alert)  # the bus may have been restarted: retry once, on a new connection

    def close(self) -> None:
        """Close the connection to the bus."""
        connection, self._connection = self._connection, None
        self._reads_markup = None  # the next daemon may answer differently
        if connection is not None:
            connection.close()

    def __del__(self) -> None:  # of a service that was never stopped
        self.close()

    def _notify(self, alert: Alert) -> None:
        deadline = time.monotonic() + self._answer_within
        if self._connection is None:
            self._connection, self._owner = self._connect(), os.getpid()
        if self._reads_markup is None:
            [capabilities] = self._call(deadline, "GetCapabilities")
            self._reads_markup = "body-markup" in capabilities
        # The specification lets a daemon read markup in the body, never in the title.
        body = html.escape(alert.message, quote=False) if self._reads_markup else alert.message
        hints = {"urgency": ("y", _URGENCY[alert.level])}
        title = alert.title or self._app_name  # some daemons show nothing without a title
        icon = _ICON[alert.level]
        self._call(deadline, "Notify", "susssasa{sv}i", (self._app_name, 0, icon, title, body, [], hints, self._expire))

    def _connect(self) -> DBusConnection:
        try:
            from jeepney.io.blocking import open_dbus_connection
        except ImportError as error:
            raise UndeliveredError("the package jeepney, which Linux desktops need, is not installed") from error
        address = session_bus()
        try:
            connection = open_dbus_connection(address, auth_timeout=self._answer_within)
        except OSError:
            raise
        except Exception as error:  # jeepney's own errors: an unusable address, a bus that refuses this user
            raise UndeliveredError(f"the session bus cannot be used: {type(error).__name__}: {error}") from error
        connection.sock.settimeout(self._answer_within)  # otherwise, sending to a bus that does not read blocks forever
        return connection

    def _call(self, deadline: float, method: str, signature: str | None = None, body: tuple[Any, ...] = ()) -> Any:
        from jeepney import (  # type: ignore[import-untyped]  # it comes without types
            DBusAddress,
            DBusErrorResponse,
            new_method_call,
        )
        from jeepney.wrappers import unwrap_msg  # type: ignore[import-untyped]  # it comes without types

        assert self._connection is not None
        service = DBusAddress(
            "/org/freedesktop/Notifications",
            bus_name="org.freedesktop.Notifications",
            interface="org.freedesktop.Notifications",
        )
        call = new_method_call(service, method, signature, body)
        reply = self._connection.send_and_get_reply(call, timeout=max(deadline - time.monotonic(), 0.0))
        try:
            return unwrap_msg(reply)
        except DBusErrorResponse as error:
            self.close()
            if error.name == "org.freedesktop.DBus.Error.ServiceUnknown":
                raise NoDesktopError("no notification daemon on the session bus") from error
            raise UndeliveredError(f"the notification daemon refused: {error.name}: {error.data}") from error


def session_bus() -> str:
    """Return the address of the session bus, from its variable or from the place of systemd's socket.

    Raises:
        NoDesktopError: there is neither a variable nor a socket.

    """
    address = os.environ.get("DBUS_SESSION_BUS_ADDRESS", "")
    if address:
        return address
    # cron, ssh and tmux often lose the variable, even though the user is logged in
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    bus = Path(runtime) / "bus"
    try:
        if runtime and stat.S_ISSOCK(bus.stat().st_mode):
            return f"unix:path={bus}"
    except OSError:
        pass
    raise NoDesktopError("no session bus: DBUS_SESSION_BUS_ADDRESS is not set, so there is no desktop here")
