"""Masking of traces, by names of values and by text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autogen_team._capture.redact_traces import Masker, hides

SECRET = "qx7Zk-vW9pL"
KNOWN = "correct-horse-battery"
MASKER = Masker({"SOME_API_TOKEN": KNOWN})
SECRET_NAMES = st.sampled_from(
    [
        *("Authorization", "proxy-authorization", "Cookie", "Set-Cookie", "x-api-key", "api-key", "api_key", "apiKey"),
        *("OPENAI_API_KEY", "password", "client_secret", "access_token", "http.request.header.authorization"),
    ]
)
PLAIN_NAMES = st.sampled_from(
    [
        *(
            "content",
            "role",
            "max_tokens",
            "total_tokens",
            "prompt_tokens",
            "eos_token",
            "next_page_token",
            "tokenizer",
        ),
        *("model", "keyword", "primary_key", "author", "passage", "tool_call_id", "a", "mlflow.chat.tokenUsage"),
    ]
)
PLAIN_TEXT = st.text(st.sampled_from("abcdefghij é.,;:!?0123456789{}[]\"'\n")) | st.sampled_from(
    [
        "the password was wrong",
        "Bearer bonds",
        "basic training",
        "a cookie: crisp",
        '{"answer": 42.0}',
        "[1,2]",
        "wait...",
    ]
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | PLAIN_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLAIN_NAMES, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def with_a_secret(draw: Any) -> Any:
    """Draw a value that contains a secret, under a secret name or as a value of the environment."""
    name = draw(SECRET_NAMES)
    found = draw(
        st.sampled_from(
            [
                {name: SECRET},
                {name: [SECRET, {"deeper": SECRET}]},
                {name: {"type": "bearer", "value": SECRET}},
                {name: {"type": "string", "default": SECRET, "description": "what to send"}},
                [[name, SECRET], ["Accept", "*/*"]],
                [{"name": name, "value": SECRET}],
                {"extra_headers": {"X-Anything": f"Bearer {SECRET}"}},
                {"default_headers": {"X-Some-Key": SECRET}},
                f"the server said {KNOWN} to that",
                {KNOWN: 1},
            ]
        )
    )
    for _ in range(draw(st.integers(0, 4))):
        found = draw(
            st.sampled_from(
                [[found], [draw(PLAIN), found], {draw(PLAIN_NAMES): found, "b": draw(PLAIN)}, json.dumps(found)]
            )
        )
    return found


@given(with_a_secret())
def test_no_secret_survives_any_nesting(value):
    """A secret is masked in fields, lists, pairs, schemas, nested JSON, values and names."""
    masked = json.dumps(MASKER.value(value))

    assert SECRET not in masked
    assert KNOWN not in masked
    assert "***" in masked


@given(with_a_secret(), st.sampled_from(["mlflow.spanInputs", "arguments"]))
def test_no_secret_survives_in_an_attribute(value, name):
    """A secret is masked in an attribute that MLflow has encoded as JSON, and the result is JSON."""
    masked = MASKER.attribute(name, json.dumps(value, ensure_ascii=False))

    json.loads(masked)
    assert SECRET not in masked
    assert KNOWN not in masked


@given(with_a_secret(), st.integers(1, 400))
def test_no_part_of_a_secret_survives_in_a_cut_text(value, length):
    """A secret is masked in a preview, wherever MLflow has cut the text."""
    text = json.dumps(value)
    masked = MASKER.excerpt(text if len(text) <= length else text[:length] + "...")

    assert SECRET[:4] not in masked
    assert KNOWN[:4] not in masked


@given(PLAIN)
def test_a_value_without_secrets_is_the_same_object(value):
    """A value without secrets is returned as the same object."""
    assert MASKER.value(value) is value


@given(PLAIN, PLAIN_NAMES)
def test_an_attribute_without_secrets_stays_bit_for_bit(value, name):
    """An attribute without secrets is returned as the same text."""
    text = json.dumps(value)

    assert MASKER.attribute(name, text) is text


@given(PLAIN_NAMES)
def test_names_that_only_resemble_secrets_are_not_masked(name):
    """Names that only resemble secrets, such as `max_tokens` and `primary_key`, are not masked."""
    assert not hides(name)


@pytest.mark.parametrize(
    "value",
    [
        {"token": "Hel", "logprob": -0.25, "bytes": [72], "top_logprobs": []},
        {"token": {"id": 5, "text": "Hel", "logprob": -0.25}},
        {"token": 5, "password": None, "secret": False, "api_key": ""},
        {"properties": {"api_key": {"type": "string", "description": "The key to use."}}, "required": ["api_key"]},
        {"headers": {"Content-Type": "application/json", "Idempotency-Key": "a1"}},
    ],
)
def test_harmless_values_under_secret_names_stay(value):
    """Tokens of an answer, numbers, empty values and schemas of tools stay unmasked under secret names."""
    assert MASKER.value(value) is value


def test_the_rest_of_a_value_with_a_secret_stays():
    """Only the secret is replaced; the order and the numbers around it stay the same."""
    before = {"n": 1.0, "args": '{"api_key": "' + SECRET + '", "é": 3}', "max_tokens": 5}

    assert MASKER.value(before) == {"n": 1.0, "args": '{"api_key": "***", "é": 3}', "max_tokens": 5}


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("{'cookie': 'sid=abcdefgh'}", "{'cookie': '***'}"),
        ("Set-Cookie: sid=abcdefgh; Path=/\nnext", "Set-Cookie: ***\nnext"),
        ("failed with password=hunter2hunter2", "failed with password=***"),
        ("{'Authorization': 'Bearer topsecret'}", "{'Authorization': '***'}"),
    ],
)
def test_text_is_searched_too(text, masked):
    """Secrets are masked in free text, such as the headers in the message of an exception."""
    assert MASKER.text(text).replace("Bearer ***", "***") == masked


def test_attributes_of_opentelemetry_need_not_be_json():
    """Attributes of OpenTelemetry that are text, numbers or sequences are masked without being JSON."""
    assert MASKER.attribute("http.request.header.authorization", (f"Bearer {SECRET}",)) == ("***",)
    assert MASKER.attribute("url", f"http://bob:{SECRET}@host/") == "http://bob:***@host/"
    assert MASKER.attribute("db.password", 12345) == "***"
    assert MASKER.attribute("gen_ai.usage.input_tokens", 12345) == 12345
    assert MASKER.attribute("ports", (1, 2)) == (1, 2)


def test_an_attribute_that_is_nested_too_deeply_is_an_error():
    """An attribute that is nested too deeply raises an error, so that the caller withholds it."""
    with pytest.raises(RecursionError):
        MASKER.attribute("mlflow.spanInputs", "[" * 100_000 + "]" * 100_000)


def test_all_parts_of_a_span_are_masked():
    """Secrets are masked in the name, attributes, status, events and links of a span."""
    event = {"name": "exception", "time_unix_nano": 1, "attributes": {"exception.message": "bad"}}
    plain = {
        "name": "ask",
        "attributes": {"mlflow.spanInputs": '{"a": 1.0}'},
        "status": {"code": "STATUS_CODE_ERROR", "message": "bad"},
        "events": [event],
        "links": [{"trace_id": "tr-1", "span_id": "1", "attributes": {"a": 1}}],
    }
    bad = {**event, "attributes": {"exception.message": f"bad {KNOWN}"}}
    secret = {
        "name": f"ask {KNOWN}",
        "attributes": {"api_key": f'"{SECRET}"'},
        "status": {"code": "STATUS_CODE_ERROR", "message": f"bad {KNOWN}"},
        "events": [event, bad],
        "links": [{"trace_id": "tr-1", "span_id": "1", "attributes": {"api_key": SECRET}}],
    }

    assert MASKER.span(plain) is plain
    assert MASKER.span(secret) == {
        "name": "ask ***",
        "attributes": {"api_key": '"***"'},
        "status": {"code": "STATUS_CODE_ERROR", "message": "bad ***"},
        "events": [event, {**event, "attributes": {"exception.message": "bad ***"}}],
        "links": [{"trace_id": "tr-1", "span_id": "1", "attributes": {"api_key": "***"}}],
    }


def test_the_beginning_of_a_secret_is_masked_at_the_end_of_a_cut_text():
    """The end of a cut text is masked if it begins a secret, and kept otherwise."""
    assert MASKER.excerpt("use correct-ho...") == "use ***..."
    assert MASKER.excerpt("use sk-abc1...") == "use ***..."
    assert MASKER.excerpt("use a task-...") == "use a task-..."
    assert MASKER.tag("count", 5) == 5
