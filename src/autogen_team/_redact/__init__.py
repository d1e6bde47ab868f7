"""Mask secrets in text and values: pure functions, shared by logs, alerts, tags, errors and the command line.

Masked are:

- known secret values (`values`),
- text in the format of a key or token (`shapes`),
- values assigned to secret names (`assignments`),
- passwords in URLs,
- matches of the user's own patterns.

A line without secrets takes a microsecond or two, because each pattern is tried only where its required letters occur.
The time is linear in the length of the text, whatever it contains.

The mask never removes a quote or a backslash, so a masked line of JSON is still JSON.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from autogen_team._redact import assignments, values
from autogen_team._redact.assignments import MASK
from autogen_team._redact.names import is_secret_name, is_secret_variable
from autogen_team._redact.shapes import PRIVATE_KEY, SHAPES, behind_boundary, may_have_shape, pattern_of
from autogen_team.errors import ConfigurationError

__all__ = [
    "MASK",
    "Redactor",
    "add_secrets",
    "check",
    "compiled",
    "configured",
    "is_secret_name",
    "is_secret_variable",
    "mask",
    "mask_url",
    "mask_value",
    "secret_values",
]

_AUTHORITY = re.compile(r"://(?=(?:(?!://)[^\s\"\\@])*@)")
_REST_OF_URL = re.compile(r"(?:(?!://)[^\s\"\\])*")
_USER = re.compile(r"[^\s/:@?#\"\\]*:")
_PORT = re.compile(r"\d{1,5}(?=[/?#])")
_HOST = re.compile(r"@(?=\[|[\w.-])")
_RESERVED = re.compile(r"[/?#]")
_HOST_ENDS = re.compile(r"@(?:[\w.-]+|\[[\w.:%-]+\])(?:[:/?#'\]);,]|$)")
_TOKEN_AS_USER = re.compile(r"[^\s/:@\"'\\]{20,}(?=@)")
_BEARER = re.compile(behind_boundary("bearer", r"\w") + r"\s+(?P<value>[\w.~+/=-]{8,})")
_BASIC = re.compile(behind_boundary("basic", r"\w") + r"\s+(?P<value>[a-z0-9+/]{8,}={0,2})")
_QUERY = re.compile(
    r"[?&](?:sig|signature|x-amz-signature|x-amz-credential|x-amz-security-token|x-goog-signature|x-goog-credential)="
)
_UP_TO_AMPERSAND = re.compile(r"[^\s&\"'\\]+")
_HAS_DIGIT = re.compile(r"\d")
_LONG = 24
_LOWER = {ord(upper): upper.lower() for upper in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
_DEEPEST = 20

Allowed = Callable[[str], bool]


class Redactor:
    """Masks text, including the secrets of an environment; create a new one when the environment changes.

    It also masks values and patterns that this process adds later, by `add_secrets` or the settings.

    >>> Redactor({"API_TOKEN": "correct-horse"})("sent correct-horse to Bearer abc123def456")
    'sent *** to Bearer ***'
    """

    __slots__ = ("_allowed", "_environment", "_extra", "_in_code", "_patterns", "_values")

    def __init__(self, environment: Mapping[str, str], *, in_code: bool = False) -> None:
        """Take the secrets from the environment; with `in_code`, do not mask names of variables in source code."""
        self._environment = tuple(environment.items())
        self._in_code = in_code
        self._renew()

    def _renew(self) -> None:
        self._extra = extra = values.extra()
        self._values = values.of_environment(self._environment, extra.values)
        known = dict(self._environment)
        patterns = (*extra.patterns, *values.lines(known.get(values.PATTERNS_VARIABLE, "")))
        allow = (*extra.allow, *values.lines(known.get(values.ALLOW_VARIABLE, "")))
        self._patterns = _usable(values.PATTERNS_VARIABLE, patterns)
        self._allowed = _allowed_by(allow) if allow else None

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        if self._extra is not values.extra():
            self._renew()
        allowed = self._allowed
        for value, whole in self._values:
            if value in text and not (allowed and allowed(value)):
                text = text.replace(value, MASK) if whole is None else whole.sub(MASK, text)
        for pattern in self._patterns:
            text = pattern.sub(lambda found: _masked_match(found, allowed), text)
        if may_have_shape(text):
            text = _without_shapes(text, allowed)
        if "@" in text and "://" in text:
            text = _without_passwords(text, allowed)
        lower = text.lower()
        if (
            ("=" in text or ":" in text or "," in text)  # the signs between a name and its value
            and (
                "key" in lower
                or "token" in lower
                or "pass" in lower
                or "secret" in lower
                or "auth" in lower
                or "cred" in lower
                or "pwd" in lower
                or "_pat" in lower
            )
        ) or "--" in lower:
            lower = _small(text, lower)
            spans = assignments.find(text, lower)
            if self._in_code:
                spans = [span for span in spans if not assignments.is_expression(text, *span)]
            if spans:
                text = _masked(text, spans, allowed)
                lower = text.lower()
        if "bearer" in lower or "basic" in lower or "sig" in lower or "credential=" in lower:
            text = _masked(text, sorted(_schemes(text, _small(text, lower))), allowed)
        if "PRIVATE KEY" in text:
            text = PRIVATE_KEY.sub(rf"\1{MASK}", text)
        return text


def mask(text: str) -> str:
    """Return the text without secrets: those of the current environment, and text that looks like a secret.

    >>> mask("login with password=hunter2 failed, max_tokens=512")
    'login with password=*** failed, max_tokens=512'
    """
    return Redactor(os.environ)(text)


def mask_url(url: str) -> str:
    """Return the URL with its password masked; text that is not a URL is returned unchanged.

    >>> mask_url("postgresql://bob:hunter2@db:5432/runs")
    'postgresql://bob:***@db:5432/runs'
    """
    return _without_passwords(url, None) if "://" in url and "@" in url else url


def mask_value(value: Any, redact: Callable[[str], str], name: str = "", depth: int = 0) -> Any:
    """Mask the secrets in nested dicts, lists and strings, including values under secret names.

    If there is no secret, the same object is returned. A value of another type is masked only if its name is secret.

    Args:
        value: the value.
        redact: masks a text.
        name: the key or name of the value.
        depth: the nesting depth of the value; very deep values are not searched.

    """
    is_secret = bool(name) and is_secret_name(name)
    if isinstance(value, str):
        if is_secret and value and not assignments.is_harmless(value):
            return MASK
        masked = redact(value)
        return value if masked == value else masked
    if depth > _DEEPEST:
        return value
    if isinstance(value, dict):
        found = {
            mask_value(key, redact) if isinstance(key, str) else key: mask_value(
                item, redact, key if isinstance(key, str) and not is_secret else name, depth + 1
            )
            for key, item in list(value.items())
        }
        is_same = len(found) == len(value) and all(key in found and found[key] is item for key, item in value.items())
        return value if is_same else found
    if isinstance(value, (list, tuple)):
        items = [mask_value(item, redact, name, depth + 1) for item in list(value)]
        return value if all(new is old for new, old in zip(items, value, strict=False)) else items
    if is_secret and isinstance(value, (int, float, bytes)) and not isinstance(value, bool):
        return MASK
    return value


def add_secrets(*secrets: str) -> None:
    """Mask these values, too, in this process and the children that it forks later."""
    values.add(secrets)


def configured(patterns: tuple[str, ...], allow: tuple[str, ...]) -> Callable[[], None]:
    """Add these patterns of the user until the returned function is called."""
    before = values.extra()
    values.configure((*before.patterns, *patterns), (*before.allow, *allow))
    return lambda: values.configure(before.patterns, before.allow)


def secret_values(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the secret values of an environment, longest first: of secret variables, and passwords in URLs."""
    return values.texts_of_environment(environment)


