"""Find values assigned to secret names: `password=hunter2`, `"api_key": "..."`, `Authorization: Bearer ...`.

Names are searched in the lower-case text, by patterns that begin with a word and require a sign and a value after it.
So a text that only mentions passwords and tokens is rejected within the regular expression. No text is read twice, so
the time is linear in its length. A quoted value is read to its closing quote, whatever it contains.
"""

from __future__ import annotations

import re
from functools import lru_cache

from autogen_team._redact.names import TEXT_TOKEN, is_secret_name, is_word

MASK = "***"
Span = tuple[int, int]

_QUOTE = r"\\*[\"']"
_PREFIX = r"[bruf]{0,2}"
_BARE = r"(?:[^\s\x00-\x1f\"'\\,;&(){}\[\]<>|]|\\(?![nrtbfaev\"'\\/u0x]))++"
_SIGN = (
    r"(?P<sign>\s*+:\s*+(?:str|bytes|optional\[str\]|str \| none|secretstr)\s*+=\s*+|\s*+(?::=|=>|==?|:)\s*+"
    rf"|,\s*+(?={_PREFIX}{_QUOTE}))"
)
_TAIL = (
    rf"(?P<close>{_QUOTE})?\]?{_SIGN}"
    rf"(?:(?P<open>{_PREFIX}\\*+(?:\"\"\"|'''|[\"']))|(?P<list>[\[(]\s*+(?={_PREFIX}{_QUOTE}))|(?P<bare>{_BARE}))"
)
_KINDS_OF_KEY = (
    "api",
    "access",
    "account",
    "private",
    "signing",
    "secret",
    "encryption",
    "shared",
    "master",
    "fernet",
    "openai",
    "storage",
    "license",
    "hmac",
    "deploy",
    "webhook",
    "subscription",
    "session",
    "consumer",
    "functions",
    "jwt",
    "ssh",
    "client",
    "app",
)
_SECRET_KEY = "|".join(rf"(?<={kind}{sign}key)" for kind in _KINDS_OF_KEY for sign in ("", "[_-]"))
_NAMES = {
    word: re.compile(name + _TAIL)
    for word, name in (
        ("pass", r"pass(?:(?:word|wd|phrase|code)s?|(?P<short>(?<=[_-]pass)|(?<=[\"']pass)))"),
        ("pwd", r"pwd"),
        ("secret", r"secrets?"),
        ("credential", r"credentials?"),
        ("authorization", r"authorization"),
        ("x-auth", r"x-auth(?:-token|-key)?"),
        ("_pat", r"_pat"),
        ("key", rf"key(?=s?\\*[\"']?\]?\s*+[:=,])(?:{_SECRET_KEY})s?"),
        ("token", r"token(?=s?\\*[\"']?\]?\s*+[:=,])(?!s?\\*[\"']?\]?\s*+[:=]\s*+\\*[\"']?[\d_.,e+-]++%?(?![\w<|]))s?"),
    )
}
_VARIABLE = re.compile(rf"_KEYS?(?<=[A-Z0-9]_KEY)=(?P<open>\\*[\"'])?(?P<bare>{_BARE})")
_FLAG = re.compile(
    r"--(?<![\w-]--)[a-z0-9-]{0,40}?(?:pass(?:word|wd|phrase)?|pwd|secret|token|(?:api|access|secret|private)-?key"
    rf"|credentials?)[ \t]+(?!-)(?:(?P<open>\\*+[\"'])|(?P<bare>{_BARE}))"
)
_NAMED = re.compile(
    rf"\b(?:name|key|header){_QUOTE}\s*+:\s*+{_QUOTE}(?P<name>[\w.-]{{1,60}}){_QUOTE}\s*+,\s*+{_QUOTE}value{_QUOTE}\s*+:\s*+"
    rf"(?P<open>{_PREFIX}\\*+(?:\"\"\"|'''|[\"']))"
)
_IS_KEY = re.compile(rf"{_QUOTE}\s*+:")
_UNESCAPED = {
    '"': re.compile(r'[^"\\\n]*+(?:\\.[^"\\\n]*+)*+(?=")'),
    "'": re.compile(r"[^'\\\n]*+(?:\\.[^'\\\n]*+)*+(?=')"),
}
_NEXT = re.compile(rf"\s*,\s*(?P<open>{_PREFIX}\\*+(?:\"\"\"|'''|[\"']))", re.IGNORECASE)
_FIRST = re.compile(rf"(?P<open>{_PREFIX}\\*+(?:\"\"\"|'''|[\"']))", re.IGNORECASE)
_CREDENTIAL = re.compile(
    r"(?P<scheme>[A-Za-z][\w-]*)[ \t]+(?P<value>[^\s\"'\\,;]+(?:(?:,[ \t]*|[ \t]+)[A-Za-z][\w-]*=[^\s\"'\\,]+)*)"
)
_SCHEMES = frozenset(
    {
        "api-key",
        "apikey",
        "aws4-hmac-sha256",
        "basic",
        "bearer",
        "bot",
        "digest",
        "dpop",
        "genie-key",
        "hawk",
        "hmac",
        "key",
        "mac",
        "negotiate",
        "ntlm",
        "oauth",
        "sharedkey",
        "sharedkeylite",
        "ssws",
        "token",
        "vapid",
        "zoho-oauthtoken",
    }
)
_NAME_BEFORE = re.compile(r"[\w.-]*\Z")
_STRONG_TOKEN = re.compile(
    r"(?:access|auth|refresh|bearer|session|api|secret|github|gitlab|hf|hub|slack|bot|personal|oauth|csrf|jwt|security"
    r"|deploy|registry|npm|pypi|write|read)[_-]?\Z"
)
_HEADER = re.compile(r"(?:proxy-)?authorization|x-[\w-]+|api-key")
_NUMBER = re.compile(r"[\d_.,eE+-]+%?")
_PLACE = re.compile(r"[/~.]|[A-Za-z]:[\\/]")
_NOT_VALUES = frozenset({"none", "null", "true", "false", "str", "bytes", "int", "secretstr", "optional", "any"})
_CODE = ("self.", "os.", "$", "%(", "{{")
_LONGEST_NAME = 40
_SHORTEST_TOKEN = 8
_SHORTEST_KEY = 16


