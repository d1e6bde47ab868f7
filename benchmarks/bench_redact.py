"""Compare the time to mask a megabyte of difficult text with a megabyte of prose, and with two megabytes of the text.

The peer is the redactor itself on plain prose, so the ratio shows how much slower the worst text is. The figures are
medians of rounds.
"""

from __future__ import annotations

import statistics
import time

from autogen_team._redact import Redactor

MEGABYTE = 10**6
ROUNDS = 3
MOST = 10.0
"""The highest allowed ratio of a text's time to that of prose."""
PROSE = "Please enter your password here to continue, the user forgot it again. "
UNITS = {
    "no secret word": "the word of the day. ",
    "password": "password ",
    "password=": "password=hunter2 ",
    "token of a model": "token international ",
    "token: of a model": "token: international, ",
    "token=": "token=512 ",
    "JSON": '{"token": "abc", "n": 1} ',
    "quotes that do not end": 'password="',
    "escaped quotes": 'password=\\"',
    "lists": "password=['a','b'] ",
    "equal signs": "password===",
    "beginnings of keys": "_sk-",
    "beginnings of tokens": "-eyJaaaaa",
    "beginnings of key blocks": "-----BEGIN PRIVATE KEY-----",
    "URLs": "http://a ",
    "URLs with passwords": "postgres://u:p@h ",
    "URLs in URLs": "://a:",
    "headers": "Authorization: Bearer x ",
    "basic": "basic configuration ",
    "dashes": "-",
    "escapes": "%20\\n\\x1b[32m",
    "colours": "\x1b[32mx",
    "not ASCII": "ключ token 键 ",
    "blanks": "password" + " " * 50,
    "backslashes": "\\",
}


def main() -> None:
    """Print a row for each text."""
    redact = Redactor({})
    prose = took(redact, PROSE, MEGABYTE)
    print(f"{'a megabyte of':28} {'ms':>8}  {'prose, ms':>9} {'ratio':>6} {'at most':>7}  {'doubled':>7}")
    for name, unit in {"prose": PROSE, **UNITS}.items():
        once, twice = took(redact, unit, MEGABYTE), took(redact, unit, 2 * MEGABYTE)
        verdict = "ok" if once <= MOST * prose and twice <= 3 * once else "missed"
        ratios = f"{once / prose:6.1f} {MOST:7.1f}  {twice / once:7.2f}  {verdict}"
        print(f"{name:28} {once * 1e3:8.1f}  {prose * 1e3:9.1f} {ratios}")


def took(redact: Redactor, unit: str, size: int) -> float:
    """Return the median time in seconds to mask a text of repeated units."""
    text = (unit * (size // len(unit) + 1))[:size]
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        redact(text)
        found.append(time.perf_counter() - began)
    return statistics.median(found)


if __name__ == "__main__":
    main()
