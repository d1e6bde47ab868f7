"""Secrets out of text: pure functions, shared by logs, alerts, tags, errors and the command line.

Two things are masked: the values that the environment holds under names that say secret, wherever they stand, and what
looks like a secret by its shape or by the name before it. A line without any costs a microsecond or two, because each
pattern is tried only where a substring that it needs is there.

The mask never takes a quote or a backslash away, so a masked line of JSON is still JSON.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

MASK = "***"

_SHORTEST_VALUE = 8
_LONGEST_WORD = 20
_ORDINARY = frozenset(
    {"password", "changeme", "disabled", "required", "optional", "anonymous", "undefined", "username"}
)
"""Values that some environments hold under such names, and that masking would take out of every sentence."""

_NAME = re.compile(
    r"pass(?:word|wd|phrase)|pwd$|secret|credential|(?:api|access|private|signing|encryption)[_-]?key(?!_?id)"
    r"|(?:^|[_-]|auth|bearer|refresh|session)token$|(?:^|[_-])(?:auth|dsn|webhook)$|webhook_?url",
    re.IGNORECASE,
)
_QUOTE = r"(?:\\?[\"'])?"
_ASSIGNMENT = re.compile(
    rf"s?(?P<quoted>{_QUOTE})(?P<sign>\s*[:=]\s*|\s+){_QUOTE}(?:(?:bearer|basic|token|digest)\s+)?"
    r"(?:(?<=\")(?P<double>[^\"\\\n]+)(?=\\?\")|(?<=')(?P<single>[^'\\\n]+)(?=\\?')|(?P<value>[^\s\"'\\,;&(){}\[\]<>|]+))",
    re.IGNORECASE,
)
"""What follows the name of a secret: `=hunter2`, `": "hunter2`, ` hunter2`."""
_SIGN = re.compile(rf"{_QUOTE}\s*[:=]")
_SECRET_WORDS = ("password", "passwd", "passphrase", "pwd", "secret", "credential", "authorization", "x-auth")
_SECRET_KEY = re.compile(r"(?:api|access|private|signing|secret)[_-]?\Z")
_TEXT_TOKEN = re.compile(r"(?:bos|eos|pad|unk|sep|cls|mask|next|special|image|max|min|num|n)_\Z")
_NOT_VALUES = frozenset({"none", "null", "true", "false", "str", "bytes", "int", "secretstr", "optional", "any", MASK})

_PLACES = ("_FILE", "_PATH", "_DIR")
_TAGS = re.compile(r"^[\w ,-]+=(?=\w+://)")
_USERINFO = re.compile(r"(://[^\s/:@\"\\]*:)(?!\d{1,5}[/?#])[^\s\"\\?#]+@(?=[\w.\[-])")
_TOKEN_AS_USER = re.compile(r"(https?://)[^\s/:@\"'\\]{20,}@")
_BEARER = re.compile(r"(\bbearer\s+)(?=\S*\d|\S{24})[\w.~+/=-]{8,}", re.IGNORECASE)
_BASIC = re.compile(r"(\bbasic\s+)([A-Za-z0-9+/]{8,}={0,2})", re.IGNORECASE)
_SIGNED = re.compile(
    r"([?&](?:sig|signature|x-amz-signature|x-amz-credential|x-goog-signature)=)[^\s&\"'\\]+", re.IGNORECASE
)
_PRIVATE_KEY = re.compile(
    r"(-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----)"
    r"(?!\*\*\*)"  # it has been masked before, and what follows is no part of it
    r"(?:(?!-----)(?:[A-Za-z0-9+/=*\s:,.-]|\\+[nrt/]))*"
    r"(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?"
)
_SHAPES = {
    hint: re.compile(pattern)
    for hint, pattern in (
        ("AKIA", r"\bAKIA[A-Z0-9]{16}\b"),
        ("ASIA", r"\bASIA[A-Z0-9]{16}\b"),
        ("AIza", r"\bAIza[\w-]{35}"),
        ("eyJ", r"(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}(?:\.[\w-]*)?"),
        ("dapi", r"\bdapi[0-9a-f]{32}\b"),
        ("sk-", r"(?<![\w-])sk-(?=[\w-]*\d)[\w-]{12,}"),
        ("xox", r"(?<![\w-])xox[abeoprs]-[\w-]{10,}"),
        ("glpat-", r"(?<![\w-])glpat-[\w-]{16,}"),
        ("pypi-", r"(?<![\w-])pypi-[\w-]{32,}"),
        ("ghp_", r"\bghp_[A-Za-z0-9]{20,}"),
        ("gho_", r"\bgho_[A-Za-z0-9]{20,}"),
        ("ghs_", r"\bghs_[A-Za-z0-9]{20,}"),
        ("ghu_", r"\bghu_[A-Za-z0-9]{20,}"),
        ("ghr_", r"\bghr_[A-Za-z0-9]{20,}"),
        ("github_pat_", r"\bgithub_pat_\w{20,}"),
        ("hf_", r"\bhf_[A-Za-z0-9]{20,}"),
        ("npm_", r"\bnpm_[A-Za-z0-9]{30,}"),
        ("_live_", r"\b[sr]k_live_[A-Za-z0-9]{10,}"),
        ("hooks.slack.com", r"(?<=hooks\.slack\.com/)(?:services|workflows)/[\w/]+"),
        ("/services/T", r"(?<=/services/)T[A-Z0-9]{2,}/B[A-Z0-9]{2,}/\w+"),
        ("/api/webhooks/", r"(?<=/api/webhooks/)\d+/[\w-]+"),
    )
}
_WORDS = (*_SECRET_WORDS, "key", "token")


def is_secret_name(name: str) -> bool:
    """Tell whether a variable or field of this name holds a secret: `db_password` does, `tokenizer` does not.

    >>> [is_secret_name(name) for name in ("GITHUB_TOKEN", "api_key", "TOKENIZERS_PARALLELISM", "max_tokens")]
    [True, True, False, False]
    """
    return _NAME.search(name) is not None


def mask_url(url: str) -> str:
    """Return the URL with its password masked; what is not a URL is returned as it is.

    >>> mask_url("postgresql://bob:hunter2@db:5432/runs")
    'postgresql://bob:***@db:5432/runs'
    """
    if "://" not in url or "@" not in url:
        return url
    return _TOKEN_AS_USER.sub(rf"\1{MASK}@", _USERINFO.sub(rf"\1{MASK}@", url))


def mask(text: str) -> str:
    """Return the text without secrets, those of the environment as it is now and those that look like some.

    >>> mask("login with password=hunter2 failed, max_tokens=512")
    'login with password=*** failed, max_tokens=512'
    """
    return Redactor(os.environ)(text)


def secret_values(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values that must not be seen, the longest first: of secret variables, and passwords in URLs."""
    # Deriving them takes a hundred times longer than seeing that nothing has changed, and `mask` is called often.
    return _secret_values(tuple(environment.items()))


