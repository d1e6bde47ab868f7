"""The three services, a module for each; `autogen_team.io.services` is where they are imported from."""