def check(variable: str, text: str) -> None:
    """Check the patterns in the text of a variable.

    Raises:
        ConfigurationError: a pattern is not a regular expression, or matches an empty text.

    """
    for pattern in values.lines(text):
        compiled(variable, pattern)


@lru_cache(maxsize=64)
def compiled(name: str, pattern: str) -> re.Pattern[str]:
    """Return a user's pattern, compiled.

    Raises:
        ConfigurationError: the pattern is not a regular expression, or matches an empty text.

    """
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise ConfigurationError(f"{name}: {pattern!r} is not a regular expression: {error}") from None
    if found.match("") is not None:
        text = f"{name}: {pattern!r} matches an empty text, so it would insert a mask between all characters"
        raise ConfigurationError(text)
    return found


def _usable(name: str, patterns: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    """Compile the valid patterns and skip the others: the settings reject them, and masking must never fail."""
    found = []
    for pattern in patterns:
        with suppress(ConfigurationError):
            found.append(compiled(name, pattern))
    return tuple(found)


@lru_cache(maxsize=4)
def _allowed_by(allow: tuple[str, ...]) -> Allowed:
    patterns = _usable(values.ALLOW_VARIABLE, allow)
    return lambda text: any(pattern.fullmatch(text) for pattern in patterns)


def _masked_match(found: re.Match[str], allowed: Allowed | None) -> str:
    """Return the text of a match of the user's pattern, with its first group masked; without a group, all of it."""
    group = 1 if found.re.groups and found[1] is not None else 0
    if allowed and allowed(found[group]):
        return found[0]
    begin, end = found.start(group) - found.start(), found.end(group) - found.start()
    return found[0][:begin] + MASK + found[0][end:]


def _masked(text: str, spans: list[assignments.Span], allowed: Allowed | None) -> str:
    if allowed:
        spans = [(begin, end) for begin, end in spans if not allowed(text[begin:end])]
    return assignments.masked(text, spans) if spans else text


def _small(text: str, lower: str) -> str:
    """Return the text in lower case with the same length; `str.lower` turns some letters into two."""
    return lower if len(lower) == len(text) else text.translate(_LOWER)


def _without_shapes(text: str, allowed: Allowed | None) -> str:
    by: str | Callable[[re.Match[str]], str] = (
        MASK if allowed is None else lambda found: found[0] if allowed(found[0]) else MASK
    )
    for letters in SHAPES:
        if letters in text:
            text = pattern_of(letters).sub(by, text)
    return text


def _without_passwords(text: str, allowed: Allowed | None) -> str:
    spans = [span for found in _AUTHORITY.finditer(text) if (span := _password(text, found.end(), found.start()))]
    return _masked(text, spans, allowed)


def _password(text: str, begin: int, scheme_ends: int) -> assignments.Span | None:
    """Return the position of the password in the URL whose authority starts at `begin`.

    The password may contain `:`, `/`, `?`, `#` and `@`.
    """
    rest = _REST_OF_URL.match(text, begin)
    end = rest.end() if rest else begin
    user = _USER.match(text, begin, end)
    is_web = text.endswith(("http", "https", "ws", "wss"), 0, scheme_ends)
    if user is None:
        token = _TOKEN_AS_USER.match(text, begin, end) if is_web else None
        return (begin, token.end()) if token and token[0].strip("*") else None
    begin = user.end()
    reserved = _RESERVED.search(text, begin, end)
    hosts = [found.start() for found in _HOST.finditer(text, begin, end)]
    if not hosts:
        return None
    inside = [at for at in hosts if reserved is None or at < reserved.start()]
    if inside:
        at = inside[-1]
    elif is_web and _PORT.match(text, begin, end):
        return None
    else:
        at = next((at for at in hosts if _HOST_ENDS.match(text, at, end)), hosts[-1])
    return (begin, at) if at > begin and text[begin:at].strip("*") else None


def _schemes(text: str, lower: str) -> list[assignments.Span]:
    """Return the positions of credentials after a scheme such as `Bearer`, and of signatures in URL queries."""
    spans = [
        found.span("value")
        for found in _BEARER.finditer(lower)
        if _HAS_DIGIT.search(found["value"]) or len(found["value"]) >= _LONG
    ]
    spans += [
        found.span("value")
        for found in _BASIC.finditer(lower)
        if _is_user_and_password(text[slice(*found.span("value"))])
    ]
    for found in _QUERY.finditer(lower) if "=" in lower else ():
        value = _UP_TO_AMPERSAND.match(text, found.end())
        if value and value[0].strip("*"):
            spans.append(value.span())
    return spans


def _is_user_and_password(text: str) -> bool:
    """Return whether the text is `user:password` in base64; so "basic configuration" is not masked."""
    try:
        return b":" in base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