def find(text: str, lower: str) -> list[Span]:
    """Return the positions of the values of secret names, in order; `lower` is the text in lower case."""
    spans: list[Span] = []
    for word, pattern in _NAMES.items():
        if word in lower:
            _search(word, pattern, text, lower, spans)
    if "value" in lower:
        _search_named(text, lower, spans)
    if "--" in lower:
        _search("--", _FLAG, text, lower, spans)
    if "_KEY" in text:
        spans += [
            found.span("bare")
            for found in _VARIABLE.finditer(text)
            if len(value := found["bare"]) >= _SHORTEST_KEY and not is_harmless(value) and not is_word(value)
        ]
    return _without_overlaps(spans) if len(spans) > 1 else spans


def _search(word: str, pattern: re.Pattern[str], text: str, lower: str, spans: list[Span]) -> None:
    position = 0
    while (found := pattern.search(lower, position)) is not None:
        bare = found["bare"]
        if bare is None:
            position = _quoted(word, text, lower, found, spans)
            continue
        begin, position = found.span("bare")
        sign = found["sign"] if word != "--" else ""
        if "\n" in sign and _is_name(lower, begin):
            position = begin  # the value belongs to the name on the next line
        elif word in _HEADERS and (credentials := _credential(text, begin, None)) is not None:
            spans += credentials
        else:
            value = text[begin:position].rstrip(".:!?")
            if _is_secret(word, value, lower, found, is_quoted=False):
                if sign == "=" and _is_variable(text, found.start(), found.start("sign")):
                    position = _LINE.match(text, begin).end()  # type: ignore[union-attr]  # it has at least one letter
                    value = text[begin:position]
                spans.append((begin, begin + len(value)))


def _search_named(text: str, lower: str, spans: list[Span]) -> None:
    """Collect the values of `{"name": "api_key", "value": "..."}`, a format that some services use."""
    for found in _NAMED.finditer(lower):
        name = found["name"]
        if not (is_secret_name(name) or _HEADER.fullmatch(name)):
            continue
        begin = found.end()
        end = _end_of_quoted(text, found["open"].lstrip("bru"), begin)
        first = _FIRST_WORD.match(text, begin) if end is None else None  # the value is cut off
        if first is not None:
            spans.append(first.span())
        elif end is not None and not is_harmless(text[begin:end]):
            credentials = _credential(text, begin, end)
            spans += [(begin, end)] if credentials is None else credentials


