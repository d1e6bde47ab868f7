"""The three services, one module each; import them from `autogen_team.io.services`."""
