"""The private parts of MLflow that this package uses, and what a user loses if MLflow lacks one.

Other modules import only public names, some of them undocumented: `mlflow.utils` for requests, limits and tags,
`mlflow.protos`, `mlflow.store.artifact`. Public names that the package replaces or changes are listed here too.

`tests/io/tracking/test_seam.py` has a contract test for each part, and `test_degraded.py` runs a job without each name.
Replacements and changes are reverted when the service stops.
"""

from __future__ import annotations

from autogen_team._process.private_names import Library

MLFLOW = Library("MLflow", "mlflow", "3.10 to 3.17")

STORES = MLFLOW.part(
    "mlflow.tracking._tracking_service.utils:_tracking_store_registry",
    "mlflow.tracking._tracking_service.registry:TrackingStoreRegistry._get_store_with_resolved_uri",
    lost=(
        "each logging call goes straight to the store: no journal keeps the data while the store is down, and "
        "secrets in parameters, tags and datasets are not masked"
    ),
)
"""Where MLflow looks up the store of a URI, at every call. The store can be replaced there while the URI stays the
same. The registry's public method, `register`, has a cache in front of it. Also, a builder other than MLflow's changes
what MLflow reports about the scheme."""

REGISTRIES = MLFLOW.part(
    "mlflow.tracking._model_registry.registry:ModelRegistryStoreRegistry._get_store_with_resolved_uri",
    lost="secrets in the tags and descriptions of registered models are not masked",
)
"""The same for model registries. The method is replaced in the class, because creating the object takes 15 ms, and a
job without models does not need it."""

URIS = MLFLOW.part(
    "mlflow.tracking._tracking_service.utils:_tracking_uri",
    "mlflow.tracking._model_registry.utils:_registry_uri",
    lost="MLFLOW_TRACKING_URI and MLFLOW_REGISTRY_URI have no effect once the service has started, even after its stop",
)
"""The URIs that a call has set, not the environment. They hide later changes of the environment, and no public function
resets the URI of the registry."""

QUICK_URIS = MLFLOW.part(
    "mlflow.tracking._tracking_service.utils:_resolve_tracking_uri",
    "mlflow.tracking._model_registry.utils:_resolve_registry_uri",
    lost="each logging call takes about 0.6 ms longer",
)

EXPERIMENT = MLFLOW.part(
    "mlflow.tracking.fluent:_active_experiment_id",
    "mlflow.tracking.fluent:_get_experiment_id",
    lost=(
        "runs in a store other than that of the service go to the experiment with the same id there, and the "
        "experiment of the job stays set after the service stops"
    ),
)
"""`mlflow.set_experiment` can set the experiment, but nothing can unset it. Also, only here can the default depend on
the store in use."""

ACTIVE_RUNS = MLFLOW.part(
    "mlflow.tracking.fluent:_active_run_stack",
    "mlflow.tracking.fluent:_get_or_start_run",
    "mlflow.tracking.fluent:_get_latest_active_run",
    lost=(
        "asyncio tasks of one thread share their open runs, a thread without a run logs to a new one, runs of other "
        "threads that are left open are not closed, and a worker that ends marks the job's run as FINISHED"
    ),
)
"""The open runs of each thread. MLflow shows only the topmost run of the calling thread, and ends no other."""

LAST_RUN = MLFLOW.part(
    "mlflow.tracking.fluent:_last_active_run_id",
    lost="`mlflow.last_active_run` does not return runs that this library closes",
)

SAMPLING = MLFLOW.part(
    "mlflow.tracking.fluent:run_id_to_system_metrics_monitor",
    lost="system metrics of a run are sampled after its end, until the process exits",
)
"""The sampling threads, which MLflow forgets when it cannot end a run."""

EXIT = MLFLOW.part(
    "mlflow.tracking.fluent:_safe_end_run",
    lost="a run that is still open when the process exits bypasses the journal, so its store must answer at that time",
)
"""MLflow's exit handler, which ends open runs; it must run before the exit handler that closes the journal."""

