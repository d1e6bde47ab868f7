"""Input and output of a job: the services and the environment variables."""
