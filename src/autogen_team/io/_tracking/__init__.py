"""The tracking engine: the only package that imports mlflow at run time."""
