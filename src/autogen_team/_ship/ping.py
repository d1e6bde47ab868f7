"""A dead man's switch: a service that is notified when a job starts and ends, and alerts you if it is not.

The conventions are those of healthchecks.io, which other services share. A request to the URL itself means success;
`/start` and `/fail` after its path mean the start and the failure. The service shows the body of a request to users.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from autogen_team._process import Undo
from autogen_team._process.deadline import within

Event = Literal["start", "success", "fail"]

_VARIABLE = "AUTOGEN_TEAM_PING_OF_JOB"
"""Variable with the URL for a process that recovers this one; workers of the job do not inherit it."""
_TIMEOUT = 10.0
"""Seconds for one request."""
_PAUSES = (0.5, 2.0)
"""Seconds before the second and the third attempt."""
_LONGEST_BODY = 10_000
"""Maximum bytes of a body; healthchecks.io keeps 100 kB, other services less."""
_TEMPORARY = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
"""Status codes after which another attempt may help."""

_url_of_job: list[str] = []


class PingError(Exception):
    """The service could not be notified; the message is the reason, without the URL."""


def address(url: str, event: Event) -> str:
    """Return the URL for an event.

    >>> address("https://hc-ping.com/abc?rid=1", "start")
    'https://hc-ping.com/abc/start?rid=1'
    >>> address("https://hc-ping.com/abc/", "success")
    'https://hc-ping.com/abc/'
    """
    if event == "success":
        return url
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{event}"))


def send(url: str, event: Event, body: str = "", *, is_wanted: Callable[[], bool] = lambda: True) -> None:
    """Notify the service, with up to three attempts of at most 10 s each; retry only while `is_wanted`.

    Raises:
        PingError: the service could not be notified.

    """
    from urllib.error import HTTPError, URLError  # imported here, because few jobs need it

    reason = ""
    for pause in (0.0, *_PAUSES):
        time.sleep(pause)
        if pause and not is_wanted():
            break
        try:
            within(_TIMEOUT, partial(_request, address(url, event), body), name="autogen_team-ping")
        except HTTPError as error:
            error.close()
            reason = f"it answers {error.code} {error.reason}"
            if error.code < HTTPStatus.INTERNAL_SERVER_ERROR and error.code not in _TEMPORARY:
                break
        except URLError as error:
            reason = f"it cannot be reached: {error.reason}"
        except Exception as error:
            reason = f"it cannot be reached: {error}"
        else:
            return
    raise PingError(reason)


def _request(url: str, body: str) -> None:
    from urllib.request import Request, urlopen

    headers = {"User-Agent": "autogen-team", "Content-Type": "text/plain; charset=utf-8"}
    request = Request(url, body.encode()[:_LONGEST_BODY], headers)  # noqa: S310 - the setting accepts only http(s)
    with urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310 - the same  # nosec B310
        answer.read()


def note_job(url: str) -> Undo:
    """Make the process that recovers this one report its death to `url`, until the returned function is called."""
    _url_of_job.append(url)
    return lambda: _url_of_job.remove(url)


def for_recovery() -> dict[str, str]:
    """Return the variable for the process that recovers this one."""
    return {_VARIABLE: _url_of_job[-1]} if _url_of_job else {}


def report_death(reason: str) -> None:
    """Report the death of the job that this process recovers."""
    if url := os.environ.get(_VARIABLE):
        with suppress(PingError):
            send(url, "fail", reason)
