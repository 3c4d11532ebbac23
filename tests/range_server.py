"""A web server for tests that answers range requests: `python range_server.py FOLDER` prints its port and serves.

It is a process of its own, as GDAL keeps Python's lock while it waits for an answer. `/_sent` tells how many bytes of
files were sent, and `/_busy?N` makes the next N answers 503.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen


class _Server(ThreadingHTTPServer):
    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.busy, self.sent = root, 0, 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        if self.path == "/_sent":
            return self._answer(200, str(self.server.sent).encode())
        if self.path.startswith("/_busy?"):
            self.server.busy = int(self.path.partition("?")[2])
            return self._answer(200, b"")
        if self.server.busy:
            self.server.busy -= 1
            return self._answer(503, b"")
        path = self.server.root / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            return self._answer(404, b"")
        content, wanted, facts = path.read_bytes(), self.headers.get("Range"), path.stat()
        state = {"ETag": f'"{facts.st_mtime_ns:x}"', "Last-Modified": formatdate(facts.st_mtime, usegmt=True)}
        if wanted is None:
            return self._answer(200, content, state)
        first, last = wanted.removeprefix("bytes=").split("-")
        part = content[int(first) : int(last) + 1 if last else None]
        span = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        self._answer(206, part, {"Content-Range": span} | state)
        self.server.sent += len(part)

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Accept-Ranges": "bytes", "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server for the files of a folder."""
    process = subprocess.Popen([sys.executable, __file__, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def ask(address: str) -> bytes:
    """What the server answers."""
    with urlopen(address, timeout=30) as answer:
        return answer.read()


if __name__ == "__main__":
    server = _Server(Path(sys.argv[1]))
    print(server.server_port, flush=True)
    server.serve_forever()