_HEADERS = frozenset({"authorization", "x-auth"})
_LINE = re.compile(r"[^\s\x00-\x1f\"'\\]++|\\")


def _quoted(word: str, text: str, lower: str, found: re.Match[str], spans: list[Span]) -> int:
    """Collect a quoted value, or each value of a list; return the position to continue from."""
    opening = _FIRST.match(text, found.end()) if found.re is not _FLAG and found["list"] is not None else None
    is_list = opening is not None
    if opening is None:
        opening = _FIRST.match(text, found.start("open"))
    position = found.end()
    while opening is not None:
        begin, quote = opening.end(), opening["open"].lstrip("bBrRuUfF")
        end = _end_of_quoted(text, quote, begin)
        if end is None:  # the value is cut off, so only its first word is known
            first = _FIRST_WORD.match(text, begin)
            if first is not None and _is_secret(word, first[0], lower, found, is_quoted=True):
                spans.append(first.span())
            return first.end() if first is not None else begin
        if found.re is not _FLAG and found["sign"][0] == "," and _IS_KEY.match(text, end):
            return end  # not a pair: the second text is the key of a value
        credentials = _credential(text, begin, end) if word in _HEADERS else None
        if credentials is not None:
            spans += credentials
        elif end > begin and _is_secret(word, text[begin:end], lower, found, is_quoted=True):
            spans.append((begin, end))
        position = end
        opening = _NEXT.match(text, end + len(quote)) if is_list else None
    return position


_FIRST_WORD = re.compile(_BARE)


def _is_secret(word: str, value: str, lower: str, found: re.Match[str], *, is_quoted: bool) -> bool:
    if not value or is_harmless(value):
        return False
    if word == "--":
        return True
    if word == "pwd" and _PLACE.match(value):
        return False
    sign = found["sign"]
    is_named = found["close"] is not None
    if sign[0] == "," and not _is_pair(lower, found):
        return False
    if word == "token":
        return _is_token(value, lower, found)
    if word == "_pat":
        return len(value) >= _SHORTEST_KEY and not is_word(value)
    if word == "pass" and found["short"] is not None:
        return not is_word(value) and not _NUMBER.fullmatch(value)
    if "=" in sign or is_named or word == "authorization":
        return True
    # Prose uses colons too: "the secret: never overfit".
    return not is_word(value) or (is_quoted and " " not in value)


def _name_before(lower: str, begin: int) -> str:
    found = _NAME_BEFORE.search(lower, max(0, begin - _LONGEST_NAME), begin)
    return found[0] if found else ""


def _is_variable(text: str, begin: int, end: int) -> bool:
    """Return whether the name is written like a variable: in upper case, at the start of a word."""
    if not text[begin:end].isupper():
        return False
    begin -= len(_name_before(text, begin))
    return text[begin:end].isupper() and (begin == 0 or text[begin - 1].isspace())


def _is_pair(lower: str, found: re.Match[str]) -> bool:
    """Return whether name and value are two items of a list: a flag with its value, or a header."""
    begin = found.start() - len(_name_before(lower, found.start()))
    if found["close"] is None or begin == 0 or lower[begin - 1] not in "\"'":
        return False
    whole = lower[begin : found.start("close")]
    return whole.startswith("-") or _HEADER.fullmatch(whole) is not None


def _is_token(value: str, lower: str, found: re.Match[str]) -> bool:
    """Return whether the value is a credential, and not a token of a language model."""
    value = value.strip()
    if len(value) < _SHORTEST_TOKEN or _NUMBER.fullmatch(value):
        return False
    begin = found.start()
    has_name = begin > 0 and (lower[begin - 1].isalnum() or lower[begin - 1] in "_-.")
    if not has_name and is_word(value):
        return False
    name = _name_before(lower, begin) if has_name else ""
    if TEXT_TOKEN.search(f"{name}token") or "logprob" in lower[found.end() : found.end() + len(value) + 24]:
        return False
    if _STRONG_TOKEN.search(name):
        return True
    if " " in value:
        return False
    return not is_word(value) if value.isalpha() else any(char.isdigit() for char in value)


