"""A small HTTP server, as a user's http handler."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.ports import free_port


class Requests:
    """A request to an HTTP handler."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, str], bytes]] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/jobs?x=1"


@contextmanager
def server(answer: Callable[[BaseHTTPRequestHandler, int], None], port: int = 0) -> Iterator[Requests]:
    """An HTTP server; `answer` gets the request and its number from 1.

    After it has ended, no outgoing connection takes its port, so that a test can start another one there.
    """
    requests = Requests()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/jobs?x=1"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.seen.append(({**self.headers}, body))
            answer(self, len(requests.seen))

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", port or free_port()), Handler)
    http.daemon_threads = True
    requests.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield requests
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def say(code: int, text: str = "", **headers: str) -> Callable[[BaseHTTPRequestHandler, int], None]:
    def answer(request: BaseHTTPRequestHandler, _number: int) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(text.encode())

    return answer
