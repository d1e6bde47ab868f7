"""Sends traces to an OpenTelemetry collector too, masked like the stored ones.

MLflow alone would send them unmasked and store none. So MLflow's exporter is switched off, and the spans that go to the
journal also go to the collector.
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
    """Keep MLflow from sending traces to the collector of the environment, and return an outbox that sends them.

    The outbox is None without a collector, or if MLflow's own switch is off. A fault of the configuration is only a
    warning, because the variables may be meant for the whole cluster, not for this job.
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
    """Turn off MLflow's span metrics for the collector: without its exporter, they would keep it from storing spans."""
    undo = saved.keep_environment(_METRICS)
    os.environ[_METRICS] = "none"
    logger = logging.getLogger("mlflow.tracing.processor.otel_metrics_mixin")  # logs a message for each span
    level = logger.level
    logger.setLevel(logging.ERROR)

    def restore() -> None:
        logger.setLevel(level)
        undo()

    return restore


def _readable(span: Span, resource: Resource) -> ReadableSpan:
    """Return an MLflow span as an OpenTelemetry span with the resource of this process."""
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
