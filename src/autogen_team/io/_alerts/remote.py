"""Channels to people who are elsewhere: any service that Apprise knows, each through its own plugin object.

Apprise's own ``notify()`` is not used, for its pool of threads keeps a process from exiting while an endpoint drips
(measured: killed after 200 s). Attempts, pauses and the deadline are ours. An attempt whose answer was lost is made
again: an alert may come twice, rather than not at all.
"""

from __future__ import annotations

import logging
import re
import time
import warnings
from typing import TYPE_CHECKING, Any, Final

from autogen_team.errors import ConfigurationError, MissingExtraError
from autogen_team.io import _redact
from autogen_team.io._alerts.channel import LEVELS, NoAnswerError, UndeliveredError
from autogen_team.io._alerts.hush import hushed
from autogen_team.io._alerts.text import cut, one_line
from autogen_team.io._deadline import within
from autogen_team.io._forking import start_afresh_after_fork

if TYPE_CHECKING:
    from collections.abc import Sequence

    from autogen_team.io._alerts.channel import Alert

DEADLINE: Final = 30.0  # seconds for one alert, all attempts and pauses together
PAUSES: Final = (0.5, 2.0)  # seconds before the second and the third attempt
_REASON_LIMIT: Final = 200
_ANSWER: Final = "Response Details"
"""How Apprise's plugins begin the record that holds what the service has answered."""
_MARKUP: Final = re.compile(r"<[^<>]*>")

_TAGGED = re.compile(r"^(?P<tags>[\w ,-]+)=(?P<url>[\w+.-]+://.*)$", re.DOTALL)
_STATUS = re.compile(r"error=(\d{3})\b")
# Asking again helps with these; with any other 3xx and 4xx it does not.
_PASSING = frozenset({408, 425, 429})


class RemoteChannel:
    """Send alerts with an Apprise plugin object, and try again when that may help."""

    is_local = False

    def __init__(
        self,
        plugin: Any,
        name: str,
        levels: frozenset[str] = frozenset(),
        *,
        deadline: float = DEADLINE,
        pauses: Sequence[float] = PAUSES,
    ) -> None:
        self.name = name
        self.levels = levels
        """Those it takes; empty for all."""
        self.plugin = plugin
        """Apprise's own object for this channel."""
        self._logger = plugin.logger = _PluginLogger()
        self._deadline = deadline
        self._pauses = pauses
        self.after_fork()
        start_afresh_after_fork(self)

    def after_fork(self) -> None:
        """Forget what is owed to the parent."""
        self._failed = False
        self._is_busy = False

    def takes(self, level: str) -> bool:
        """Tell whether the tags of the channel allow the level."""
        return not self.levels or level in self.levels

    def close(self) -> None:
        """Do nothing: each attempt has its own connection."""

    def deliver(self, alert: Alert) -> None:
        """Return when the service has taken the alert."""
        deadline = time.monotonic() + self._deadline
        # After an alert that failed, the next ones get one attempt each, so that a queue behind an outage moves on.
        pauses = () if self._failed else self._pauses
        self._failed = True
        for pause in (*pauses, None):
            reason = self._attempt(alert, deadline)
            if reason is None:
                self._failed = False
                return
            if pause is None or _is_final(reason) or time.monotonic() + pause >= deadline:
                self._failed = not _is_final(reason)  # else the service is there, and wants no such alert
                raise UndeliveredError(reason)
            time.sleep(pause)

    def _attempt(self, alert: Alert, deadline: float) -> str | None:
        """Return None for a success, else why not; raise a NoAnswerError at the deadline.

        Timeouts of requests and smtplib count from the last byte, so an endpoint that drips outlives all of them. That
        is why attempts have a thread of their own, which can be left waiting.
        """
        if self._is_busy:
            raise NoAnswerError("an earlier alert still waits for its answer")
        self._is_busy = True

        def attempt() -> str | None:
            try:
                return self._send(alert)
            finally:
                self._is_busy = False

        try:
            return within(max(deadline - time.monotonic(), 0.0), attempt, name=self.name)
        except TimeoutError:
            raise NoAnswerError(f"no answer within {self._deadline:g} s") from None

    def _send(self, alert: Alert) -> str | None:
        from apprise import NotifyFormat, NotifyType

        kinds = {"success": NotifyType.SUCCESS, "warning": NotifyType.WARNING, "error": NotifyType.FAILURE}
        title, body = _fitting(self.plugin, alert.title, alert.message or alert.title)  # many refuse an empty one
        self._logger.begin()
        with hushed() as said:
            try:
                taken = self.plugin.notify(
                    body=body,
                    title=title,
                    notify_type=kinds.get(alert.level, NotifyType.INFO),
                    body_format=NotifyFormat.TEXT,
                )
            except Exception as error:
                return _reason([f"{type(error).__name__}: {error}"], self._logger.answer)
            return None if taken else _reason(said + self._logger.said, self._logger.answer)