def is_harmless(value: str) -> bool:
    """Return whether the value is `none` or similar, a type, code, a placeholder, or already masked."""
    return (
        value.lower() in _NOT_VALUES
        or value.startswith(_CODE)
        or (value[0] == "<" and value[-1] == ">")
        or not value.strip("*. ")
    )


def is_expression(text: str, begin: int, end: int) -> bool:
    """Return whether the value at this position of source code is the name of a variable or function, not a text.

    >>> code = "login(password=self.password)"
    >>> is_expression(code, 15, 28), is_expression(repr(code), 16, 29)
    (True, False)
    """
    value = text[begin:end]
    if not _DOTTED_NAME.fullmatch(value) or (len(value) >= _SHORTEST_KEY and _MIXED.search(value)):
        return False
    return not _is_inside_text(text[text.rfind("\n", 0, begin) + 1 : begin])


def _is_inside_text(line: str) -> bool:
    """Return whether a quote is open at the end of this part of a line of source code."""
    opened = ""
    letters = iter(line)
    for letter in letters:
        if letter == "\\":
            next(letters, "")
        elif opened:
            opened = "" if letter == opened else opened
        elif letter in "\"'":
            opened = letter
    return bool(opened)


_DOTTED_NAME = re.compile(r"[^\W\d][\w.]*")
_MIXED = re.compile(r"(?=[^._]*\d)(?=[^._]*[^\W\d])[^._]+\Z")


def _is_name(lower: str, begin: int) -> bool:
    """Return whether another name with its own sign follows, so that the name before it has no value."""
    found = _ANY_NAME.match(lower, begin)
    return found is not None and any(word in found[0] for word in _NAMES)


_ANY_NAME = re.compile(rf"(?:{_QUOTE})?[\w.-]{{1,{_LONGEST_NAME}}}(?:{_QUOTE})?\s*+[:=]")


def _credential(text: str, begin: int, end: int | None) -> list[Span] | None:
    """Return the position of a header's credential after its scheme; None without a scheme.

    `end` is the end of a quoted value. Without quotes, the value goes on as long as it looks like a credential.
    """
    found = _CREDENTIAL.match(text, begin) if end is None else _CREDENTIAL.match(text, begin, end)
    if found is None:
        return None
    if found["scheme"].lower() in _SCHEMES:
        begin = found.start("value")
    elif end is None and is_word(found["value"].rstrip(".:!?")):
        return None  # an ordinary sentence continues after the value
    end = found.end() if end is None else end
    return [(begin, end)] if text[begin:end].strip("*") else []


def _end_of_quoted(text: str, opening: str, begin: int) -> int | None:
    """Return the end of the text after the opening quote; None if the text is cut off before it."""
    quote = opening.lstrip("\\")
    backslashes = len(opening) - len(quote)
    if backslashes:
        found = _closing(backslashes, quote).match(text, begin)
        return found.end() if found else None
    if len(quote) > 1:
        end = text.find(quote, begin)
        return None if end < 0 else end
    found = _UNESCAPED[quote].match(text, begin)
    return found.end() if found else None


@lru_cache(maxsize=64)
def _closing(backslashes: int, quote: str) -> re.Pattern[str]:
    """Return a pattern for text between quotes that have backslashes before them; more backslashes escape a quote."""
    closing = rf"(?<!\\)\\{{{backslashes}}}{quote}"
    return re.compile(rf"(?:(?!{closing})[^\n])*+(?={closing})")


def _without_overlaps(spans: list[Span]) -> list[Span]:
    spans.sort()
    kept = spans[:1]
    for span in spans[1:]:
        if span[0] >= kept[-1][1]:
            kept.append(span)
    return kept


def masked(text: str, spans: list[Span]) -> str:
    """Return the text with a mask in place of each span."""
    parts, copied = [], 0
    for begin, end in spans:
        parts += [text[copied:begin], MASK]
        copied = end
    return "".join([*parts, text[copied:]])