@lru_cache(maxsize=4)
def _secret_values(environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    found: set[str] = set()
    for name, value in environment:
        if is_secret_name(name) and not _is_place(name, value):
            found.add(value)
        for word in value.split() if "://" in value else ():
            found.update(_passwords(word))
    long_enough = {value for value in found if len(value) >= _SHORTEST_VALUE and value.lower() not in _ORDINARY}
    return tuple(sorted(_as_written(long_enough), key=len, reverse=True))


class Redactor:
    """Masks text, and knows the secrets that an environment holds; make a new one when the environment changes.

    >>> Redactor({"API_TOKEN": "correct-horse"})("sent correct-horse to Bearer abc123def456")
    'sent *** to Bearer ***'
    """

    __slots__ = ("_values",)

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._values = secret_values(environment)

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        for value in self._values:
            if value in text:
                text = text.replace(value, MASK)
        # Written out, because this is what every line of log pays: a loop over the hints takes twice as long.
        if (
            "sk-" in text
            or "gh" in text
            or "eyJ" in text
            or "AKIA" in text
            or "ASIA" in text
            or "AIza" in text
            or "xox" in text
            or "hf_" in text
            or "github_pat_" in text
            or "dapi" in text
            or "npm_" in text
            or "_live_" in text
            or "pypi-" in text
            or "glpat-" in text
            or "://" in text
            or "hooks" in text  # hooks.slack.com, /api/webhooks/
        ):
            text = _without_shapes(text)
        lower = text.lower()
        if "sig" in lower:
            text = _SIGNED.sub(rf"\1{MASK}", text)
        if (
            "key" in lower
            or "token" in lower
            or "pass" in lower
            or "secret" in lower
            or "auth" in lower
            or "cred" in lower
            or "pwd" in lower
        ):
            for word in _WORDS:
                if word in lower:
                    text = _without_assignments(text, word)
        if "bearer " in lower:
            text = _BEARER.sub(rf"\1{MASK}", text)
        if "basic " in lower:
            text = _BASIC.sub(_masked_basic, text)
        if "PRIVATE KEY-----" in text:
            text = _PRIVATE_KEY.sub(rf"\1{MASK}", text)
        return text


def _without_shapes(text: str) -> str:
    for hint in _SHAPES:
        if hint in text:
            text = _SHAPES[hint].sub(MASK, text)
    return mask_url(text)


def _without_assignments(text: str, word: str) -> str:
    """Mask what is assigned to names that end in `word`.

    The word is looked up as text, and a pattern tried only there: seven times cheaper than one pattern for all on the
    lines of a language model, which say "token" all the time (4 against 29 microseconds).
    """
    lower = text.lower() if text.isascii() else _lower_ascii(text)
    parts, copied, start = [], 0, 0
    while (at := lower.find(word, start)) >= 0:
        start = at + len(word)
        found = _ASSIGNMENT.match(text, start)
        if found and _is_secret(word, lower, at, found):
            begin, value = _value(found)
            parts += [text[copied:begin], MASK]
            copied = start = begin + len(value)
    return "".join([*parts, text[copied:]]) if parts else text


def _is_secret(word: str, lower: str, at: int, found: re.Match[str]) -> bool:
    _, value = _value(found)
    before = lower[max(0, at - 12) : at]
    if word == "key" and not _SECRET_KEY.search(before):  # primary_key
        return False
    if word == "token" and (_TEXT_TOKEN.search(before) or value.isdigit() or len(value) < _SHORTEST_VALUE):
        return False  # pad_token, a count, a word
    if not value or value.lower() in _NOT_VALUES or value.startswith(("self.", "os.", "$")):
        return False
    if "\n" in found["sign"] and _is_next_name(found):  # behind one that has no value
        return False
    sign = found["sign"].strip()
    if not sign:  # `--password hunter2` on a command line, but not "the password was wrong"
        return lower[:at].rpartition(" ")[2].startswith("--")
    # Prose puts a colon too: "the secret: never overfit".
    return sign == "=" or bool(found["quoted"]) or not _is_word(value) or word == "authorization"


def _is_next_name(found: re.Match[str]) -> bool:
    """Tell whether what was found to be a value is the name of another secret, with a sign of its own."""
    begin, _ = _value(found)
    name = found.string[begin : found.end()]
    has_sign = name.endswith((":", "=")) or _SIGN.match(found.string, found.end())
    return bool(has_sign) and is_secret_name(name.rstrip(":="))


def _is_word(value: str) -> bool:
    """Tell whether it is written as a word of a sentence: in small letters, in capitals, or with the first capital."""
    return value.isalpha() and len(value) <= _LONGEST_WORD and (value.isupper() or value[1:] == value[1:].lower())


def _value(found: re.Match[str]) -> tuple[int, str]:
    """Return where the value begins, and the value: all of it if it is quoted, else its first word."""
    for group in ("double", "single"):
        if found[group] is not None:
            return found.start(group), found[group]
    return found.start("value"), found["value"].rstrip(".:!?")


def _lower_ascii(text: str) -> str:
    """Lower the text without changing its length, which `str.lower` may."""
    return "".join(char.lower() if char.isascii() else char for char in text)


def _masked_basic(match: re.Match[str]) -> str:
    """Mask what is `user:password` in base64, so that "basic configuration" stays."""
    try:
        decoded = base64.b64decode(match[2], validate=True)
    except (binascii.Error, ValueError):
        return match[0]
    return match[1] + MASK if b":" in decoded else match[0]


def _is_place(name: str, value: str) -> bool:
    """Tell whether the value is where a secret is, not one: a key in base64 may begin with a slash, too."""
    try:
        return Path(value).is_absolute() and (name.upper().endswith(_PLACES) or Path(value).exists())
    except (OSError, ValueError):  # longer than any path, or with a NUL
        return False


def _passwords(word: str) -> Iterable[str]:
    """Return the password of a URL as it stands there, and as it is meant; tags may stand before a URL of alerts."""
    try:
        password = urlsplit(_TAGS.sub("", word)).password
    except ValueError:
        return []
    return {password, unquote(password)} if password else []


def _as_written(values: Iterable[str]) -> set[str]:
    """Return the values with the other ways in which they stand in JSON and in URLs."""
    written = set(values)
    written.update([json.dumps(value)[1:-1] for value in written], [quote(value, safe="") for value in written])
    return written
