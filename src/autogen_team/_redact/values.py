"""Secret values that this process masks.

They come from secret variables, from our own settings and from the job. A value is masked in each form in which it may
be written: as it is, in JSON, in a Python literal, in a URL. A value that is a word is masked as a whole word only: the
password `postgres` is not masked in `postgresql`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote, urlsplit

from autogen_team._redact.names import is_secret_name, is_secret_variable, is_word
from autogen_team._redact.shapes import behind_boundary

PATTERNS_VARIABLE = "AUTOGEN_TEAM_REDACT_PATTERNS"
ALLOW_VARIABLE = "AUTOGEN_TEAM_REDACT_ALLOW"
SHORTEST = 8
"""Minimum length in characters; masking shorter values would spoil ordinary text."""

_ORDINARY = frozenset(
    {
        "anonymous",
        "changeit",
        "changeme",
        "disabled",
        "example",
        "localhost",
        "minioadmin",
        "mypassword",
        "optional",
        "password",
        "postgres",
        "rabbitmq",
        "required",
        "secret123",
        "undefined",
        "username",
    }
)
"""Ordinary values that some environments hold under secret names; masking them would spoil ordinary text."""
_OTLP_HEADERS = re.compile(r"OTEL_EXPORTER_OTLP_(?:[A-Z]+_)?HEADERS", re.IGNORECASE)
_PLACES = ("_FILE", "_PATH", "_DIR")
_TAGS = re.compile(r"^[\w ,-]+=(?=\w+://)")
_PART = re.compile(r"([A-Za-z][\w ]*)=([^;]*)")
_TOKEN_IN_URL = re.compile(r"(?=[^/?&=]*\d)[\w.~+%-]{12,}")


@dataclass(frozen=True, slots=True)
class Extra:
    """Values, patterns and exceptions beyond those of the environment; replaced as a whole when one changes."""

    values: frozenset[str] = frozenset()
    patterns: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()


_extra = Extra()
_listeners: list[Callable[[frozenset[str]], None]] = []


def listen(listener: Callable[[frozenset[str]], None]) -> Callable[[], None]:
    """Call the listener with the values added so far and with later ones; return a function that removes it."""
    _listeners.append(listener)
    if _extra.values:
        listener(_extra.values)
    return lambda: _listeners.remove(listener)


def extra() -> Extra:
    """Return the additions of this process."""
    return _extra


def add(values: Iterable[str]) -> None:
    """Mask these values, too, in this process and the children that it forks later."""
    global _extra
    new = frozenset(values) - _extra.values
    if new:
        _extra = Extra(_extra.values | new, _extra.patterns, _extra.allow)
        for listener in _listeners:
            listener(new)


def learn(texts: Mapping[str, str | None]) -> None:
    """Mask the secrets in the variables of a `.env` file, and use the patterns that the file sets."""
    found = [secret for name, text in texts.items() for secret in of_setting(name, text or "")]
    add(secret for secret in found if len(secret) >= SHORTEST and secret.lower() not in _ORDINARY)
    patterns, allow = (lines(texts.get(name) or "") for name in (PATTERNS_VARIABLE, ALLOW_VARIABLE))
    if patterns or allow:
        configure(patterns or _extra.patterns, allow or _extra.allow)


def lines(text: str) -> tuple[str, ...]:
    """Return the patterns in the text of a variable, one on each line."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def configure(patterns: tuple[str, ...], allow: tuple[str, ...]) -> None:
    """Set the user's own patterns, and the patterns for text to leave unmasked."""
    global _extra
    _extra = Extra(_extra.values, patterns, allow)


def of_setting(name: str, text: str) -> Iterator[str]:
    """Yield the secrets in the variable `name`, whose text comes from the environment or from `.env`."""
    stripped = _unquoted(text)
    if is_secret_variable(name) and not _is_place(name, stripped):
        yield stripped
        yield from (value for key, value in _PART.findall(stripped) if is_secret_name(key))
    if _OTLP_HEADERS.fullmatch(name):
        yield from _of_headers(stripped)
    for word in stripped.split() if "://" in stripped else ():
        yield from _of_url(word, has_tokens=is_secret_variable(name))


def _of_headers(text: str) -> Iterator[str]:
    """Yield the values of the headers for an OpenTelemetry collector, as written, decoded, and without their scheme."""
    for part in text.split(","):
        value = part.partition("=")[2].strip()
        decoded = unquote(value)
        yield from (value, decoded, decoded.rpartition(" ")[2])


@lru_cache(maxsize=4)
def of_environment(
    environment: tuple[tuple[str, str], ...], more: frozenset[str]
) -> tuple[tuple[str, re.Pattern[str] | None], ...]:
    """Return the texts to search for, longest first, each with a pattern for the whole word if it is a word."""
    found = {value for name, text in environment for value in of_setting(name, text)}
    wanted = {value for value in found if len(value) >= SHORTEST and value.lower() not in _ORDINARY} | more
    forms = sorted({form for value in wanted for form in _forms(value)}, key=len, reverse=True)
    return tuple((form, _whole(form) if is_word(form) else None) for form in forms)


def texts_of_environment(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the secret values themselves, in each form, longest first."""
    return tuple(text for text, _ in of_environment(tuple(environment.items()), _extra.values))


def _whole(word: str) -> re.Pattern[str]:
    return re.compile(behind_boundary(word, r"\w") + r"(?!\w)")


def _unquoted(text: str) -> str:
    """Return the text without the blanks, line ends and quotes that surround it in a `.env` file."""
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _is_place(name: str, value: str) -> bool:
    """Return whether the value is the path of a secret, not the secret; a base64 key may begin with a slash, too."""
    try:
        return Path(value).is_absolute() and (name.upper().endswith(_PLACES) or Path(value).exists())
    except (OSError, ValueError):  # longer than any path, or with a NUL
        return False


def _of_url(word: str, *, has_tokens: bool) -> Iterator[str]:
    """Yield the password of a URL, as written and decoded; the URL of an alert may have tags before it.

    With `has_tokens`, the URL itself is a secret, and so is text in its path or query that looks like a token.
    """
    url = _TAGS.sub("", word)
    try:
        password = urlsplit(url).password
    except ValueError:
        return
    if password:
        yield password
        yield unquote(password)
    if has_tokens:
        yield url
        yield from _TOKEN_IN_URL.findall(url.partition("://")[2].rpartition("@")[2])


def _forms(value: str) -> set[str]:
    literal = repr(value)[1:-1]
    return {
        value,
        literal,
        literal.replace("\\'", "'"),
        value.replace("\\", "\\\\").replace('"', '\\"'),
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        # A variable may hold bytes that are not valid UTF-8, which Python represents as surrogates.
        *(form for safe in ("", "/") for form in _both_cases(quote(value, safe=safe, errors="surrogatepass"))),
        *_both_cases(quote_plus(value, errors="surrogatepass")),
    }


def _both_cases(text: str) -> tuple[str, str]:
    return text, re.sub(r"%[0-9A-F]{2}", lambda found: found[0].lower(), text)
