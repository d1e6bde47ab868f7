"""Remote channels: any service that Apprise supports, each through its own plugin object.

Apprise's own ``notify()`` is not used. While an endpoint sends its answer byte by byte, the thread pool of ``notify()``
prevents the process from exiting (measured: killed after 200 s). Attempts, pauses and the deadline are ours. If the
answer to an attempt is lost, the attempt is repeated: it is better if an alert arrives twice than not at all.
"""

from __future__ import annotations

import logging
import re
import time
import warnings
from typing import TYPE_CHECKING, Any, Final

from autogen_team import _redact
from autogen_team._alerts.channel import LEVELS, NoAnswerError, UndeliveredError
from autogen_team._alerts.hush import hushed
from autogen_team._alerts.text import cut, one_line
from autogen_team._process.deadline import within
from autogen_team._process.forking import start_afresh_after_fork
from autogen_team.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from autogen_team._alerts.channel import Alert

DEADLINE: Final = 30.0  # seconds for one alert, including all attempts and pauses
PAUSES: Final = (0.5, 2.0)  # seconds before the second and the third attempt
_REASON_LIMIT: Final = 200
_ANSWER: Final = "Response Details"
"""Prefix of the records in which Apprise's plugins log the answer of a service."""
_MARKUP: Final = re.compile(r"<[^<>]*>")

_TAGGED = re.compile(r"^(?P<tags>[\w ,-]+)=(?P<url>[\w+.-]+://.*)$", re.DOTALL)
_STATUS = re.compile(r"error=(\d{3})\b")
# Another attempt may help with these statuses, but not with any other 3xx or 4xx.
_PASSING = frozenset({408, 425, 429})


