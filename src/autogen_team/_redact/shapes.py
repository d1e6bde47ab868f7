"""Patterns for text whose format alone marks it as a secret: API keys, signed tokens, private key blocks.

Each pattern begins with the prefix of its kind of key. So a text without the prefix is rejected at once, and the
boundary before the prefix is checked only after the prefix is found. The end of an escape (a line break in a `repr`, in
JSON or in a URL) or of a terminal colour is a boundary, too. The shapes were compared with the rules of gitleaks 8 and
detect-secrets 1.5.
"""

from __future__ import annotations

import re
from functools import cache

_ESCAPES = (
    r"\\[nrtbfv0aeE]",
    r"\\[0-7]{3}",
    r"\\x[0-9a-fA-F]{2}",
    r"\\u[0-9a-fA-F]{4}",
    r"%[0-9a-fA-F]{2}",
    *(rf"\[[\d;]{{{length}}}m" for length in range(12)),
)


def behind_boundary(letters: str, not_behind: str = r"[\w-]") -> str:
    """Return a pattern for the letters at the start of a word, also directly after an escape sequence."""
    found = "|".join([f"(?<!{not_behind}{letters})", *(f"(?<={escape}{letters})" for escape in _ESCAPES)])
    return f"{letters}(?:{found})"


def _shape(letters: str, rest: str, not_behind: str = r"[\w-]") -> str:
    return behind_boundary(re.escape(letters), not_behind) + rest


_W = r"\w"
SHAPES: dict[str, str] = {
    **{letters: _shape(letters, r"[A-Z0-9]{16}(?![A-Za-z0-9])", _W) for letters in ("AKIA", "ASIA", "ABIA", "ACCA")},
    **{f"gh{kind}_": _shape(f"gh{kind}_", r"[A-Za-z0-9]{20,}", _W) for kind in "opsur"},
    "AIza": _shape("AIza", r"[\w-]{35}", _W),
    "eyJ": _shape("eyJ", r"[\w-]{8,}\.eyJ[\w-]{8,}(?:\.[\w-]*)?"),
    "dapi": _shape("dapi", r"[0-9a-f]{32}\b", _W),
    "sk-": _shape("sk-", r"(?:[A-Za-z0-9]{1,15}[_-])*(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{16,}[\w-]*"),
    "xox": _shape("xox", r"[abeoprs]-[\w-]{10,}|xoxe\.[\w.-]{20,}"),
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
    "shp": _shape("shp", r"(?:at|ca|pa|ss)_[0-9a-fA-F]{32}", _W),
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
    "sntry": _shape("sntry", r"[su]_[\w=+/-]{40,}", _W),
    "PMAK-": _shape("PMAK-", r"[0-9a-f]{24}-[0-9a-f]{34}", _W),
    "NRAK-": _shape("NRAK-", r"[A-Z0-9]{27}", _W),
    "hooks.slack.com/": r"(?<=hooks\.slack\.com/)(?:services|workflows)/[\w/]+",
    "/services/T": r"(?<=/services/)T[A-Z0-9]{2,}/B[A-Z0-9]{2,}/\w+",
    "/api/webhooks/": r"(?<=/api/webhooks/)\d+/[\w-]+",
    "/bot": r"(?<=/bot)\d{8,10}:[\w-]{30,}",
}
"""Patterns, by the letters that each requires."""


@cache
def pattern_of(letters: str) -> re.Pattern[str]:
    """Return a pattern of `SHAPES`; all of them together take 20 ms to compile, and most texts need none."""
    return re.compile(SHAPES[letters])


PRIVATE_KEY = re.compile(
    r"(-----BEGIN [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----)"
    r"(?!\*\*\*)"  # already masked, so the rest is ordinary text
    r"(?:(?!-----)(?:[A-Za-z0-9+/=*\s:,.-]|\\+[nrt/]))*"
    r"(?:-----END [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----)?"
)


def may_have_shape(text: str) -> bool:
    """Return whether any pattern can match; unrolled for speed, because it is called for each log line."""
    return (
        "sk-" in text
        or "gh" in text
        or "eyJ" in text
        or "hf_" in text
        or "AKIA" in text
        or "ASIA" in text
        or "ABIA" in text
        or "ACCA" in text
        or "AIza" in text
        or "xox" in text
        or "xapp-" in text
        or "xai-" in text
        or "_pat_" in text
        or "_v1_" in text
        or "dapi" in text
        or "npm_" in text
        or "_live_" in text
        or "_test_" in text
        or "pypi-" in text
        or "glpat-" in text
        or "gldt-" in text
        or "glrt-" in text
        or "glsa_" in text
        or "gsk_" in text
        or "r8_" in text
        or "nvapi-" in text
        or "pplx-" in text
        or "whsec_" in text
        or "ya29." in text
        or "GOCSPX-" in text
        or "SG." in text
        or "sq0" in text
        or "shp" in text
        or "lin_api_" in text
        or "pul-" in text
        or "hvs." in text
        or "ATATT" in text
        or "AGE-SECRET-KEY-" in text
        or "lsv2_" in text
        or "pcsk_" in text
        or "sntry" in text
        or "PMAK-" in text
        or "NRAK-" in text
        or "hooks" in text  # hooks.slack.com, /api/webhooks/
        or "/services/T" in text
        or "/bot" in text
    )
