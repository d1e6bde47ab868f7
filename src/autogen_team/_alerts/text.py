"""Converts any value to text that a desktop, a chat and a terminal can show: clean, short, without secrets."""

from __future__ import annotations

import re
from collections.abc import Callable

from autogen_team._redact import mask

TITLE_LIMIT = 200
MESSAGE_LIMIT = 4000  # daemons and chats cut or reject much longer messages

_INDENT = "    "
_ESCAPE_SEQUENCES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # terminal titles and links
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # colours and cursor movements
    r"|\x1b[ -/]*[0-~]?"
)
_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_SURROGATES = re.compile("[\ud800-\udfff]")
# Controls that a terminal obeys or D-Bus refuses, and marks that change the direction of the text after them.
_CONTROLS = re.compile("[\x01-\x08\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def clean(value: object, limit: int, mask: Callable[[str], str] = mask) -> str:
    """Return at most about `limit` characters of `value`, masked, with no control character but newline and tab."""
    text = _as_text(value)
    # Mask before the cut, since half a secret does not look like one. Cut roughly before that, since 200 kB take time.
    head = _without_surrogates(text[: 4 * limit])
    head = _CONTROLS.sub("", _LINE_ENDS.sub("\n", _ESCAPE_SEQUENCES.sub("", head))).replace("\0", "\ufffd")
    head = mask(head)
    if len(head) <= limit and len(text) <= 4 * limit:
        return head
    kept = head[:limit]
    return f"{kept}… ({max(len(text) - len(kept), 1)} more characters)"


def one_line(text: str) -> str:
    """Return clean text without its line ends, so that no part of it can be mistaken for a separate line."""
    return re.sub(r"\s*\n\s*", " ", text.strip("\n"))


def console_text(app_name: str, title: str, message: str) -> str:
    r"""Return an alert for the console; lines after the first are indented, so none can be mistaken for an alert.

    >>> console_text("train", "failed", "after 2 s\nValueError: bad shape")
    '[train] failed: after 2 s\n    ValueError: bad shape'
    """
    lines = [line.rstrip() for line in message.split("\n") if line.strip()] or [""]
    return "\n".join([f"{one_line(f'[{app_name}] {title}')}: {lines[0]}", *(_INDENT + line for line in lines[1:])])


def cut(text: str, limit: int) -> str:
    """Return at most `limit` characters of the text; a cut text ends with a note about the rest, if that fits.

    >>> cut("a long message about a run", 25)
    'a l… (23 more characters)'
    """
    if len(text) <= limit:
        return text
    word = f"… ({len(text)} more characters)"
    kept = limit - len(word)
    return f"{text[:kept]}… ({len(text) - kept} more characters)" if kept > 0 else f"{text[: max(limit - 1, 0)]}…"


def _as_text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    try:
        return str(value)
    except Exception as error:
        return f"<{type(value).__name__}: str() raised {type(error).__name__}>"


def _without_surrogates(text: str) -> str:
    """Join surrogates that form a pair, and replace the others."""
    if _SURROGATES.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
