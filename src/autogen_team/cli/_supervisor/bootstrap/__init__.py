"""The folder that the supervisor puts first on the job's PYTHONPATH."""
