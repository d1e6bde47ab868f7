"""Check with a time limit whether a server answers, before MLflow uses it.

MLflow itself retries for 4 minutes if a server refuses connections, and for 20 if it is silent (measured, mlflow 3.17).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from autogen_team._process.deadline import within
from autogen_team._redact import mask, mask_url
from autogen_team.errors import ConfigurationError, TrackingUnavailableError

if TYPE_CHECKING:
    import ssl

_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def check(uri: str, timeout: float) -> None:
    """Check that the server of `uri` answers within `timeout` seconds in total; a local store always passes.

    Raises:
        TrackingUnavailableError: the server refused the connection, was silent, or answered with a status of 5xx.
        ConfigurationError: the URI is not valid.

    """
    fault = find_fault(uri, timeout)
    if fault is not None:
        raise TrackingUnavailableError(unavailable(uri, fault))


def check_all(uris: Iterable[str], timeout: float) -> None:
    """Check that each of these stores answers; see `check`.

    Raises:
        TrackingUnavailableError: one of them does not answer.
        ConfigurationError: one of the URIs is not valid.

    """
    for uri in dict.fromkeys(uris):
        check(uri, timeout)


def takes_connections(uri: str, timeout: float) -> bool:
    """Return whether the server of `uri` accepts connections; False may be wrong behind a proxy."""
    parts = urlsplit(uri)
    default = {"http": 80, "https": 443}.get(parts.scheme) or _DEFAULT_PORTS.get(parts.scheme.partition("+")[0], 0)
    connect = partial(_connect, parts.hostname or "", parts.port or default, timeout)
    try:
        within(timeout, connect, name="autogen-team-probe")  # name resolution has no timeout
    except OSError:
        return False
    return True


def find_fault(uri: str, timeout: float) -> str | None:
    """Return a short reason why the server of `uri` does not answer; None if it answers, or is not a server.

    Raises:
        ConfigurationError: the URI is not valid.

    """
    try:
        parts = urlsplit(uri)
        address = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"the MLflow store {mask_url(uri)!r} is not a valid URL: {mask(str(error))}") from None
    if parts.scheme in ("http", "https"):
        ask = partial(_ask_http, uri, timeout)
    elif (driver := parts.scheme.partition("+")[0]) in _DEFAULT_PORTS and address[0]:
        ask = partial(_connect, address[0], address[1] or _DEFAULT_PORTS[driver], timeout)
    else:
        return None
    try:
        within(timeout, ask, name="autogen-team-probe")
    except Exception as error:  # the other end may not speak HTTP at all
        return str(error) or type(error).__name__
    return None


def is_server(uri: str) -> bool:
    """Return whether the store of `uri` is remote: an MLflow server, or a database server."""
    scheme = urlsplit(uri).scheme
    return scheme in ("http", "https") or scheme.partition("+")[0] in _DEFAULT_PORTS


def unavailable(uri: str, fault: str) -> str:
    """Return a message that the store of `uri` cannot be used, with the reason and the remedy."""
    remedy = "Correct MLFLOW_TRACKING_URI (or MLFLOW_REGISTRY_URI)"
    if is_server(uri):
        remedy += ", start the server, raise AUTOGEN_TEAM_MLFLOW_CONNECT_TIMEOUT if it is only slow, or work without it"
        remedy += " (AUTOGEN_TEAM_MLFLOW_MODE=auto)"
    return f"the MLflow store at {mask_url(uri)} cannot be used: {mask(fault).rstrip('. ')}. {remedy}."


def _connect(host: str, port: int, timeout: float) -> None:
    socket.create_connection((host, port), timeout).close()


def _ask_http(uri: str, timeout: float) -> None:
    """Request `/health`, and accept any answer but a 5xx: a proxy may require a password for it."""
    import ssl
    import urllib.error
    import urllib.request

    request = urllib.request.Request(f"{_without_userinfo(uri).rstrip('/')}/health")  # noqa: S310 - http(s) only, see `check`
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=_tls()))
    try:
        opener.open(request, timeout=timeout).close()
    except urllib.error.HTTPError as answer:
        answer.close()
        if answer.code >= 500:
            raise OSError(f"it answers {answer.code} {answer.reason}") from None
    except urllib.error.URLError as error:
        # The server did answer. MLflow decides which certificates to trust; it finds them in other places than Python.
        if not isinstance(error.reason, ssl.SSLCertVerificationError):
            raise OSError(str(error.reason)) from None


def _without_userinfo(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _tls() -> ssl.SSLContext:
    """Return a context that trusts the certificates that MLflow is configured to trust."""
    import ssl

    trusted = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or None
    if trusted is not None and Path(trusted).is_dir():
        context = ssl.create_default_context(capath=trusted)
    else:
        context = ssl.create_default_context(cafile=trusted)
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate := os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"):
        context.load_cert_chain(certificate)
    return context
