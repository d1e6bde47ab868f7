"""Intercepts the job's calls to MLflow, checks and masks their arguments, and writes them to the journal."""
