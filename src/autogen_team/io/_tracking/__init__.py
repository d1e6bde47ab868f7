"""The tracking engine: the only place that imports mlflow."""
