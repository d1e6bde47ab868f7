"""Upload the files of traces: attachments, and the spans if the store keeps them as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracing.utils.artifact_utils import get_artifact_uri_for_trace
from mlflow.utils.uri import add_databricks_profile_info_to_artifact_uri

from autogen_team._ship import mlflow_backend
from autogen_team._spool.records import Entry

SPANS = "traces.json"
_artifact_uri: Any = get_artifact_uri_for_trace
_with_profile: Any = add_databricks_profile_info_to_artifact_uri


def upload(client: mlflow.MlflowClient, path: Path, entry: Entry) -> None:
    """Upload a file of a trace that already exists in the store."""
    uri = client.tracking_uri
    info = mlflow_backend.plain_store(uri).get_trace_info(entry["trace"])
    repository: Any = get_artifact_repository(_with_profile(_artifact_uri(info), uri), tracking_uri=uri)
    if entry["name"] == SPANS:
        repository.upload_trace_data(path.read_text(encoding="utf-8"))
    else:
        repository.upload_attachment(entry["name"], path.read_bytes())
