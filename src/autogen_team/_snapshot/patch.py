"""Split a patch into sections, one per file, to limit their size and mask their secrets.

Secrets are masked line by line, so that a section keeps its form. If only added lines are masked, `git apply` accepts
the section, and the file gets the mask. Otherwise it rejects the section, because it cannot find the masked line in the
file. A binary section with a secret is left out, because a mask would break it.
"""

from __future__ import annotations

import base64
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import TypeAlias

from autogen_team._snapshot import FACTS

Mask: TypeAlias = Callable[[str], str]

_BEGIN = re.compile(rb"^diff --git ", re.MULTILINE)
_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_LENGTHS = {chr(letter): number for number, letter in enumerate((*range(65, 91), *range(97, 123)), 1)}
_ESCAPE = re.compile(rb"\\([0-7]{3}|.)")
_ESCAPED = {b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
_LARGEST_BINARY = 16 * 2**20
HIDDEN = "***"
_PREFIX = "autogen-team: "


@dataclass(slots=True)
class Section:
    """The changes of one file."""

    path: str
    """The path after the change, relative to the top of the repository; for a deleted file, the path before it."""
    text: bytes
    is_first: bool = True
    """Whether the section takes precedence if the patch is too large."""
    masked_lines: int = 0
    applies: bool = True
    """Whether `git apply` accepts the section, because only added lines are masked."""


def sections(patch: bytes, *, first: Callable[[str], bool] = lambda _: True) -> list[Section]:
    """Return the sections of the output of `git diff`.

    The first line of a section cannot occur in its content: each line of a hunk begins with a sign, and base85 has no
    blanks.
    """
    borders = [*(found.start() for found in _BEGIN.finditer(patch)), len(patch)]
    found = []
    for begin, end in pairwise(borders):
        text = _quoted(patch[begin:end])
        path = _path(text)
        found.append(Section(path, text, is_first=first(path)))
    return found


def _quoted(section: bytes) -> bytes:
    """Quote the names in the first line of a section if `git apply` would not find where they end.

    `git apply` fails on a blank before a slash, unless later lines repeat the name. An empty file has no such lines.
    """
    line, end, rest = section.partition(b"\n")
    names = line.removeprefix(b"diff --git ")
    middle = len(names) // 2
    old, new = names[:middle], names[middle + 1 :]
    if b" /" not in names or old[1:] != new[1:]:  # later lines have the names of a renamed file
        return section
    return b'diff --git "%b" "%b"%b%b' % (old, new, end, rest)


def _path(section: bytes) -> str:
    """Return the path of a section, from its first line only if no later line has it; then both names are the same."""
    head, old, new = b"", b"", b""
    for line in section.split(b"\n"):
        if line.startswith(b"diff --git "):
            head = line.removeprefix(b"diff --git ")
        elif line.startswith((b"rename to ", b"copy to ")):
            return os.fsdecode(_unquoted(line.partition(b" to ")[2]))
        elif line.startswith(b"--- "):
            old = _unquoted(line[4:].removesuffix(b"\t"))
        elif line.startswith(b"+++ "):
            new = _unquoted(line[4:].removesuffix(b"\t"))
            break
        elif line.startswith((b"@@", b"GIT binary patch")):
            break
    name = new if new and new != b"/dev/null" else old
    if not name:
        name = _unquoted(head[len(head) // 2 + 1 :])
    return os.fsdecode(name.partition(b"/")[2])


def _unquoted(name: bytes) -> bytes:
    r"""Return the original form of a name that git has quoted.

    >>> _unquoted(rb'"a/caf\303\251"').decode()
    'a/café'
    """
    if not (name.startswith(b'"') and name.endswith(b'"') and len(name) > 1):
        return name
    return _ESCAPE.sub(
        lambda found: bytes([int(found[1], 8)]) if len(found[1]) > 1 else _ESCAPED.get(found[1], found[1]), name[1:-1]
    )


def within(found: list[Section], most: int) -> tuple[list[Section], list[Section]]:
    """Return the sections that fit into `most` bytes, in their order, and the others; tracked files go first."""
    kept: set[int] = set()
    total = 0
    for number in sorted(range(len(found)), key=lambda number: not found[number].is_first):
        size = len(found[number].text)
        if total + size <= most:
            total += size
            kept.add(number)
    return (
        [one for number, one in enumerate(found) if number in kept],
        [one for number, one in enumerate(found) if number not in kept],
    )


def without_secrets(section: Section, mask: Mask, mask_code: Mask, is_source: Callable[[str], bool]) -> bool:
    """Mask the secrets of a section; return False for a binary section with a secret, which cannot be kept."""
    text = section.text.decode("utf-8", "surrogateescape")
    head, hunks = _split(text)
    if "GIT binary patch" in head:
        return not any(_has_secret(data, mask) for data in _binaries(section.text))
    masking = _Masking(mask_code if is_source(PurePosixPath(section.path).suffix.lower()) else mask, mask)
    lines = [masking.line(line) for line in head]
    section.applies = masking.count == 0
    for hunk in hunks:
        lines += masking.hunk(hunk)
    section.applies = section.applies and not masking.must_be_found
    section.masked_lines = masking.count
    section.text = "\n".join(lines).encode("utf-8", "surrogateescape")
    return True


def _split(text: str) -> tuple[list[str], list[list[str]]]:
    """Return the lines of a section before its first hunk, and those of each hunk."""
    lines = text.split("\n")
    head: list[str] = []
    hunks: list[list[str]] = []
    number = 0
    while number < len(lines):
        found = _HUNK.match(lines[number])
        if found is None:
            (hunks[-1] if hunks else head).append(lines[number])
            number += 1
            continue
        old, new = (int(count) if count is not None else 1 for count in found.groups())
        hunk = [lines[number]]
        number += 1
        while (old > 0 or new > 0) and number < len(lines):
            sign = lines[number][:1]
            old -= sign not in ("+", "\\")
            new -= sign not in ("-", "\\")
            hunk.append(lines[number])
            number += 1
        hunks.append(hunk)
    return head, hunks


class _Masking:
    """The masking of one section."""

    def __init__(self, mask: Mask, mask_name: Mask) -> None:
        self._mask = mask
        self._mask_name = mask_name
        self.count = 0
        """The number of masked lines."""
        self.must_be_found = False
        """Whether `git apply` must find a masked line in the file: a context line or a removed one."""

    def line(self, line: str) -> str:
        """Mask the secrets of a line before the first hunk."""
        masked = self._mask_name(line)
        self.count += masked != line
        return masked

    def hunk(self, lines: list[str]) -> list[str]:
        """Mask the secrets of a hunk, separately in the text before and the text after the change."""
        found = _HUNK.match(lines[0])
        assert found is not None
        place = found[0]
        result = [place + self._mask(lines[0][len(place) :]), *lines[1:]]
        for sign in "-+":
            of_file = [number for number, line in enumerate(lines) if number and line[:1] in ("", " ", sign)]
            masked = masked_lines([lines[number][1:] for number in of_file], self._mask)
            for number, new in zip(of_file, masked, strict=True):
                if new != lines[number][1:]:
                    result[number] = lines[number][:1] + new
        for before, after in zip(lines[1:], result[1:], strict=True):
            if before != after:
                self.count += 1
                self.must_be_found = self.must_be_found or before[:1] != "+"
        return result


def masked_lines(lines: list[str], mask: Mask) -> list[str]:
    r"""Mask the secrets in the lines without changing their number; a multi-line secret is masked in each line.

    >>> masked_lines(["a", "BEGIN", "x", "END", "b"], lambda text: text.replace("BEGIN\nx\nEND", "BEGIN***"))
    ['a', '***', '***', '***', 'b']
    """
    masked = mask("\n".join(lines)).split("\n")
    if len(masked) == len(lines):
        return masked
    same = min(len(masked), len(lines))
    first = next((number for number in range(same) if masked[number] != lines[number]), same)
    last = next(
        (number for number in range(1, same - first + 1) if masked[-number] != lines[-number]), same - first + 1
    )
    return [*lines[:first], *[HIDDEN] * (len(lines) - first - last + 1), *lines[len(lines) - last + 1 :]]


def _has_secret(data: bytes, mask: Mask) -> bool:
    texts = [data.decode("latin-1")]
    if b"\0" in data:
        texts.append(data.replace(b"\0", b"").decode("latin-1"))  # UTF-16 or UTF-32
    return any(mask(text) != text for text in texts)


def _binaries(section: bytes) -> Iterator[bytes]:
    """Yield the contents in a binary section: the new and the old file, or the deltas between them."""
    block: list[bytes] | None = None
    for line in section.split(b"\n"):
        if line.startswith((b"literal ", b"delta ")):
            block = []
        elif block is not None and line:
            length = _LENGTHS.get(chr(line[0]), 0)
            block.append(base64.b85decode(line[1:])[:length])
        elif block is not None:
            unpacked = zlib.decompressobj().decompress(b"".join(block), _LARGEST_BINARY)
            block = None
            yield unpacked


def preamble(found: list[Section], left_out: int, mask: Mask) -> bytes:
    """Return the comment lines at the top of an incomplete patch, which git skips; empty for a complete patch."""
    lines = []
    masked = [one for one in found if one.masked_lines]
    if masked:
        lines.append("secrets are masked in this patch, so it does not restore the exact bytes that ran.")
        lines += [f"  masked, applies, and writes the mask: {one.path!r}" for one in masked if one.applies]
        lines += [f"  masked, does not apply: {one.path!r}" for one in masked if not one.applies]
    if any(not one.applies for one in masked):
        lines.append("some parts do not apply: skip them by git apply --exclude=PATH, or use autogen-team reproduce.")
    if left_out:
        lines.append(f"this patch is incomplete: {FACTS} lists the changes that are left out ({left_out}), and why.")
    return mask("".join(f"{_PREFIX}{line}\n" for line in lines)).encode("utf-8", "backslashreplace")
