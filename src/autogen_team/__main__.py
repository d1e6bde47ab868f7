"""Run the command line: `python -m autogen_team`."""

from autogen_team.cli import main

if __name__ == "__main__":
    main()
