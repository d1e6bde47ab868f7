"""Sends traces to a collector of OpenTelemetry too, masked as they are stored.

MLflow alone would send them there unmasked, and store none. So it is told not to, and the spans that go to the journal
go to the collector as well.
"""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import ExitStack

from mlflow.entities import Span
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan

from autogen_team._process import Undo, saved
from autogen_team._ship import collector
from autogen_team.errors import ConfigurationError, ConfigurationWarning

_SWITCH = "MLFLOW_ENABLE_OTLP_EXPORTER"
_PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
_METRICS = "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL"
_NO = frozenset({"false", "0"})


def take_over() -> tuple[collector.Outbox | None, Undo]:
    """Keep MLflow from sending traces to the collector of the environment, and return an outbox that does.

    There is none without a collector, or if MLflow's own switch is off. What stands in the way is a warning: the
    variables may belong to the cluster, and the job need not care for them.
    """
    place = collector.endpoint("traces")
    if place is None or os.environ.get(_SWITCH, "").lower() in _NO:
        return None, lambda: None
    with ExitStack() as undo:
        undo.callback(saved.keep_environment(_SWITCH, _PROTOCOL))
        os.environ[_SWITCH] = "false"
        try:
            collector.check("traces")
        except ConfigurationError as error:
            warnings.warn(f"{error}. Until then, traces go to MLflow only", ConfigurationWarning, stacklevel=5)
            undo.callback(_leave_metrics_out())
            return None, undo.pop_all().close
        os.environ.setdefault(_PROTOCOL, "http/protobuf")  # MLflow's default needs gRPC, for its metrics of spans too
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        resource = Resource.create()
        outbox = collector.Outbox("traces", OTLPSpanExporter(), lambda span: _readable(span, resource))
        return outbox, undo.pop_all().close


def _leave_metrics_out() -> Undo:
    """Keep MLflow from counting spans for the collector: without its exporter, that would keep it from storing them."""
    undo = saved.keep_environment(_METRICS)
    os.environ[_METRICS] = "none"
    logger = logging.getLogger("mlflow.tracing.processor.otel_metrics_mixin")  # says for each span what that means
    level = logger.level
    logger.setLevel(logging.ERROR)

    def restore() -> None:
        logger.setLevel(level)
        undo()

    return restore


def _readable(span: Span, resource: Resource) -> ReadableSpan:
    """Return a span of MLflow as one of OpenTelemetry, with the resource of this process."""
    found = span._span  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - see `mlflow_names.SPANS`
    return ReadableSpan(
        name=found.name,
        context=found.context,
        parent=found.parent,
        resource=resource,
        attributes=found.attributes,
        events=found.events,
        links=found.links,
        kind=found.kind,
        status=found.status,
        start_time=found.start_time,
        end_time=found.end_time,
        instrumentation_scope=found.instrumentation_scope,
    )
