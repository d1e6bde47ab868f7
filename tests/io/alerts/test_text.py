"""Any value becomes clean text of bounded length, and one block on the console."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autogen_team._alerts.text import MESSAGE_LIMIT, clean, console_text, cut


class Stubborn:
    """A value whose `str()` raises."""

    def __str__(self):
        """Raise an error."""
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("", ""),
        ("model trained", "model trained"),
        (None, "None"),
        (42, "42"),
        (b"caf\xc3\xa9 \xff", "café \ufffd"),
        ("a\0b", "a\ufffdb"),
        ("\ud83d\ude80 \ud83d", "🚀 \ufffd"),
        ("\x1b[31mred\x1b[0m \x1b]0;title\x07done \x9b1mbold", "red done bold"),
        ("one\r\ntwo\rthree\u2028four", "one\ntwo\nthree\nfour"),
        ("tab\tstays, bell\x07 goes", "tab\tstays, bell goes"),
        ("abc\u202edcba", "abcdcba"),
        ("👩\u200d🔬", "👩\u200d🔬"),
        (Stubborn(), "<Stubborn: str() raised RuntimeError>"),
    ],
)
def test_anything_becomes_text_that_can_be_shown(value, text):
    """Numbers, None, bytes, control characters, escape sequences and broken Unicode become harmless text."""
    assert clean(value, 200) == text


def test_a_long_text_is_cut_and_marked():
    """A text of 200 kB is cut to the limit, followed by the number of omitted characters."""
    text = clean("x" * 200_000, MESSAGE_LIMIT)
    assert text == "x" * 4000 + "… (196000 more characters)"


def test_a_secret_is_masked():
    """A text that looks like a secret is masked."""
    secret = "hunter" * 3
    assert secret not in clean(f"login failed: password={secret}", 200)


def test_a_secret_of_the_environment_is_masked(monkeypatch):
    """The value of a variable with a secret name is masked anywhere in a text, also if it is set later."""
    value = "correct horse " * 2
    assert value in clean(f"sent {value}", 200)
    monkeypatch.setenv("SERVICE_API_KEY", value)
    assert value not in clean(f"sent {value}", 200)


def test_a_secret_across_the_limit_is_masked():
    """Secrets are masked before the text is cut, so no part of one remains."""
    secret = "hunter" * 10
    assert "hunter" not in clean(f"{'x' * 180} password={secret}", 200)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("one", "[test] title more: one"),
        ("\n\none\n\n", "[test] title more: one"),
        ("one\n[test] forged: line", "[test] title more: one\n    [test] forged: line"),
        ("one\r\n \u2028 two  ", "[test] title more: one\n     two"),
        ("", "[test] title more: "),
    ],
)
def test_the_console_shows_a_block(message, shown):
    """The first line names the application; the others are indented, so none can be taken for another alert."""
    assert console_text("test", clean("title\nmore", 200), clean(message, 200)) == shown


@given(st.text(max_size=400), st.integers(0, 400))
def test_a_cut_text_fits_and_is_marked(text, limit):
    """A cut text fits any limit; if the limit is too small for the count, only the ellipsis is added."""
    shown = cut(text, limit)
    assert len(shown) <= max(limit, 1)
    if len(text) > limit:
        assert "…" in shown
    if len(text) > limit >= 40:
        kept, _, count = shown.rpartition("… (")
        assert text.startswith(kept)
        assert count == f"{len(text) - len(kept)} more characters)"


@given(st.text(alphabet=st.characters(), max_size=400), st.integers(1, 100))
def test_any_text_can_be_encoded_and_shown_in_one_line(text, limit):
    """Any result is valid UTF-8, without control characters, bounded, and one block on the console."""
    shown = clean(text, limit)
    shown.encode()
    assert "\x1b" not in shown
    assert "\0" not in shown
    assert len(shown) <= limit + len("… (400 more characters)")
    _, *others = console_text("test", shown, shown).split("\n")
    assert all(line.startswith("    ") for line in others)
