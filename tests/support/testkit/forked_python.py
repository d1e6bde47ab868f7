"""`python` and `autogen-team` for shell scripts: request a process from a fork server and exit with its status."""

import json
import os
import signal
import socket
import sys


def main() -> None:
    """Run the command as `python` or `autogen-team`, depending on the name of this file."""
    arguments = sys.argv[1:]
    if sys.argv[0].rpartition("/")[2] == "autogen-team":
        arguments = ["-m", "autogen_team", *arguments]
    request = {
        "arguments": arguments,
        "folder": os.getcwd(),  # noqa: PTH109 - importing pathlib would double the start-up time
        "environment": dict(os.environ),
        "group": os.getpgrp(),
        "inherited": [],
        "ignored": [],
    }
    with open(os.environ["FORK_SERVERS"] + "/session") as file:  # noqa: PTH123 - as above
        is_in_session = int(file.read()) == os.getsid(0)
    is_plain = arguments and (not arguments[0].startswith("-") or arguments[0] in {"-c", "-m"})
    if not is_in_session or not is_plain:
        os.execv(sys.executable, [sys.executable, *arguments])
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(os.environ["FORK_SERVERS"] + "/job")
    socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
    pid = int(connection.recv(64))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    status = int(connection.recv(64))
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    sys.exit(os.WEXITSTATUS(status))


main()
