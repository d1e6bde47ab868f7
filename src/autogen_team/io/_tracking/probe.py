"""Is there somebody at the other end? A question with a time limit, asked before MLflow is.

MLflow itself retries for 4 minutes when a server refuses and for 20 when it is silent (measured, mlflow 3.17).
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from urllib.parse import urlsplit

from autogen_team.errors import TrackingUnavailableError
from autogen_team.io._redact import mask_url

_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def check(uri: str, timeout: float) -> None:
    """Return if the server of `uri` answers within `timeout` seconds in all; a local store always does.

    Raises:
        TrackingUnavailableError: it refused, was silent, or said that it cannot serve.

    """
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        fault = _within(timeout, lambda: _ask_http(uri, timeout))
    elif (driver := parts.scheme.partition("+")[0]) in _DEFAULT_PORTS and parts.hostname:
        address = parts.hostname, parts.port or _DEFAULT_PORTS[driver]
        fault = _within(timeout, lambda: socket.create_connection(address, timeout).close())
    else:
        return
    if fault is not None:
        raise TrackingUnavailableError(unavailable(uri, fault))


def unavailable(uri: str, fault: str) -> str:
    """Say that the store of `uri` cannot be used, why, and what to do."""
    return (
        f"the MLflow store at {mask_url(uri)} cannot be used: {fault}. Start the server, correct MLFLOW_TRACKING_URI "
        "(or MLFLOW_REGISTRY_URI), or raise AUTOGEN_TEAM_MLFLOW_CONNECT_TIMEOUT if it is only slow."
    )


def _within(timeout: float, ask: Callable[[], object]) -> str | None:
    """Ask on a thread, because a server that sends a byte now and then outwits every timeout of a socket."""
    faults: list[str | None] = []

    def run() -> None:
        try:
            ask()
        except Exception as error:  # whatever it is that does not speak HTTP
            faults.append(str(error) or type(error).__name__)
        else:
            faults.append(None)

    thread = threading.Thread(target=run, name="autogen-team-probe", daemon=True)
    thread.start()
    thread.join(timeout)
    return faults[0] if faults else f"no answer within {timeout:g} s"


def _ask_http(uri: str, timeout: float) -> None:
    """Any answer but a 5xx will do: a proxy may well want a password for `/health`."""
    request = urllib.request.Request(f"{_without_userinfo(uri).rstrip('/')}/health")  # noqa: S310 - http(s) only, see `check`
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=_tls()))
    try:
        opener.open(request, timeout=timeout).close()
    except urllib.error.HTTPError as answer:
        answer.close()
        if answer.code >= 500:
            raise OSError(f"it answers {answer.code} {answer.reason}") from None
    except urllib.error.URLError as error:
        raise OSError(str(error.reason)) from None


def _without_userinfo(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _tls() -> ssl.SSLContext:
    """Trust what MLflow is told to trust."""
    context = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or None)
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate := os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"):
        context.load_cert_chain(certificate)
    return context
