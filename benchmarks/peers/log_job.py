"""A job that logs: `log_job.py PAUSE` prints the cost of a log line without and with a collector.

The collector is a server in a separate process, which answers at once, and the agent sends the lines while the job goes
on. The output is JSON, in microseconds a line: for `without` and `with` the collector, the medians of many blocks of
lines as the caller sees them (`wall`), and as the CPU time of all threads of the job (`cpu`). The sink is a file. PAUSE
is the time between lines, in seconds. All lines must arrive.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

BLOCK, ROUNDS = 200, 5
BLOCKS_APART, BLOCKS_IN_A_ROW = 20, 400
SERVER = """
import http.server, sys
lines = 0
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        global lines
        lines += self.rfile.read(int(self.headers["Content-Length"])).count(b"of the loop has a loss of")
        self.answer(b"")
    def do_GET(self):
        self.answer(str(lines).encode())
    def answer(self, body):
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


def block(service: object, pause: float) -> tuple[float, float]:
    """Return the time and the CPU time of a line in microseconds, with a pause between lines."""
    logger = service.logger()
    spent = 0.0
    used = time.process_time()
    for number in range(BLOCK):
        began = time.perf_counter()
        logger.info("step {} of the loop has a loss of {}", number, 0.25)  # noqa: PLE1205 - loguru's format
        spent += time.perf_counter() - began
        if pause:
            time.sleep(pause)
    return spent / BLOCK * 1e6, (time.process_time() - used) / BLOCK * 1e6


def main() -> None:
    """Log, and print the figures."""
    from autogen_team.io.services import LoggerService

    pause = float(sys.argv[1])
    blocks = BLOCKS_APART if pause else BLOCKS_IN_A_ROW
    collector = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    uri = f"http://127.0.0.1:{collector.stdout.readline().strip()}"
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = uri
    found: dict[str, list[tuple[float, float]]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            for kind, figures in found.items():
                sink = Path(folder, f"{kind}.log")
                with LoggerService(sink=sink, otlp=kind == "with", run_log=False) as service:
                    block(service, pause)
                    figures += [block(service, pause) for _ in range(blocks)]
    with urllib.request.urlopen(uri) as answer:
        arrived, sent = int(answer.read()), ROUNDS * (blocks + 1) * BLOCK
    collector.kill()
    if arrived != sent:
        raise RuntimeError(f"the collector has {arrived} of {sent} lines")
    medians = {kind: [statistics.median(one) for one in zip(*figures, strict=True)] for kind, figures in found.items()}
    print(json.dumps({kind: {"wall": wall, "cpu": cpu} for kind, (wall, cpu) in medians.items()}))


if __name__ == "__main__":
    main()
