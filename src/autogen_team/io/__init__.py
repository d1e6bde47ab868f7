"""Input and output of a job: the services, and the variables of the environment."""
