"""Every method of MLflow's stores, and its treatment.

The replacement stores get every call to an MLflow store. A method that is missing here is newer than this module: it
is called anyway, with secrets redacted from its arguments, and one warning says so.
`tests/io/tracking/test_manifest.py` compares this module with MLflow's own classes.

- `journalled`: written to the journal, redacted. Without a journal: redacted.
- `redacted`: called at once, with secrets redacted from its arguments. This includes lookups by name: a name that was
  redacted when it was stored is found again under the name that the job uses.
- `flush first`: called after earlier entries are delivered; its arguments are not stored.
- `passed`: called unchanged. Its arguments are ids and numbers, a credential for MLflow to keep, or a trace. The module
  `traces` redacts a trace on its way to any store, and writes it to the journal.

Methods in `of_traces` are called after the traces that have ended are delivered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Treatment: TypeAlias = Literal["journalled", "redacted", "flush first", "passed"]


@dataclass(frozen=True, slots=True)
class Rule:
    """Treatment of one method."""

    treatment: Treatment
    kept: frozenset[str] = frozenset()
    """Arguments that are not redacted, because MLflow needs them as they are: addresses and credentials."""
    of_traces: bool = False
    """Whether the method reads or changes traces, so that ended traces must be delivered first."""

    @property
    def redacts(self) -> bool:
        """Whether secrets are redacted from the arguments."""
        return self.treatment in ("journalled", "redacted")


UNKNOWN = Rule("redacted")
"""The rule for a method that no manifest lists."""


def _rules(
    *,
    journalled: str = "",
    redacted: str = "",
    flush_first: str = "",
    passed: str = "",
    kept: Mapping[str, Iterable[str]],
    of_traces: str = "",
) -> dict[str, Rule]:
    groups: tuple[tuple[Treatment, str], ...] = (
        ("journalled", journalled),
        ("redacted", redacted),
        ("flush first", flush_first),
        ("passed", passed),
    )
    return {
        name: Rule(treatment, frozenset(kept.get(name, ())), name in of_traces.split())
        for treatment, names in groups
        for name in names.split()
    }


TRACKING = _rules(
    journalled="""
        delete_tag log_batch log_batch_async log_inputs log_metric log_metric_async log_param log_param_async
        set_tag set_tag_async update_run_info
    """,
    redacted="""
        create_assessment create_dataset create_experiment create_gateway_endpoint create_gateway_guardrail
        create_gateway_model_definition create_issue create_label_schema create_logged_model
        create_mcp_access_endpoint create_mcp_server create_mcp_server_version create_review_queue create_run
        delete_mcp_access_endpoint delete_mcp_server delete_mcp_server_alias delete_mcp_server_tag
        delete_mcp_server_version delete_mcp_server_version_tag delete_scorer
        deprecated_end_trace_v2 deprecated_start_trace_v2
        get_experiment_by_name get_gateway_endpoint get_gateway_model_definition get_label_schema_by_name
        get_latest_mcp_server_version get_mcp_access_endpoint get_mcp_server get_mcp_server_version
        get_mcp_server_version_by_alias get_or_create_user_queue get_review_queue_by_name get_scorer
        link_mcp_server_versions_to_trace link_prompts_to_trace list_scorer_versions
        log_logged_model_params record_logged_model register_scorer rename_experiment
        search_mcp_access_endpoints search_mcp_server_versions
        set_dataset_tags set_experiment_tag set_gateway_endpoint_tag set_logged_model_tags
        set_mcp_server_alias set_mcp_server_tag set_mcp_server_version_tag set_model_versions_tags
        set_review_queue_item_status
        update_assessment update_gateway_endpoint update_gateway_model_definition update_issue update_label_schema
        update_mcp_access_endpoint update_mcp_server update_mcp_server_version update_review_queue
        upsert_dataset_records upsert_online_scoring_config
    """,
    flush_first="""
        _search_runs delete_logged_model delete_run end_async_logging finalize_logged_model flush_async_logging
        get_all_metrics get_all_params get_all_tags get_logged_model get_max_step_for_metric
        get_metric_history get_metric_history_bulk get_metric_history_bulk_interval
        get_metric_history_bulk_interval_from_steps get_run log_outputs restore_run search_logged_models search_runs
        shut_down_async_logging
    """,
    passed="""
        add_dataset_to_experiments add_guardrail_to_endpoint add_items_to_review_queue archive_traces
        attach_model_to_endpoint batch_get_trace_infos batch_get_traces calculate_trace_filter_correlation
        create_budget_policy create_endpoint_binding create_gateway_secret
        delete_assessment delete_budget_policy delete_dataset delete_dataset_records delete_dataset_tag
        delete_endpoint_binding delete_experiment delete_experiment_tag delete_gateway_endpoint
        delete_gateway_endpoint_tag delete_gateway_guardrail delete_gateway_model_definition delete_gateway_secret
        delete_label_schema delete_logged_model_tag delete_review_queue delete_trace_tag delete_traces
        detach_model_from_endpoint
        filter_active_experiment_ids find_completed_sessions
        get_active_online_scorers get_all_experiment_tags get_assessment get_budget_policy get_dataset
        get_dataset_experiment_ids get_experiment get_gateway_guardrail get_host_creds get_issue get_label_schema
        get_mcp_server_versions_for_trace get_online_scoring_configs get_online_trace_details get_review_queue
        get_secret_info get_trace get_trace_info link_traces_to_run
        list_budget_policies list_endpoint_bindings list_endpoint_guardrail_configs list_gateway_endpoints
        list_gateway_guardrails list_gateway_model_definitions list_label_schemas list_review_queue_items
        list_review_queues list_scorers list_scorers_across_experiments list_secret_infos log_spans log_spans_async
        query_trace_metrics remove_dataset_from_experiments remove_guardrail_from_endpoint
        remove_items_from_review_queue resolve_endpoint_in_scorer resolve_trace_archival_config restore_experiment
        sanitize_metric_value search_datasets search_entities_by_destination search_entities_by_source
        search_experiments search_issues search_mcp_servers search_traces set_trace_tag start_trace
        sum_gateway_trace_cost unlink_traces_from_run
        update_budget_policy update_endpoint_guardrail_config update_gateway_secret
    """,
    kept={
        "create_experiment": ["artifact_location"],
        "create_mcp_access_endpoint": ["url"],
        "update_mcp_access_endpoint": ["url"],
        "search_mcp_access_endpoints": ["filter_string"],
        "search_mcp_server_versions": ["filter_string"],
        "upsert_online_scoring_config": ["filter_string"],
    },
    of_traces="""
        archive_traces batch_get_trace_infos batch_get_traces calculate_trace_filter_correlation create_assessment
        delete_assessment delete_trace_tag delete_traces find_completed_sessions get_assessment
        get_mcp_server_versions_for_trace get_online_trace_details get_trace get_trace_info
        link_mcp_server_versions_to_trace link_prompts_to_trace link_traces_to_run query_trace_metrics search_traces
        set_trace_tag unlink_traces_from_run update_assessment
    """,
)
"""The tracking store: `mlflow.store.tracking.abstract_store.AbstractStore`, and additions of MLflow's own stores."""

