"""What waits on disk: the journals of processes, their records and their readers. Nothing here loads MLflow."""
