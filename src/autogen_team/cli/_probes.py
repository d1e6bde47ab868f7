"""Probes of `doctor` for this machine: versions, state folder, log sink and alert channels."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import stat
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from autogen_team import __version__
from autogen_team._process.folders import state_folder as folder_of
from autogen_team._redact import mask_url
from autogen_team._services.state import STATE_DIR
from autogen_team.errors import ConfigurationError, MissingExtraError
from autogen_team.io.services import AlertsService, LoggerService, MlflowService

if TYPE_CHECKING:
    from autogen_team._alerts.remote import RemoteChannel
    from autogen_team._spool import index

Outcome: TypeAlias = Literal["ok", "note", "fail"]

LIMIT = 5.0
"""Timeout in seconds for each connection."""

_LIBRARIES = ("mlflow-skinny", "sqlalchemy", "loguru", "pydantic", "pydantic-settings", "orjson", "psutil", "jeepney")
_EXTRAS = {
    "alerts": "apprise",
    "gpu": "nvidia-ml-py",
    "otel": "opentelemetry-exporter-otlp-proto-http",
    "ui": "mlflow",
}
_URLS = "AUTOGEN_TEAM_ALERTS_URLS"


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one probe."""

    name: str
    outcome: Outcome
    found: str
    remedy: str = ""
    """What the user can do; each failure has a remedy."""


def versions() -> dict[str, str]:
    """Return the versions of the library, Python, the platform, the dependencies and the extras."""
    found = {
        "autogen-team": __version__,
        "python": f"{platform.python_version()} ({_build()})",
        "platform": platform.platform(),
    }
    found |= {name: _version(name) for name in _LIBRARIES}
    return found | {f"extra {extra}": f"{name} {_version(name)}" for extra, name in _EXTRAS.items()}


def _build() -> str:
    is_free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    return platform.python_implementation() + ", free-threaded, not tested with this library" * is_free_threaded


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def state_folder(service: MlflowService) -> list[Check]:
    """Check the state folder and the data waiting in it."""
    folder = folder_of(service.state_dir)
    remedy = f"make {folder} writable, or set {STATE_DIR} to another folder"
    fault, is_there = unwritable(folder)
    if fault:
        return [Check("state folder", "fail", f"{folder}: {fault}", remedy)]
    if not is_there:
        return [Check("state folder", "ok", f"{folder} does not exist yet, but can be created")]
    mode = stat.S_IMODE(folder.stat().st_mode)
    found = f"{folder} is writable, mode {mode:04o}"
    if os.name == "posix" and mode & 0o077:
        first = Check("state folder", "note", f"{found}: other users can read it", f"chmod 700 '{folder}'")
    else:
        first = Check("state folder", "ok", found)
    return [first, _waiting(folder, remedy)]


def _waiting(folder: Path, remedy: str) -> Check:
    from autogen_team._spool import index
    from autogen_team._sync import offline_store

    try:
        journals, stores = index.find(folder), offline_store.find(folder)
    except (OSError, ValueError, KeyError) as error:
        return Check("waiting", "fail", f"the journals in {folder} cannot be read: {error}", remedy)
    words = {
        "alive": "of living processes",
        "dead": "of dead ones",
        "recovering": "of dead ones, being recovered",
        "elsewhere": "of other machines",
    }
    counts = {state: sum(one.state == state for one in journals) for state in words}
    parts = [f"{counts[state]} {words[state]}" for state in words if counts[state]]
    found = [f"journals: {', '.join(parts)}, with {_undelivered(journals)}"] if journals else []
    found += [f"stores of offline runs: {len(stores)}"] if stores else []
    if counts["dead"] or stores:
        return Check("waiting", "note", "; ".join(found), "autogen-team status shows it, autogen-team sync delivers it")
    return Check("waiting", "ok", "; ".join(found) or "nothing")


def _undelivered(journals: Sequence[index.Found]) -> str:
    """Return the amount of waiting data in all journals, and the upload time of the files at the current rate."""
    from autogen_team._process.durations import duration
    from autogen_team._spool.index import in_words

    size = sum(one.file_bytes for one in journals)
    words = in_words(sum(one.waiting for one in journals), sum(one.files for one in journals), size)
    rate = sum(one.upload_rate or 0.0 for one in journals if one.files)
    return f"{words} undelivered" + (f", {duration(size / rate)} of uploads" if size and rate else "")


def unwritable(folder: Path) -> tuple[str, bool]:
    """Return why the folder cannot be written to, or "" if it can, and whether it exists.

    If the folder does not exist, its nearest existing parent is tried. The trial file has no name if the system
    supports this, and is removed at once.
    """
    place = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), folder)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"doctor")
            file.flush()
    except OSError as error:
        where = "" if place == folder else f"{place}: "
        return f"{where}{error.strerror or error}", place == folder
    return "", place == folder