REGISTRY = _rules(
    redacted="""
        copy_model_version create_model_version create_prompt create_prompt_version create_registered_model
        create_webhook delete_model_version delete_model_version_tag delete_prompt delete_prompt_alias
        delete_prompt_tag delete_prompt_version delete_prompt_version_tag delete_registered_model
        delete_registered_model_alias delete_registered_model_tag get_latest_versions get_model_version
        get_model_version_by_alias get_model_version_download_uri get_prompt get_prompt_version
        get_prompt_version_by_alias get_registered_model link_prompt_version_to_model link_prompt_version_to_run
        link_prompts_to_trace rename_registered_model search_prompt_versions set_model_version_tag set_prompt_alias
        set_prompt_tag set_prompt_version_tag set_registered_model_alias set_registered_model_tag
        transition_model_version_stage update_model_version update_registered_model update_webhook
    """,
    passed="""
        delete_webhook get_all_registered_model_aliases_from_path get_all_registered_model_tags_from_path get_webhook
        list_registered_models list_webhooks list_webhooks_by_event
        search_model_versions search_prompts search_registered_models test_webhook
    """,
    kept={
        "create_model_version": ["local_model_path"],
        "create_webhook": ["secret", "url"],
        "update_webhook": ["secret", "url"],
    },
)
"""The model registry: `mlflow.store.model_registry.abstract_store.AbstractStore`, and additions of MLflow's stores."""
