"""A proxy between a job and its server."""

from __future__ import annotations

import http.server
import threading
import time

import requests


class Proxy:
    """An HTTP proxy in front of a server; it can delay answers or return errors of its own."""

    def __init__(self, target: str, port: int) -> None:
        self.uri = f"http://127.0.0.1:{port}"
        self.status = 200
        self.answer = b"<html>the proxy is sorry</html>"
        self.delay = 0.0
        self.concerning = ""
        """Text in the method and path of requests that get the error, such as `PUT /api`; empty for all requests."""
        self.mentioning = b""
        """Bytes in the bodies of requests that get the error; empty for all bodies."""
        self.token = ""
        """Token that the `Authorization` header of a PUT request must contain; empty if none is needed."""
        self.refused = 0
        """Number of requests that the proxy did not forward."""
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                time.sleep(proxy.delay)
                if self.command == "PUT" and proxy.token not in self.headers.get("Authorization", ""):
                    proxy.refused += 1
                    content, status = b"who are you?", 401
                elif proxy.blocks(f"{self.command} {self.path}", body):
                    proxy.refused += 1
                    content, status = proxy.answer, proxy.status
                else:
                    answer = requests.request(self.command, target + self.path, data=body, headers=dict(self.headers))
                    content, status = answer.content, answer.status_code
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815 - names of the standard library

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def blocks(self, request: str, body: bytes) -> bool:
        """Return whether the proxy answers this request itself."""
        is_on = self.status != 200 or self.mentioning
        return bool(is_on) and self.concerning in request and self.mentioning in body

    def close(self) -> None:
        """Stop the proxy and close its socket."""
        self._server.shutdown()
        self._server.server_close()