class RemoteChannel:
    """Channel that sends alerts with an Apprise plugin object, and retries if that may help."""

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
        """The levels that the channel accepts; empty for all."""
        self.plugin = plugin
        """Apprise's own object for this channel."""
        self._logger = plugin.logger = _PluginLogger()
        self._deadline = deadline
        self._pauses = pauses
        self.after_fork()
        start_afresh_after_fork(self)

    def after_fork(self) -> None:
        """Reset the state of attempts, which is the parent's."""
        self._failed = False
        self._is_busy = False

    def takes(self, level: str) -> bool:
        """Return whether the channel's tags allow the level."""
        return not self.levels or level in self.levels

    def close(self) -> None:
        """Do nothing: each attempt has its own connection."""

    def deliver(self, alert: Alert) -> None:
        """Return when the service has accepted the alert."""
        deadline = time.monotonic() + self._deadline
        # After a failed alert, the next ones get one attempt each, so that the queue moves during an outage.
        pauses = () if self._failed else self._pauses
        self._failed = True
        for pause in (*pauses, None):
            reason = self._attempt(alert, deadline)
            if reason is None:
                self._failed = False
                return
            if pause is None or _is_final(reason) or time.monotonic() + pause >= deadline:
                self._failed = not _is_final(reason)  # a final answer refuses only this alert
                raise UndeliveredError(reason)
            time.sleep(pause)

    def _attempt(self, alert: Alert, deadline: float) -> str | None:
        """Return None for a success, otherwise the reason of the failure; raise a NoAnswerError at the deadline.

        Timeouts of requests and smtplib count from the last byte, so an endpoint that sends single bytes never triggers
        them. Therefore each attempt has its own thread, which can be abandoned.
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
        title, body = _fitting(self.plugin, alert.title, alert.message or alert.title)  # many reject an empty body
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
    """Logger of one plugin: keeps the reason for a rejected alert, in the words of Apprise and of the service.

    Plugins log the answer of a service at DEBUG. At this level they also log URLs and payloads, which are secrets. So
    this logger passes no record to any other logger.
    """

    def __init__(self) -> None:
        super().__init__("apprise", logging.DEBUG)
        self.begin()

    def begin(self) -> None:
        """Forget the reasons for the previous alert."""
        self.said: list[str] = []
        self.answer = ""

    def handle(self, record: logging.LogRecord) -> None:
        """Keep the text of a record that gives the reason."""
        if record.levelno >= logging.WARNING:
            self.said.append(record.getMessage())
        elif str(record.msg).startswith(_ANSWER):
            found = record.args[0] if isinstance(record.args, tuple) and record.args else ""
            self.answer = found.decode(errors="replace") if isinstance(found, bytes) else str(found)


def _fitting(plugin: Any, title: str, body: str) -> tuple[str, str]:
    """Return title and body, cut to the limits of the service, unless the URL has `overflow=split` or `truncate`."""
    from apprise import OverflowMode

    if plugin.overflow_mode != OverflowMode.UPSTREAM:
        return title, body
    most = plugin.body_maxlen
    if plugin.title_maxlen > 0:
        title = cut(title, plugin.title_maxlen)
    if title and (plugin.title_maxlen <= 0 or plugin.overflow_amalgamate_title):
        # The service accepts one text that begins with the title; 8 is for marks and line ends between title and body.
        title = cut(title, max(most // 2, 1))
        most -= len(title) + max(8, plugin.overflow_buffer)
    if 0 < plugin.body_max_line_count <= body.count("\n"):
        body = one_line(body)
    return title, cut(body, max(most, 1))


def open_channels(urls: Sequence[str], app_name: str) -> list[RemoteChannel]:
    """Return a channel for each URL.

    A URL may begin with Apprise's tags, which are levels here: ``error=slack://...``, ``warning,error=mailto://...``.

    Raises:
        ConfigurationError: a URL cannot be used; the message shows none of its secrets.
        MissingExtraError: there are URLs and Apprise is not installed.

    """
    if not urls:
        return []
    try:
        import apprise
    except ImportError as error:
        raise MissingExtraError(
            "alerts urls need the extra `alerts`, which is not installed: pip install 'autogen-team[alerts]'"
        ) from error
    # Importing Apprise's plugins causes deprecation warnings of the standard library.
    with warnings.catch_warnings(), hushed():
        warnings.simplefilter("ignore")
        asset = apprise.AppriseAsset(app_id=app_name, app_desc=app_name)
        channels = [_open(apprise, asset, number, url.strip()) for number, url in enumerate(urls, start=1)]
    names = [channel.name for channel in channels]
    for number, channel in enumerate(channels, start=1):
        if names.count(channel.name) > 1:  # the position in the setting distinguishes channels of one kind
            channel.name += f" (url {number})"
    return channels


def _open(apprise: Any, asset: Any, number: int, text: str) -> RemoteChannel:
    tagged = _TAGGED.match(text)
    tags, url = (tagged["tags"], tagged["url"]) if tagged else ("", text)
    levels = frozenset(re.findall(r"[\w-]+", tags))
    if not levels <= frozenset(LEVELS):
        unknown = ", ".join(sorted(levels - frozenset(LEVELS)))
        raise ConfigurationError(
            f"alerts url {number} has the tag {unknown!r}, but tags must be levels: {', '.join(LEVELS)}"
        )
    plugin = apprise.Apprise.instantiate(url, asset=asset)
    if plugin is None:
        scheme = url.partition("://")[0] if "://" in url else ""
        shown = f"{scheme}://…" if re.fullmatch(r"[\w+.-]{1,20}", scheme) else "…"
        raise ConfigurationError(
            f"alerts url {number} ({shown}) is unknown to Apprise or incomplete: see "
            "https://appriseit.com/services/ for the form of each service (a plain web hook is jsons://host/path)"
        )
    plugin.redirects = False  # a redirected POST becomes a GET elsewhere, which would count as a success
    plugin.request_rate_per_sec = 0  # otherwise it sleeps up to 5.5 s between two alerts, which delays the second
    return RemoteChannel(plugin, _name(plugin, url), levels)


def _name(plugin: Any, url: str) -> str:
    """Return the scheme, and the host if there is one: in most URLs of Apprise everything else is secret."""
    scheme = url.partition("://")[0].lower()
    tokens = getattr(plugin, "template_tokens", {})
    host = plugin.host if "host" in tokens and "topic" not in tokens else None  # ntfy's host may be its secret topic
    port = f":{plugin.port}" if host and plugin.port else ""
    return f"{scheme}://{host or ''}{port}/…" if host else f"{scheme}://…"


def _is_final(reason: str) -> bool:
    status = _STATUS.search(reason)
    return status is not None and 300 <= int(status[1]) < 500 and int(status[1]) not in _PASSING


def _reason(said: list[str], answer: str) -> str:
    """Return the reason for a rejected alert, in the words of Apprise and of the service, without secrets."""
    parts = [said[-1] if said else "the service refused it", " ".join(_MARKUP.sub(" ", answer).split())]
    return ": ".join(one_line(_redact.mask(part)).rstrip(" .:")[:_REASON_LIMIT] for part in parts if part)
