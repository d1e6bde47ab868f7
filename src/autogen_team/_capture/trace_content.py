"""Removes the content of traces: the requests and answers of models, and the texts of users.

Names, times, status, kinds, models, tokens, cost, and other numbers stay. Text is kept only in attributes that are
known to hold no content, so an attribute that a later library adds is left out.
"""

from __future__ import annotations

import copy
import json
import re
from typing import Any

from mlflow.entities import TraceInfo

_KEPT = re.compile(
    r"mlflow\.(?:traceRequestId|experimentId|spanType|spanFunctionName|spanLogLevel|message\.format"
    r"|llm\.(?:model|provider|cost)|chat\.tokenUsage)$"
    r"|gen_ai\.(?:system|provider\.name|operation\.name|output\.type|usage\..*"
    r"|(?:request|response)\.(?:model|finish_reasons|id))$"
    r"|llm\.(?:model_name|provider|system|token_count\..*|usage\..*)$|openinference\.span\.kind$"
    r"|service\.[\w.]+$|(?:error|exception)\.type$|http\.(?:request\.method|response\.status_code)$"
)
_CONTENT_OF_INFO = frozenset({"mlflow.traceInputs", "mlflow.traceOutputs"})


def of_span(span: dict[str, Any]) -> dict[str, Any]:
    """Return a span without content; spans have the form that `Span.to_dict` returns."""
    attributes = {name: value for name, value in span["attributes"].items() if _KEPT.match(name) or _is_number(value)}
    links = [{**link, "attributes": None} for link in span.get("links", ())]
    return {**span, "attributes": attributes, "events": [], "links": links, "status": {**span["status"], "message": ""}}


def of_info(info: TraceInfo) -> TraceInfo:
    """Return the info of a trace without the excerpts of its inputs and outputs."""
    found = copy.copy(info)
    found.request_preview = found.response_preview = None
    found.trace_metadata = {name: value for name, value in info.trace_metadata.items() if name not in _CONTENT_OF_INFO}
    return found


def _is_number(value: Any) -> bool:
    if not isinstance(value, str):
        return isinstance(value, int | float)
    try:
        return isinstance(json.loads(value), int | float)
    except ValueError:
        return False
