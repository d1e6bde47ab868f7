"""The services of a job: logging, alerts and MLflow tracking.

A service is its configuration: immutable fields from arguments, environment variables or `.env`. It runs between
`start` and `stop`, or inside `with`. Separate engines do the work.
"""

from __future__ import annotations

from autogen_team._services.alerts import AlertsService
from autogen_team._services.base import Service
from autogen_team._services.logger import LoggerService
from autogen_team._services.tracking import MlflowService

__all__ = ["AlertsService", "LoggerService", "MlflowService", "Service"]