AUTOLOG = MLFLOW.part(
    "mlflow.utils.autologging_utils:AUTOLOGGING_INTEGRATIONS",
    "mlflow.utils.autologging_utils.safety:revert_patches",
    "mlflow.utils.import_hooks:_post_import_hooks",
    "mlflow.utils.import_hooks:_post_import_hooks_lock",
    lost="autologging stays on after the service stops",
)
"""The integrations that `mlflow.autolog` has enabled, or will enable when a library is imported."""

SHARED_AUTOLOG = MLFLOW.part(
    "mlflow.utils.autologging_utils:get_autologging_config",
    "mlflow.utils.autologging_utils:autologging_is_disabled",
    lost="autologging in workers logs to their shared run, where their parameters contradict each other",
)

DATABASE_RETRIES = MLFLOW.part(
    "mlflow.store.db.utils:MAX_RETRY_COUNT",
    lost="a database that does not answer delays the start by up to 100 seconds",
)

RULES = MLFLOW.part(
    "mlflow.utils.validation:_validate_metric",
    "mlflow.utils.validation:_validate_param",
    "mlflow.utils.validation:_validate_tag",
    "mlflow.utils.validation:_validate_batch_log_limits",
    "mlflow.utils.validation:_validate_param_keys_unique",
    "mlflow.utils.validation:_validate_run_id",
    "mlflow.utils.validation:_validate_dataset_inputs",
    "mlflow.tracking.metric_value_conversion_utils:convert_metric_value_to_float_if_possible",
    lost="some values that MLflow rejects raise no error at the call; they are recorded in `refused.jsonl` later",
)
"""MLflow's own rules, applied at the call instead of by the store."""

TRACES = MLFLOW.part(
    "mlflow.tracing.client:TracingClient.start_trace",
    "mlflow.tracing.client:TracingClient.log_spans",
    "mlflow.tracing.client:TracingClient.set_trace_tag",
    "mlflow.tracing.client:TracingClient._upload_trace_data",
    newer=(
        "mlflow.tracing.client:TracingClient._upload_attachments",
        "mlflow.tracing.client:TracingClient.link_prompt_versions_to_trace",
    ),
    lost="some secrets in traces are not masked, and traces may delay the exit while the server is silent",
)
"""The functions through which every trace goes to a store."""

SPANS = MLFLOW.part(
    "mlflow.entities:Span._span",
    "opentelemetry.sdk.trace:ReadableSpan._resource",
    newer=("mlflow.entities:Span._attachments",),
    lost="a span with masked secrets loses the resource attributes of OpenTelemetry",
)
"""`Span.to_dict` omits the resource."""

TRACE_QUEUE = MLFLOW.part(
    "mlflow.tracing.provider:_get_trace_exporter",
    "mlflow.tracing.export.mlflow_v3:MlflowV3SpanExporter._async_queue",
    "mlflow.tracing.export.async_export_queue:AsyncTraceExportQueue._queue",
    newer=("mlflow.tracing.processor.base_mlflow:_batch_processor_registry",),
    lost="stopping the service takes a second longer if the job has logged traces",
)
"""`mlflow.flush_trace_async_logging` also waits for the queue, but restarts MLflow's threads, which takes a second.
MLflow 3.10 logs an error if there are no threads."""

SQL = MLFLOW.part(
    "mlflow.store.tracking.sqlalchemy_store:SqlAlchemyStore.ManagedSessionMaker",
    "mlflow.store.tracking.sqlalchemy_store:SqlAlchemyStore.sanitize_metric_value",
    lost="metrics reach a database more slowly, and take more of the interpreter's time",
)
"""Used in `_ship.sql_bulk`, which also compares the columns of the tables ``metrics`` and ``latest_metrics``."""

HARD_DELETE = MLFLOW.part(
    "mlflow.store.tracking.sqlalchemy_store:SqlAlchemyStore._hard_delete_run",
    lost="`autogen-team doctor` leaves its deleted trial run in the database until `mlflow gc` is called",
)

REGISTERED = MLFLOW.part(
    "mlflow.tracking.client:MlflowClient._get_registry_client",
    "mlflow.store.model_registry.sqlalchemy_store:MlflowClient",
    lost="`autogen-team sync` does not copy registered models and prompts",
)
"""`MlflowClient` itself does not return prompts as registered models, which they are. The second name is replaced while
a version is created, because a registry in a database searches for the logged model in the store of the process."""
