"""Any text can be masked quickly, and no secret remains; see also tests/io/test_redact.py."""

from __future__ import annotations

import json
import string
import time

from hypothesis import example, given, settings
from hypothesis import strategies as st

from autogen_team._redact import Redactor, mask_url
from testkit import corpus

WORDS = ["password", "pwd", "secret", "credential", "authorization", "api_key", "api-key", "token", "x-auth", "key"]
SIGNS = [
    "=",
    ":",
    ": ",
    " = ",
    " ",
    "--",
    "\n",
    "\t",
    "\\n",
    ",",
    ";",
    "&",
    "?",
    "{",
    "}",
    "(",
    ")",
    "[",
    "<",
    ">",
    "|",
]
QUOTES = ['"', "'", '\\"', "\\'", "\\\\", "`"]
SCHEMES = ["Bearer ", "basic ", "digest ", "://", "https://", "postgresql://bob:", "@", "@host", ":8080/", "/", "#"]
VALUES = ["hunter2", "***", "None", "512", "aHVudGVyMjpodW50ZXIy", "abcdefghijklmnopqrstuvwxyz0123", ".", "..."]
SHAPES = ["sk-", "gh" + "p_", "eyJ", ".eyJ", "AKIA", "xox" + "b-", "hf_", "dapi", "?sig=", "&X-Amz-Signature=", "AIza"]
BLOCKS = ["-----BEGIN ", "PRIVATE KEY-----", "-----BEGIN RSA PRIVATE KEY-----", "-----END PRIVATE KEY-----", "-----"]
ODD = ["\u0130", "\u017f", "\u212a", "\U0001f511", "\0", "\x1b[31m", "\r", "\u2028", "\ud800"]
PARTS = [*WORDS, *SIGNS, *QUOTES, *SCHEMES, *VALUES, *SHAPES, *BLOCKS, *ODD]

masked = Redactor({})
texts = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=8)), max_size=40).map("".join)
secrets = st.text(string.ascii_letters + string.digits, min_size=12, max_size=40).map(
    "ZqX".__add__
)  # not a word of a sentence


@settings(deadline=None)
@given(texts)
def test_masking_any_text_twice_equals_masking_it_once(text):
    """Masking never fails, and masked text does not change again."""
    once = masked(text)

    assert masked(once) == once
    assert mask_url(mask_url(text)) == mask_url(text)


@settings(deadline=None)
@given(secrets, texts, texts)
def test_a_secret_of_the_environment_is_always_masked(secret, before, after):
    """The value is masked in any place, with any text around it."""
    redactor = Redactor({"SERVICE_PASSWORD": secret, "STORE": f"postgresql://bob:{secret}@db/runs"})
    line = redactor(f"{before}{secret}{after}")

    assert secret not in line
    assert redactor(line) == line


@settings(deadline=None)
@given(st.text(string.printable, min_size=12, max_size=40), texts)
def test_a_secret_of_the_environment_is_masked_in_json(secret, around):
    """A password may contain quotes and backslashes, which JSON escapes."""
    secret = f"Zq{secret}"
    line = Redactor({"SERVICE_PASSWORD": secret})(json.dumps({"text": f"{around} {secret} "}))

    assert secret not in json.loads(line)["text"]


@settings(deadline=None)
@given(
    st.sampled_from(["password", "PGPASSWORD", "client_secret", "api_key", "db_passwd", "aws_secret_access_key"]),
    st.sampled_from(["=", ": ", " = ", '": "', "': '", '\\": \\"']),
    secrets,
    texts,
    st.text(max_size=20),
)
@example("password", ": ", "ZqX000000000000", "password=", "")
def test_a_value_of_a_secret_name_is_always_masked(name, sign, secret, before, after):
    """The assignment is on its own line, with any lines around it."""
    end = next((quote for quote in ('\\"', '"', "'") if sign.endswith(quote)), "")
    begin = end or ""

    assert secret not in masked(f"{before}\n{begin}{name}{sign}{secret}{end}\n{after}")


@settings(deadline=None)
@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map("".join))
def test_the_time_is_in_proportion_to_the_length(part):
    """50,000 characters of any text take limited CPU time of this thread."""
    text = part * (50_000 // len(part))
    begun = time.thread_time()
    masked(text)

    assert time.thread_time() - begun < 20.0  # quadratic time would take minutes


@settings(deadline=None)
@given(
    texts,
    st.sampled_from(list(corpus.KEYS.values())),
    st.sampled_from(list(corpus.ENCODINGS.values())),
    st.sampled_from(corpus.PLACES),
)
def test_a_key_is_masked_in_each_encoding_behind_any_text(before, key, encode, place):
    """The text before the key must not end inside a word."""
    assert key not in masked(encode(f"{before} {place.format(key)}"))


@settings(deadline=None)
@given(st.sampled_from(corpus.HARMLESS), st.lists(st.sampled_from(list(corpus.ENCODINGS.values())), max_size=3))
def test_harmless_text_stays_in_any_encoding(text, encodings):
    """Harmless text may be encoded up to three times."""
    for encode in encodings:
        text = encode(text)

    assert masked(text) == text
