"""Intercepts what the job logs to MLflow, checks and masks it, and writes it to the journal."""