class _PluginLogger(logging.Logger):
    """The logger of one plugin: keeps why an alert was refused, in Apprise's words and in those of the service.

    Plugins log what a service has answered at DEBUG, as they log addresses and payloads, which are secrets. So nothing
    goes on from here to any other logger.
    """

    def __init__(self) -> None:
        super().__init__("apprise", logging.DEBUG)
        self.begin()

    def begin(self) -> None:
        """Forget what was said about the alert before."""
        self.said: list[str] = []
        self.answer = ""

    def handle(self, record: logging.LogRecord) -> None:
        """Keep what says why."""
        if record.levelno >= logging.WARNING:
            self.said.append(record.getMessage())
        elif str(record.msg).startswith(_ANSWER):
            found = record.args[0] if isinstance(record.args, tuple) and record.args else ""
            self.answer = found.decode(errors="replace") if isinstance(found, bytes) else str(found)


def _fitting(plugin: Any, title: str, body: str) -> tuple[str, str]:
    """Return title and body, cut to what the service takes, unless the URL says `overflow=split` or `truncate`."""
    from apprise import OverflowMode

    if plugin.overflow_mode != OverflowMode.UPSTREAM:
        return title, body
    most = plugin.body_maxlen
    if plugin.title_maxlen > 0:
        title = cut(title, plugin.title_maxlen)
    if title and (plugin.title_maxlen <= 0 or plugin.overflow_amalgamate_title):
        # The service has one text, which begins with the title; 8 for marks and line ends between them.
        title = cut(title, max(most // 2, 1))
        most -= len(title) + max(8, plugin.overflow_buffer)
    if 0 < plugin.body_max_line_count <= body.count("\n"):
        body = one_line(body)
    return title, cut(body, max(most, 1))


def open_channels(urls: Sequence[str], app_name: str) -> list[RemoteChannel]:
    """Return a channel for each URL, or raise an error that shows none of their secrets.

    A URL may have Apprise's tags before it, which are levels here: ``error=slack://...``, ``warning,error=mailto://...``.
    """
    if not urls:
        return []
    try:
        import apprise
    except ImportError as error:
        raise MissingExtraError(
            "alerts urls need the extra `alerts`, which is not installed: pip install 'autogen-team[alerts]'"
        ) from error
    # Importing its plugins sets off deprecation warnings of the standard library.
    with warnings.catch_warnings(), hushed():
        warnings.simplefilter("ignore")
        asset = apprise.AppriseAsset(app_id=app_name, app_desc=app_name)
        channels = [_open(apprise, asset, number, url.strip()) for number, url in enumerate(urls, start=1)]
    names = [channel.name for channel in channels]
    for number, channel in enumerate(channels, start=1):
        if names.count(channel.name) > 1:  # two of a kind are told apart by their place in the setting
            channel.name += f" (url {number})"
    return channels


def _open(apprise: Any, asset: Any, number: int, text: str) -> RemoteChannel:
    tagged = _TAGGED.match(text)
    tags, url = (tagged["tags"], tagged["url"]) if tagged else ("", text)
    levels = frozenset(re.findall(r"[\w-]+", tags))
    if not levels <= frozenset(LEVELS):
        unknown = ", ".join(sorted(levels - frozenset(LEVELS)))
        raise ConfigurationError(
            f"alerts url {number} is tagged {unknown!r}, and tags are levels here: some of {', '.join(LEVELS)}, or none"
        )
    plugin = apprise.Apprise.instantiate(url, asset=asset)
    if plugin is None:
        scheme = url.partition("://")[0] if "://" in url else ""
        shown = f"{scheme}://…" if re.fullmatch(r"[\w+.-]{1,20}", scheme) else "…"
        raise ConfigurationError(
            f"alerts url {number} ({shown}) is not one that Apprise knows, or something in it is missing: see "
            "https://appriseit.com/services/ for the form of each service (a plain web hook is jsons://host/path)"
        )
    plugin.redirects = False  # a redirected POST becomes a GET elsewhere, which is then taken for a success
    plugin.request_rate_per_sec = 0  # or it would sleep up to 5.5 s between two alerts, holding up the second
    return RemoteChannel(plugin, _name(plugin, url), levels)


def _name(plugin: Any, url: str) -> str:
    """Return the scheme, and the host where that is one: in most URLs of Apprise all that follows is a secret."""
    scheme = url.partition("://")[0].lower()
    tokens = getattr(plugin, "template_tokens", {})
    host = plugin.host if "host" in tokens and "topic" not in tokens else None  # ntfy's host may be its secret topic
    port = f":{plugin.port}" if host and plugin.port else ""
    return f"{scheme}://{host or ''}{port}/…" if host else f"{scheme}://…"


def _is_final(reason: str) -> bool:
    status = _STATUS.search(reason)
    return status is not None and 300 <= int(status[1]) < 500 and int(status[1]) not in _PASSING


def _reason(said: list[str], answer: str) -> str:
    """Return why an alert was not taken, as Apprise says it and as the service does, without secrets."""
    parts = [said[-1] if said else "the service did not take it", " ".join(_MARKUP.sub(" ", answer).split())]
    return ": ".join(one_line(_redact.mask(part)).rstrip(" .:")[:_REASON_LIMIT] for part in parts if part)
