"""Whether an alert could get through, found out without sending one; for `autogen-team doctor`."""

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

from autogen_team.io._alerts.channel import NoAnswerError, UndeliveredError
from autogen_team.io._alerts.dbus import DBusDesktop
from autogen_team.io._deadline import within

if TYPE_CHECKING:
    from autogen_team.io._alerts.remote import RemoteChannel

_ANSWER_WITHIN: Final = 3.0  # seconds
_COMMANDS: Final = {"darwin": "osascript", "win32": "powershell.exe"}
_LITERAL: Final = re.compile(r"https?://[\w.-]+(?::\d+)?(?:/|$)")
"""An address whose host is the same for everybody."""
_OWN_HOST: Final = frozenset({"NotifyWorkflows"})
"""Plugins that have only a form with TLS, and connect to the host of the URL all the same."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the connection of a channel goes."""

    host: str
    port: int
    is_proxy: bool = False
    """Whether it is only the first step of the way."""

    def __str__(self) -> str:
        return f"{'the proxy ' if self.is_proxy else ''}{self.host}:{self.port}"


def desktop(*, system: str = sys.platform) -> str:
    """Return what shows notifications here, on Linux with its version.

    Raises:
        UndeliveredError: nothing does.
        NoAnswerError: there is a daemon, and it does not answer.

    """
    command = _COMMANDS.get(system)
    if command is None:
        return _Inquirer("", None, answer_within=_ANSWER_WITHIN).ask()
    if shutil.which(command) is None:
        raise UndeliveredError(f"there is no {command}, which shows notifications")
    return f"{command} is there"


class _Inquirer(DBusDesktop):
    """Asks the notification daemon who it is."""

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
    """Return where a channel connects to; None where its plugin does not tell, or does not speak TCP.

    Apprise has no word for it, so it is put together from what its plugins have in common: mail names its server;
    those that have a form with and without TLS are servers of people's own, at the host of the URL; the others have
    the address of their service as an attribute.
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
    """Return if somebody listens there; nothing is said to them.

    Raises:
        OSError: nobody does, or not within so many seconds.

    """
    # Finding the address has no timeout of its own.
    open_socket = partial(socket.create_connection, (target.host, target.port), seconds)
    within(seconds, lambda: open_socket().close(), name="autogen-team-reach")


def _address(plugin: Any) -> str | None:
    mode = str(getattr(plugin, "mode", None) or "")
    for name in (f"{mode}_notify_url", f"web{mode}_url", f"{mode}_url"):
        if mode and (url := _literal(plugin, name)):
            return url
    if mode.endswith("hook"):  # a web hook of its own kind, whose address is put together where it is used
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
    """Return the proxy that requests would take."""
    proxies = urllib.request.getproxies()
    address = proxies.get(scheme) or proxies.get("all")
    if not address or urllib.request.proxy_bypass(host):
        return None
    parts = urlsplit(address if "://" in address else f"http://{address}")
    return Endpoint(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80), is_proxy=True)
