"""The folder that the supervisor puts first on the PYTHONPATH of a job."""
