"""HTTP on the loopback, by the standard library: one request a connection, limits on size and time, errors in JSON."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PATH = re.compile(r"/(join|work|update|failed)/([0-9]{1,9})")
CHUNK = 1 << 16

Answer = Callable[[str, int, str, Callable[[], bytes]], tuple[int, list]]


class Refused(Exception):
    """A request that is not served: an HTTP status and one sentence."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Listener:
    """Answers requests in threads until :meth:`stop`.

    answer: ``(action, client, token, body) -> (status, buffers)``; ``body()`` reads the request's body, and may raise
    :class:`Refused` itself. patience: seconds until a request must be whole. most: bytes that a body may have.
    """

    def __init__(self, host: str, port: int, patience: float, most: int, answer: Answer):
        class Handler(_Handler):
            timeout = patience

        Handler.most, Handler.answer = most, staticmethod(answer)
        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self.address = f"http://{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self, wait: bool = True) -> None:
        """Stop listening; with ``wait``, after a moment in which clients hear that it is over."""
        if wait:
            time.sleep(1.0)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "fl-notebooks", ""
    most: int
    answer: Answer

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def _serve(self, method: str) -> None:
        try:
            status, buffers = self._answered(method)
        except Refused as refused:
            self._read(keep=False)  # closing with a body unread would take the answer away from the client
            status, buffers = refused.status, [json.dumps({"error": str(refused)}).encode()]
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(sum(len(buffer) for buffer in buffers)))
            self.end_headers()
            for buffer in buffers:
                self.wfile.write(buffer)
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _answered(self, method: str) -> tuple[int, list]:
        match = PATH.fullmatch(self.path)
        if match is None or (method == "GET") != (match[1] == "work"):
            raise Refused(404, f"there is no {method} {self.path[:100]}")
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not token:
            raise Refused(401, "there is no token: want the header Authorization: Bearer <token>")
        return self.answer(match[1], int(match[2]), token, lambda: self._read(keep=True))

    _done = False

    def _read(self, keep: bool) -> bytes:
        """The body, whole, within the limits; with ``keep`` False read, where it is small enough, and thrown away."""
        if self._done:
            return b""
        self._done = True
        announced = self.headers.get("Content-Length", "")
        if not keep and not (announced.isdecimal() and int(announced) <= self.most):
            return b""
        if not announced.isdecimal():
            raise Refused(411, "want the header Content-Length")
        if (length := int(announced)) > self.most:
            raise Refused(413, f"the body has {length} bytes: at most {self.most}")
        parts, missing, until = [], length, time.monotonic() + self.timeout
        try:
            while missing and (part := self.rfile.read1(min(missing, CHUNK))):
                if time.monotonic() > until:
                    raise TimeoutError
                missing -= len(part)
                if keep:
                    parts.append(part)
        except (TimeoutError, ConnectionError):
            if keep:
                raise Refused(408, f"the body did not arrive within {self.timeout:g} s") from None
        if missing and keep:
            raise Refused(400, f"the body has {length - missing} bytes, Content-Length announces {length}")
        return b"".join(parts)

    def log_message(self, format: str, *args) -> None:
        """Nothing: the server's caller hears of what matters."""
