"""A relay that forwards at most RATE bytes per second to a local port: `throttle.py PORT TARGET RATE`."""

from __future__ import annotations

import socket
import sys
import threading
import time
from contextlib import suppress

BLOCK = 2**16


def relay(source: socket.socket, target: socket.socket, rate: float | None) -> None:
    """Forward bytes, at most `rate` per second, until one side closes."""
    due = time.monotonic()
    with suppress(OSError):
        while data := source.recv(BLOCK):
            if rate is not None:
                due = max(due, time.monotonic() - 0.1) + len(data) / rate
                time.sleep(max(0.0, due - time.monotonic()))
            target.sendall(data)
    for one in (source, target):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def main(port: int, target: int, rate: float) -> None:
    """Relay connections until the process is killed."""
    listener = socket.create_server(("127.0.0.1", port))
    while True:
        client, _ = listener.accept()
        server = socket.create_connection(("127.0.0.1", target))
        threading.Thread(target=relay, args=(client, server, rate), daemon=True).start()
        threading.Thread(target=relay, args=(server, client, None), daemon=True).start()


main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
