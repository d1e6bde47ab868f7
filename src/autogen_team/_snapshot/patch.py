"""Patches as sections, one per file: limits their size and masks their secrets.

A secret is masked line by line, so that a section keeps its form. Where only added lines are masked, `git apply` takes
the section, and the file has the mask. It does not take a section in which a line is masked that it has to find in the
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
    """The path after the change, relative to the top of the repository; of a deleted file, that before it."""
    text: bytes
    is_first: bool = True
    """Whether it takes precedence if there is too much."""
    masked_lines: int = 0
    applies: bool = True
    """Whether `git apply` accepts it, because no context line is masked."""


def sections(patch: bytes, *, first: Callable[[str], bool] = lambda _: True) -> list[Section]:
    """Return the sections of the output of `git diff`.

    The line that begins a section occurs nowhere else: each line of a hunk has a sign before it, and base85 has no
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
    """Return a section with the names in its first line quoted, if `git apply` would not find where they end.

    It gives up at a blank before a slash, unless later lines have the name, which an empty file has not.
    """
    line, end, rest = section.partition(b"\n")
    names = line.removeprefix(b"diff --git ")
    middle = len(names) // 2
    old, new = names[:middle], names[middle + 1 :]
    if b" /" not in names or old[1:] != new[1:]:  # later lines have the names of a file that is renamed
        return section
    return b'diff --git "%b" "%b"%b%b' % (old, new, end, rest)


def _path(section: bytes) -> str:
    """Return the path of a section; git writes it without a blank to end it only where both names are the same."""
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
    r"""Return the original of a name that git has quoted.

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
    """Mask the secrets of a section; return False if it is binary and has a secret, so it cannot be kept."""
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
        """How many lines are masked."""
        self.must_be_found = False
        """Whether a context line is masked, which `git apply` has to find in the file."""

    def line(self, line: str) -> str:
        """Return a line before the first hunk without secrets."""
        masked = self._mask_name(line)
        self.count += masked != line
        return masked

    def hunk(self, lines: list[str]) -> list[str]:
        """Return a hunk without secrets: the file before and the file after are each masked as a text."""
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
    r"""Return as many lines without secrets; a secret of many lines, such as a private key, is masked in each.

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
        texts.append(data.replace(b"\0", b"").decode("latin-1"))  # letters of two or four bytes
    return any(mask(text) != text for text in texts)


def _binaries(section: bytes) -> Iterator[bytes]:
    """Yield the contents in a binary section: those of the file after and before, or what one adds to the other."""
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
    """Return the comment lines at the top of an incomplete patch, which git skips; empty if it is complete."""
    lines = []
    masked = [one for one in found if one.masked_lines]
    if masked:
        lines.append("secrets are masked in this patch, so that it does not give the very bytes that ran.")
        lines += [f"  masked, with the mask in the file: {one.path!r}" for one in masked if one.applies]
        lines += [f"  masked, and does not apply: {one.path!r}" for one in masked if not one.applies]
    if any(not one.applies for one in masked):
        lines.append(
            "it does not apply whole: leave out what does not, by git apply --exclude=PATH, or autogen-team reproduce."
        )
    if left_out:
        lines.append(f"it does not have all changes: {FACTS} has the {left_out} that are left out, and why.")
    return mask("".join(f"{_PREFIX}{line}\n" for line in lines)).encode("utf-8", "backslashreplace")
