"""Masks secrets in traces, which are JSON: by the name of a field, and by the text of its value.

Each string is searched for what `_redact` finds in text. Here the structure helps too: a value under `Authorization`
or `api_key` is a secret whatever it looks like. Other values stay unchanged, such as token counts, prompts, the texts
of tokens beside their probabilities, and the schemas of tools that take a password. An object without a secret is
returned itself, not as a copy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from autogen_team._redact import MASK, Redactor, is_secret_name, secret_values

_MORE_NAMES = re.compile(
    r"authorization$|(?:^|[._-])(?:set-?)?cookies?2?$|accesstoken$|(?:subscription|functions?)-key$",
    re.IGNORECASE,
)
"""Names of headers, and names that `is_secret_name` omits because no variables are named like that."""
_TEXT_TOKEN = re.compile(
    r"(?:^|[._-])(?:bos|eos|pad|unk|sep|cls|mask|next|special|image|audio|max|min|num|n|stop|start|end|first|last|prompt"
    r"|page|continuation)[_-]?token$",
    re.IGNORECASE,
)
"""Names of text tokens and page tokens, which are not secrets."""
_A_TOKEN = re.compile(r"token$", re.IGNORECASE)
_HEADERS = re.compile(r"headers?$", re.IGNORECASE)
_HEADER_NAME = re.compile(r"[\w.-]+")
_HEADER_KEY = re.compile(r"(?<!idempotency)-key$", re.IGNORECASE)
_SCHEME = re.compile(r"(?:bearer|basic|token|digest|negotiate|api-?key)\s+\S", re.IGNORECASE)
_COOKIE = re.compile(
    r"(\b(?:set-)?cookie(?:\\*[\"']\s*[:=]\s*\\*[\"']|:\s*(?=[\w.-]+=)))([^\"'\\\r\n]+)", re.IGNORECASE
)
_SCHEMA_TYPES = frozenset({"string", "integer", "number", "boolean", "array", "object", "null"})
_SCHEMA_KINDS = ("$ref", "anyOf", "oneOf", "allOf")
_SCHEMA_WORDS = frozenset(
    {"type", "title", "description", "format", "pattern", "required", "nullable", "minLength", "maxLength", "minItems"}
    | {
        "maxItems",
        "minimum",
        "maximum",
        "additionalProperties",
        "deprecated",
        "readOnly",
        "writeOnly",
        "strict",
        "$ref",
    }
)
"""Keywords by which a schema describes a field; any other entry, such as a default, may be a value."""

_JSON_BEGINS, _JSON_ENDS = ("{", "[", '"'), ("}", "]", '"')
_CUT = "..."
_NAME_IN_JSON = re.compile(r"\\*\"([^\"\\]{2,80})\\*\"\s*[:,]\s*")
_HARMLESS_VALUE = re.compile(r"\\*\"\*\*\*\\*\"|null|true|false|-?\d")
_SCHEME_IN_JSON = re.compile(r"(\\*\"(?:bearer|basic|token|digest|negotiate|api-?key)\s+)[^\s\"\\]+", re.IGNORECASE)
_HALF_A_SHAPE = re.compile(
    r"(?<![\w-])(?:sk-|gh[oprsu]_|github_pat_|glpat-|hf_|npm_|pypi-|xox[a-z]-|AKIA|ASIA|AIza|dapi|eyJ|[sr]k_live_"
    r"|(?i:bearer)\s+)[\w.~+/=-]*$"
)
_SHORTEST_SECRET = 8
"""Fewest characters of a field's name that is itself searched for secrets."""
_SHORTEST_PART = 4
"""Fewest characters at the end of a truncated text that may be the beginning of a secret."""


@lru_cache(maxsize=4096)
def hides(name: str) -> bool:
    """Return whether a value under this name is a secret, in the fields, headers and attributes of a trace.

    >>> [hides(name) for name in ("Authorization", "x-api-key", "Set-Cookie", "total_tokens", "eos_token")]
    [True, True, True, False, False]
    """
    return (is_secret_name(name) or _MORE_NAMES.search(name) is not None) and _TEXT_TOKEN.search(name) is None


