"""Checks whether channels can be reached, without sending an alert; for `autogen-team doctor`."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
import time
import urllib.request
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from autogen_team._alerts.channel import NoAnswerError, UndeliveredError
from autogen_team._alerts.dbus import DBusDesktop
from autogen_team._process.deadline import within

if TYPE_CHECKING:
    from autogen_team._alerts.remote import RemoteChannel

_ANSWER_WITHIN: Final = 3.0  # seconds
_COMMANDS: Final = {"darwin": "osascript", "win32": "powershell.exe"}
_LITERAL: Final = re.compile(r"https?://[\w.-]+(?::\d+)?(?:/|$)")
"""Matches a URL with a literal host, the same for all users."""
_OWN_HOST: Final = frozenset({"NotifyWorkflows"})
"""Plugins that have only a scheme with TLS, but still connect to the host of the URL."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The target of a channel's connection."""

    host: str
    port: int
    is_proxy: bool = False
    """Whether the host is a proxy, and so only the first hop."""

    def __str__(self) -> str:
        return f"{'the proxy ' if self.is_proxy else ''}{self.host}:{self.port}"


def desktop(*, system: str = sys.platform) -> str:
    """Return the name of the program that shows notifications, on Linux with its version.

    Raises:
        UndeliveredError: no program shows notifications.
        NoAnswerError: there is a daemon, but it does not answer.

    """
    command = _COMMANDS.get(system)
    if command is None:
        return _Inquirer("", None, answer_within=_ANSWER_WITHIN).ask()
    if shutil.which(command) is None:
        raise UndeliveredError(f"the command {command}, which shows notifications, is not installed")
    return f"{command} is installed"


class _Inquirer(DBusDesktop):
    """Client that asks the notification daemon for its name and version."""

    def ask(self) -> str:
        try:
            self._connection, self._owner = self._connect(), os.getpid()
            name, vendor, version, _ = self._call(time.monotonic() + self._answer_within, "GetServerInformation")
        except TimeoutError as error:
            raise NoAnswerError(f"the notification daemon did not answer within {_ANSWER_WITHIN:g} s") from error
        except OSError as error:
            raise UndeliveredError(f"the session bus cannot be reached: {error}") from error
        finally:
            self.close()
        return f"{name} {version}" + (f" ({vendor})" if vendor else "")


def endpoint(channel: RemoteChannel) -> Endpoint | None:
    """Return the target of a channel's connection; None if the plugin does not reveal it, or it is not TCP.

    Apprise has no function for this, so it is derived from common attributes of its plugins. Mail plugins name their
    server. Plugins that have schemes with and without TLS connect to a user's own server, the host of the URL. The
    others have the URL of their service as an attribute.
    """
    plugin: Any = channel.plugin
    server = getattr(plugin, "smtp_host", None)
    if isinstance(server, str) and server:
        return Endpoint(server, int(plugin.port or (587 if plugin.secure else 25)))
    if "requests" not in vars(sys.modules[type(plugin).__module__]):
        return None
    url = _address(plugin)
    if url is None:
        return None
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    return _proxy(parts.scheme, host) or Endpoint(host, port)


def connect(target: Endpoint, seconds: float) -> None:
    """Check that a server accepts a connection to the target; nothing is sent.

    Raises:
        OSError: no server accepts the connection within `seconds`.

    """
    # The resolution of host names has no timeout, so the whole call gets one.
    open_socket = partial(socket.create_connection, (target.host, target.port), seconds)
    within(seconds, lambda: open_socket().close(), name="autogen-team-reach")


def _address(plugin: Any) -> str | None:
    mode = str(getattr(plugin, "mode", None) or "")
    for name in (f"{mode}_notify_url", f"web{mode}_url", f"{mode}_url"):
        if mode and (url := _literal(plugin, name)):
            return url
    if mode.endswith("hook"):  # a special web hook, whose URL is built only when it is used
        return None
    fixed = {url for name in ("notify_url", "api_url") if (url := _literal(plugin, name))}
    is_own = type(plugin).__name__ in _OWN_HOST or bool(plugin.protocol and plugin.secure_protocol)
    if is_own and not fixed and mode != "cloud" and plugin.host:
        port = f":{plugin.port}" if plugin.port else ""
        host = f"[{plugin.host}]" if ":" in plugin.host else plugin.host
        return f"{'https' if plugin.secure else 'http'}://{host}{port}/"
    hosts = {urlsplit(url).hostname for url in fixed}
    return min(fixed) if len(hosts) == 1 and not is_own else None


def _literal(plugin: Any, name: str) -> str | None:
    value = getattr(plugin, name, None)
    return value if isinstance(value, str) and _LITERAL.match(value) else None


def _proxy(scheme: str, host: str) -> Endpoint | None:
    """Return the proxy that requests would use."""
    proxies = urllib.request.getproxies()
    address = proxies.get(scheme) or proxies.get("all")
    if not address or urllib.request.proxy_bypass(host):
        return None
    parts = urlsplit(address if "://" in address else f"http://{address}")
    return Endpoint(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80), is_proxy=True)
