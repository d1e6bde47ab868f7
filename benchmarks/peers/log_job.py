"""A job that logs: `log_job.py PAUSE` prints the cost of a log line without and with a collector.

The collector is a server in a separate process, which answers at once. The output is JSON, in microseconds: the medians
of many blocks of lines, `without` and `with` the collector. The sink is a file. PAUSE is the time between lines, in
seconds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BLOCK, BLOCKS, ROUNDS = 200, 20, 5
SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


def block(service: object, pause: float) -> float:
    """Return the cost of a line in microseconds, with a pause between lines."""
    logger = service.logger()
    spent = 0.0
    for number in range(BLOCK):
        began = time.perf_counter()
        logger.info("step {} of the loop has a loss of {}", number, 0.25)  # noqa: PLE1205 - loguru's format
        spent += time.perf_counter() - began
        if pause:
            time.sleep(pause)
    return spent / BLOCK * 1e6


def main() -> None:
    """Log, and print the figures."""
    from autogen_team.io.services import LoggerService

    pause = float(sys.argv[1])
    collector = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{collector.stdout.readline().strip()}"
    found: dict[str, list[float]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            for kind, figures in found.items():
                sink = Path(folder, f"{kind}.log")
                with LoggerService(sink=sink, otlp=kind == "with", run_log=False) as service:
                    block(service, pause)
                    figures += [block(service, pause) for _ in range(BLOCKS)]
    collector.kill()
    print(json.dumps({kind: statistics.median(figures) for kind, figures in found.items()}))


if __name__ == "__main__":
    main()
