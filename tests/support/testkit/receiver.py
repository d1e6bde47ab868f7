"""A real receiver of OpenTelemetry's protocol over HTTP."""

from __future__ import annotations

import gzip
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

KEY = "example-collector-key"
"""The value of the header `x-api-key` that the receiver requires."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True


class Receiver:
    """A collector that keeps received spans and log lines; it may start again on the port of an earlier one."""

    def __init__(self, port: int = 0) -> None:
        self.answers: list[tuple[int, bytes]] = []
        """Status and content of the next answers, before those of a collector that accepts everything."""
        self.most = 10**9
        """Bytes above which a request is too large."""
        self.spans: list = []
        self.lines: list = []
        self.resources: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                body = _UNPACK[self.headers.get("Content-Encoding", "")](body)
                receiver.headers.append(dict(self.headers))
                status, answer = receiver.answer(len(body), is_right=self.headers.get("x-api-key") == KEY)
                if status == 200:
                    receiver.take(self.path, body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self._server = _Server(("127.0.0.1", port), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, size: int, *, is_right: bool) -> tuple[int, bytes]:
        """Return status and content of the answer to a request of this size, with or without the right key."""
        if not is_right:
            return 401, b""
        if size > self.most:
            return 413, b""
        return self.answers.pop(0) if self.answers else (200, b"")

    def take(self, path: str, body: bytes) -> None:
        """Keep the content of a request."""
        if path == "/v1/traces":
            request = ExportTraceServiceRequest.FromString(body)
            groups = request.resource_spans
            self.spans += [span for group in groups for scope in group.scope_spans for span in scope.spans]
        else:
            assert path == "/v1/logs"
            request = ExportLogsServiceRequest.FromString(body)
            groups = request.resource_logs
            self.lines += [line for group in groups for scope in group.scope_logs for line in scope.log_records]
        self.resources += [values(group.resource.attributes) for group in groups]

    @property
    def bodies(self) -> list[str]:
        """The texts of the received lines, in the order in which they arrived."""
        return [line.body.string_value for line in self.lines]

    def close(self) -> None:
        """Stop the collector."""
        self._server.shutdown()
        self._server.server_close()


def values(attributes) -> dict:
    """Return attributes as a dict."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value") or "string_value") for one in attributes}


_UNPACK = {"": bytes, "gzip": gzip.decompress, "deflate": zlib.decompress}
