"""Patterns for text that looks like a secret by itself: keys of services, signed tokens, blocks of private keys.

Each pattern begins with the letters that all keys of its kind have. So a text without them costs nothing, and the
boundary before the letters is checked only after they are found. A boundary is also the end of an escape (a line break
in a `repr`, in JSON or in a URL) or of a terminal colour. The shapes were compared with the rules of gitleaks 8 and
detect-secrets 1.5.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_ESCAPES = (
    r"\\[nrtbfv0aeE]",
    r"\\[0-7]{3}",
    r"\\x[0-9a-fA-F]{2}",
    r"\\u[0-9a-fA-F]{4}",
    r"%[0-9a-fA-F]{2}",
    *(rf"\[[\d;]{{{length}}}m" for length in range(12)),
)


def behind_boundary(letters: str, not_behind: str = r"[\w-]") -> str:
    """Return a pattern for the letters at the start of a word, as a reader or a program decodes the text."""
    found = "|".join([f"(?<!{not_behind}{letters})", *(f"(?<={escape}{letters})" for escape in _ESCAPES)])
    return f"{letters}(?:{found})"


def _shape(letters: str, rest: str, not_behind: str = r"[\w-]") -> re.Pattern[str]:
    return re.compile(behind_boundary(re.escape(letters), not_behind) + rest)


_W = r"\w"
SHAPES: dict[str, re.Pattern[str]] = {
    **{letters: _shape(letters, r"[A-Z0-9]{16}(?![A-Za-z0-9])", _W) for letters in ("AKIA", "ASIA", "ABIA", "ACCA")},
    **{f"gh{kind}_": _shape(f"gh{kind}_", r"[A-Za-z0-9]{20,}", _W) for kind in "opsur"},
    "AIza": _shape("AIza", r"[\w-]{35}", _W),
    "eyJ": _shape("eyJ", r"[\w-]{8,}\.eyJ[\w-]{8,}(?:\.[\w-]*)?"),
    "dapi": _shape("dapi", r"[0-9a-f]{32}\b", _W),
    "sk-": _shape("sk-", r"(?:[A-Za-z0-9]{1,15}[_-])*(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{16,}[\w-]*"),
    **{f"xox{kind}-": _shape(f"xox{kind}-", r"[\w-]{10,}") for kind in "abeoprs"},
    "xoxe.": re.compile(r"xoxe\.[\w.-]{20,}"),
    "xapp-": _shape("xapp-", r"\d-[\w-]{20,}"),
    "glpat-": _shape("glpat-", r"[\w-]{16,}"),
    "gldt-": _shape("gldt-", r"[\w-]{16,}"),
    "glrt-": _shape("glrt-", r"[\w-]{16,}"),
    "pypi-": _shape("pypi-", r"[\w-]{32,}"),
    "github_pat_": _shape("github_pat_", r"\w{20,}", _W),
    "dckr_pat_": _shape("dckr_pat_", r"[\w-]{20,}", _W),
    "dop_v1_": _shape("dop_v1_", r"[0-9a-f]{40,}", _W),
    "tgp_v1_": _shape("tgp_v1_", r"[\w-]{30,}", _W),
    "hf_": _shape("hf_", r"[A-Za-z0-9]{20,}", _W),
    "npm_": _shape("npm_", r"[A-Za-z0-9]{30,}", _W),
    **{
        letters: _shape(letters, r"[A-Za-z0-9]{10,}", _W)
        for kind in ("live", "test")
        for letters in (f"sk_{kind}_", f"rk_{kind}_")
    },
    "whsec_": _shape("whsec_", r"[A-Za-z0-9+/=]{20,}", _W),
    "ya29.": _shape("ya29.", r"[\w-]{20,}", _W),
    "GOCSPX-": _shape("GOCSPX-", r"[\w-]{20,}", _W),
    "SG.": _shape("SG.", r"[\w-]{16,32}\.[\w-]{16,64}", _W),
    "sq0": _shape("sq0", r"[a-z]{3}-[\w-]{22,}", _W),
    **{f"shp{kind}_": _shape(f"shp{kind}_", r"[0-9a-fA-F]{32}", _W) for kind in ("at", "ca", "pa", "ss")},
    "lin_api_": _shape("lin_api_", r"[A-Za-z0-9]{30,}", _W),
    "pul-": _shape("pul-", r"[0-9a-f]{40}"),
    "hvs.": _shape("hvs.", r"[\w-]{24,}", _W),
    "ATATT": _shape("ATATT", r"[\w=-]{40,}", _W),
    "AGE-SECRET-KEY-": _shape("AGE-SECRET-KEY-", r"1[A-Z0-9]{50,}", _W),
    "glsa_": _shape("glsa_", r"[A-Za-z0-9]{32}_[0-9a-f]{8}", _W),
    "gsk_": _shape("gsk_", r"[A-Za-z0-9]{40,}", _W),
    "r8_": _shape("r8_", r"[A-Za-z0-9]{37,}", _W),
    "xai-": _shape("xai-", r"[A-Za-z0-9]{40,}"),
    "nvapi-": _shape("nvapi-", r"[\w-]{40,}"),
    "pplx-": _shape("pplx-", r"[A-Za-z0-9]{40,}"),
    "lsv2_": _shape("lsv2_", r"(?:pt|sk)_[0-9a-f]{32}_[0-9a-f]{8,}", _W),
    "pcsk_": _shape("pcsk_", r"\w{30,}", _W),
    **{f"sntry{kind}_": _shape(f"sntry{kind}_", r"[\w=+/-]{40,}", _W) for kind in "su"},
    "PMAK-": _shape("PMAK-", r"[0-9a-f]{24}-[0-9a-f]{34}", _W),
    "NRAK-": _shape("NRAK-", r"[A-Z0-9]{27}", _W),
    "hooks.slack.com/": re.compile(r"(?<=hooks\.slack\.com/)(?:services|workflows)/[\w/]+"),
    "/services/T": re.compile(r"(?<=/services/)T[A-Z0-9]{2,}/B[A-Z0-9]{2,}/\w+"),
    "/api/webhooks/": re.compile(r"(?<=/api/webhooks/)\d+/[\w-]+"),
    "/bot": re.compile(r"(?<=/bot)\d{8,10}:[\w-]{30,}"),
}
"""Patterns by the letters without which they cannot match."""

PRIVATE_KEY = re.compile(
    r"(-----BEGIN [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----)"
    r"(?!\*\*\*)"  # already masked, so what follows belongs to the text
    r"(?:(?!-----)(?:[A-Za-z0-9+/=*\s:,.-]|\\+[nrt/]))*"
    r"(?:-----END [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----)?"
)


_RARE = "-_/.JAqd"
"""Characters of the letters above that are rare in ordinary text, the preferred ones first; all letters have one."""
_PART_OF_KEY = r"[^\x00-*,:-<>?@\[-^`{-\x7f]"  # a letter, a digit, or one of +-./=_
_GOES_ON = rf"(?={_PART_OF_KEY}{{0,9}}+(?:{_PART_OF_KEY}|\Z))"
"""Ten more characters of a key, which all keys have after a dash, an underscore or a dot, and few names have."""


def _any_of(all_letters: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of the letters in one pass; to look for each of them takes twice as long.

    It stops at rare characters only, then looks back and ahead: `-(?<=[kx]-)(?=...)(?:(?<=sk-)|(?<=pplx-))`.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for letters in all_letters:
        rare = next(char for char in _RARE if char in letters)
        before, _, after = letters.rpartition(rare)
        found.setdefault(rare, []).append((before, after))
    return re.compile("|".join(_alternative(rare, parts) for rare, parts in found.items()))


def _alternative(rare: str, parts: list[tuple[str, str]]) -> str:
    at = re.escape(rare)
    last = {re.escape(before[-1:]) for before, _ in parts}
    quick = f"(?<=[{''.join(sorted(last))}]{at})" if "" not in last else ""
    goes_on = _GOES_ON if rare in "-_." else ""
    alike: dict[tuple[int, str], list[str]] = {}  # a look back has a fixed length
    for before, after in parts:
        alike.setdefault((len(before), re.escape(after)), []).append(re.escape(before) + at)
    whole = (f"(?<={'|'.join(texts)}){after}" if length else after for (length, after), texts in alike.items())
    return f"{at}{quick}{goes_on}(?:{'|'.join(whole)})"


may_have_shape = _any_of(SHAPES).search
"""Find text that any of the patterns may match; fast, because it is called for each line of log."""
