"""Data that waits on disk: journals, their records and readers, and files to upload. Never imports MLflow."""