def log_sink(service: LoggerService) -> list[Check]:
    """Check the log sink without creating its file or folders."""
    from autogen_team._logs import validation

    try:
        validation.level(service.level)
        validation.template(service.format)
        found = _sink(service)
    except ConfigurationError as error:
        return [Check("log sink", "fail", str(error), "correct it; autogen-team config shows its source")]
    except OSError as error:
        name = service.sink
        remedy = "set AUTOGEN_TEAM_LOGGER_SINK to another file, or to stderr"
        return [Check("log sink", "fail", f"{name} cannot be written: {error.strerror or error}", remedy)]
    return [Check("log sink", "ok", found)]


def _sink(service: LoggerService) -> str:
    from autogen_team._logs import validation

    text = service.sink.strip()
    if text.lower() in ("stderr", "stdout"):
        validation.destination(service)
        return text.lower()
    path = Path(text).expanduser().absolute()
    if not text or text.endswith(("/", os.sep)) or path.is_dir():
        validation.destination(service)  # raises an error that says what is wrong, and creates nothing
    with tempfile.TemporaryDirectory() as folder:  # rotation, retention and compression are tested only here
        trial = f"{folder}/{path.name}"
        try:
            file, _ = validation.destination(service.model_copy(update={"sink": trial}))
        except ConfigurationError as error:
            raise ConfigurationError(str(error).replace(trial, text)) from None
        file.close()
    if path.exists():
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND))
        return f"{path} is writable"
    fault, _ = unwritable(path.parent)
    if fault:
        raise OSError(fault)
    return f"{path} does not exist yet, but can be created"


def collector_probes(service: LoggerService) -> Iterator[Callable[[], Check]]:
    """Yield one probe for each OpenTelemetry signal that goes to a collector."""
    from autogen_team._ship import collector

    if collector.endpoint("traces"):
        yield partial(_collector, "traces")
    if service.otlp:
        yield partial(_collector, "logs")


def _collector(signal: Literal["traces", "logs"]) -> Check:
    from autogen_team._ship import collector

    name = f"collector of {signal}"
    remedy = "check the network, OTEL_EXPORTER_OTLP_ENDPOINT, and OTEL_EXPORTER_OTLP_HEADERS"
    place = collector.endpoint(signal)
    if place is None:
        found = "logger.otlp is on, but no collector is configured"
        return Check(name, "fail", found, "set OTEL_EXPORTER_OTLP_ENDPOINT, such as http://collector:4318")
    try:
        return Check(name, "ok", f"{collector.probe(signal, LIMIT)} accepts {signal}")
    except MissingExtraError as error:
        return Check(name, "fail", str(error), "pip install 'autogen-team[otel]'")
    except ConfigurationError as error:
        return Check(name, "fail", str(error), "unset the variable, or set it to http/protobuf")
    except OSError as error:
        return Check(name, "fail", f"{mask_url(place)} cannot be used: {error}", remedy)


def alert_probes(service: AlertsService) -> Iterator[Callable[[], Check]]:
    """Yield one probe per alert channel; each may block on its own server."""
    if not service.enable:
        yield partial(Check, "alerts", "ok", "disabled: alerts are printed")
        return
    yield partial(_desktop, has_urls=bool(service.urls))
    if not service.urls:
        return
    from autogen_team._alerts import remote

    try:
        channels = remote.open_channels([url.get_secret_value() for url in service.urls], service.app_name)
    except MissingExtraError as error:
        yield partial(Check, "alerts", "fail", str(error), "pip install 'autogen-team[alerts]'")
    except ConfigurationError as error:
        yield partial(Check, "alerts", "fail", str(error), f"correct {_URLS}")
    else:
        for channel in channels:
            yield partial(_channel, channel)


def _desktop(*, has_urls: bool) -> Check:
    from autogen_team._alerts import reach
    from autogen_team._alerts.channel import NoAnswerError, UndeliveredError

    try:
        return Check("desktop", "ok", reach.desktop())
    except NoAnswerError as error:
        return Check("desktop", "fail", str(error), "restart the notification daemon of your desktop")
    except UndeliveredError as error:
        instead = "alerts go to the remote channels" if has_urls else "alerts are printed"
        remedy = "" if has_urls else f"to get alerts elsewhere, add a channel to {_URLS}"
        return Check("desktop", "note", f"{error}; {instead}", remedy)


def _channel(channel: RemoteChannel) -> Check:
    from autogen_team._alerts import reach

    name = f"alerts to {channel.name}"
    only = f", for {', '.join(sorted(channel.levels))} only" if channel.levels else ""
    target = reach.endpoint(channel)
    if target is None:
        remedy = "autogen-team notify sends an alert through it"
        return Check(name, "note", f"not checked: its address is known only when it sends{only}", remedy)
    try:
        reach.connect(target, LIMIT)
    except OSError as error:
        remedy = f"check the network, or correct the URL in {_URLS}"
        return Check(name, "fail", f"{target} cannot be reached: {error}{only}", remedy)
    return Check(name, "ok", f"{target} accepts connections; nothing was sent{only}")