class Masker:
    """Masks the parts of traces, and knows the secrets in an environment.

    >>> Masker({}).value({"extra_headers": {"Authorization": "Bearer topsecret"}, "max_tokens": 5})
    {'extra_headers': {'Authorization': '***'}, 'max_tokens': 5}
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._mask = Redactor(environment)
        self._secrets = secret_values(environment)

    def span(self, span: dict[str, Any]) -> dict[str, Any]:
        """Return a span masked; it has the form that `Span.to_dict` returns."""
        events = self._each(span["events"], self._event)
        links = self._each(span.get("links", []), self.value)
        parts = {
            "name": self.text(span["name"]),
            "attributes": self._attributes(span["attributes"]),
            "status": self.value(span["status"]),
            "events": events,
        }
        changed = {name: part for name, part in parts.items() if part is not span[name]}
        if links is not span.get("links", links):
            changed["links"] = links
        return {**span, **changed} if changed else span

    def attribute(self, name: str, value: Any) -> Any:
        """Return the value of a span's attribute masked; most values are JSON text."""
        if isinstance(value, tuple):
            found = self._each(list(value), lambda item: self.attribute(name, item))
            return value if all(new is old for new, old in zip(found, value, strict=True)) else tuple(found)
        if not isinstance(value, str):
            return MASK if hides(name) and not isinstance(value, bool) and not _A_TOKEN.search(name) else value
        try:
            before = json.loads(value)
        except ValueError:
            return self._hidden(value, name) if hides(name) else self.text(value)
        after = self._under(name, before)
        return value if after is before else json.dumps(after, ensure_ascii=False)

    def tag(self, name: str, value: Any) -> Any:
        """Return the value of a tag masked; it may be a truncated text."""
        if not isinstance(value, str):
            return self.value(value, name)
        return self._hidden(value, name) if hides(name) else self.excerpt(value)

    def excerpt(self, text: str) -> str:
        """Return a possibly truncated text masked, including a part of a secret at its end."""
        masked = self.text(text)
        if not masked.endswith(_CUT):
            return masked
        body = masked.removesuffix(_CUT)
        if body.lstrip()[:1] in _JSON_BEGINS:
            for found in _NAME_IN_JSON.finditer(body):
                is_secret = hides(found[1]) or _HEADER_KEY.search(found[1])
                if is_secret and not _HARMLESS_VALUE.match(body, found.end()):
                    body = body[: found.end()] + MASK
                    break
            body = _SCHEME_IN_JSON.sub(rf"\1{MASK}", body)
        body = _HALF_A_SHAPE.sub(MASK, body)
        for secret in self._secrets:
            lengths = range(min(len(secret), len(body)), _SHORTEST_PART - 1, -1)
            part = next((length for length in lengths if body.endswith(secret[:length])), 0)
            if part:
                body = body[:-part] + MASK
        return body + _CUT

    def text(self, text: str) -> str:
        """Return the text masked; if it is JSON, also by the names in it."""
        if text.lstrip()[:1] in _JSON_BEGINS and text.rstrip()[-1:] in _JSON_ENDS:
            try:
                before = json.loads(text)
            except ValueError:
                pass
            else:
                after = self.value(before)
                if after is not before:
                    text = json.dumps(after, ensure_ascii=False)
        masked = self._mask(text)
        if "ookie" in masked or "OOKIE" in masked:
            masked = _COOKIE.sub(rf"\1{MASK}", masked)
        return text if masked == text else masked

    def value(self, value: Any, name: str = "") -> Any:
        """Return a value decoded from JSON masked; `name` is its key."""
        return self._under(name, value)

    def _under(self, name: str, value: Any) -> Any:
        if name and hides(name):
            return self._hidden(value, name)
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return self._headers(value) if _HEADERS.search(name) else self._fields(value)
        return self._items(value) if isinstance(value, list) else value

    def _hidden(self, value: Any, name: str) -> Any:
        """Return a value under the name of a secret, with all its possible secrets masked."""
        if value is None or isinstance(value, bool) or value in ("", MASK):
            return value
        if isinstance(value, dict):
            if _is_of_a_text(value):
                return self._fields(value)
            kept = _SCHEMA_WORDS if _is_schema(value) else ()
            found = {k: self.value(item) if k in kept else self._hidden(item, name) for k, item in value.items()}
            return _same_or_new(value, found)
        if isinstance(value, list):
            return self._each(value, lambda item: self._hidden(item, name))
        if not isinstance(value, str) and _A_TOKEN.search(name):  # a count, or a token id
            return value
        return MASK

    def _headers(self, headers: dict[str, Any]) -> dict[str, Any]:
        found = self._fields(headers)
        more = {
            key: MASK
            for key, value in found.items()
            if isinstance(value, str) and value and value != MASK and (_HEADER_KEY.search(key) or _SCHEME.match(value))
        }
        return {**found, **more} if more else found

    def _fields(self, fields: dict[str, Any]) -> dict[str, Any]:
        found = {}
        is_of_a_text = _is_of_a_text(fields)
        for key, value in fields.items():
            name = "" if is_of_a_text and key == "token" else key
            found[key if len(key) < _SHORTEST_SECRET else self.text(key)] = self._under(name, value)
        name = next((fields[word] for word in ("name", "key", "header") if isinstance(fields.get(word), str)), "")
        if "value" in fields and name and (hides(name) or _HEADER_KEY.search(name)):
            found["value"] = self._hidden(fields["value"], name)
        return _same_or_new(fields, found)

    def _items(self, items: list[Any]) -> list[Any]:
        is_of_pairs = bool(items) and all(
            isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) and _HEADER_NAME.fullmatch(item[0])
            for item in items
        )
        return self._each(items, self._pair if is_of_pairs else self.value)

    def _pair(self, pair: list[Any]) -> list[Any]:
        """Return a header masked that some clients write as a pair: `["Authorization", "Bearer ..."]`."""
        name, value = pair
        new = [self.text(name), self._hidden(value, name) if _HEADER_KEY.search(name) else self._under(name, value)]
        return pair if new[0] is name and new[1] is value else new

    def _attributes(self, attributes: dict[str, Any]) -> dict[str, Any]:
        return _same_or_new(attributes, {name: self.attribute(name, value) for name, value in attributes.items()})

    def _event(self, event: dict[str, Any]) -> dict[str, Any]:
        new = {"name": self.text(event["name"]), "attributes": self._attributes(event["attributes"] or {})}
        if new["name"] is event["name"] and new["attributes"] is event["attributes"]:
            return event
        return {**event, **new}

    @staticmethod
    def _each(items: list[Any], masked: Any) -> list[Any]:
        found = [masked(item) for item in items]
        return items if all(new is old for new, old in zip(found, items, strict=True)) else found


def _is_schema(value: dict[str, Any]) -> bool:
    kind = value.get("type")
    is_named = isinstance(kind, str) and kind in _SCHEMA_TYPES
    return is_named or any(word in value for word in _SCHEMA_KINDS)


def _is_of_a_text(fields: dict[str, Any]) -> bool:
    """Return whether the fields describe a token of a language model's answer, with its probability."""
    return isinstance(fields.get("logprob"), int | float)


def _same_or_new(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    is_same = len(before) == len(after) and all(key in before and before[key] is after[key] for key in after)
    return before if is_same else after
