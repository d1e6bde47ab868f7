"""Data waiting on disk: the journals of processes, their records and readers. Nothing here loads MLflow."""
