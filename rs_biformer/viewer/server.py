"""The page over HTTP, for this machine: pictures, numbers and a handful of files, nothing else.

What is served is what the view was given. No part of a request becomes a path: files of the page are read once and
known by name, layers by key, all else is numbers. Only GET is answered, nothing can be changed. A page of another site
cannot read what is served here, as no answer allows it to (same origin), nor embed it; one that lets its own name point
here (DNS rebinding) is told by its Host header. So no token is needed: what whoever can connect may see is what the
user has asked to be shown.
"""

import ipaddress
import json
import logging
import math
import os
import re
import secrets
import socket
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from io import BytesIO
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window
from rs_biformer.machine import machine_cores
from rs_biformer.raster.paths import without_access
from rs_biformer.raster.pyramid import PICTURE, level_grid
from rs_biformer.raster.source import Closing
from rs_biformer.viewer.layers import Picture
from rs_biformer.viewer.view import View

FIRST_PORT, PORTS = 8765, 100
"""Where a free port is looked for, and how many are tried."""

_LOG = logging.getLogger(__name__)
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_POLICY = {
    # the one data: picture is the map library's, a blank that ends the loading of a tile
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_TILE = re.compile(r"/tiles/([a-z]{1,20})/(\d{1,3})/(\d{1,7})/(\d{1,7})\.png", re.ASCII)
_IDLE_SECONDS = 60

Answer = tuple[int, str, bytes, str]
"""Status, type, body, and how long it may be kept."""
_KEEP, _FRESH = "private, max-age=86400", "no-store"


class Site(Closing):
    """What is answered to each request, as a function of its path alone: `answer`. Pictures are made in a few threads.

    `run` is part of the addresses of pictures, so that a browser never shows those of an earlier view.
    """

    def __init__(self, view: View) -> None:
        self.view, self.run = view, secrets.token_hex(4)
        self._files = _page_files()
        self._pool = ThreadPoolExecutor(machine_cores() + 1, thread_name_prefix="viewer")

    def start(self) -> None:
        """Begin what takes long."""
        self._pool.submit(self.view.work).add_done_callback(_tell_failure)

    def close(self) -> None:
        """End the threads and close the view."""
        self.view.stop()
        self._pool.shutdown(cancel_futures=True)
        self.view.close()

    def answer(self, target: str) -> Answer:
        """The answer to a GET of a path with its query; what nothing is known by is not found."""
        parts = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if parts.path in self._files:
            kind, body = self._files[parts.path]
            return HTTPStatus.OK, kind, body, _FRESH
        if match := _TILE.fullmatch(parts.path):
            return self._tile(match[1], *(int(part) for part in match.groups()[1:]), only=query.get("only"))
        found: dict[str, Callable[[], dict[str, Any]]] = {
            "/api/view": lambda: {**self.view.describe(), "run": self.run},
            "/api/state": self.view.state,
            "/api/point": lambda: self._point(query),
        }
        if parts.path not in found:
            return _told(HTTPStatus.NOT_FOUND, "there is nothing here")
        try:
            return _json(HTTPStatus.OK, self._pool.submit(found[parts.path]).result())
        except ConfigError as error:
            return _told(HTTPStatus.BAD_REQUEST, str(error))
        except RasterError as error:
            return _told(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))

    def _point(self, query: dict[str, str]) -> dict[str, Any]:
        try:
            col, row = float(query["col"]), float(query["row"])
        except (KeyError, ValueError):
            raise ConfigError("give numbers: /api/point?col=12.5&row=7.5") from None
        if not (abs(col) < 1e9 and abs(row) < 1e9):  # NaN too
            raise ConfigError("col and row are pixels of the map")
        return self.view.tell(col, row)

    def _tile(self, key: str, level: int, row: int, col: int, *, only: str | None) -> Answer:
        layer = self.view.layers.get(key)
        if layer is None or level > self.view.frame.levels:
            return _told(HTTPStatus.NOT_FOUND, "there is no such layer or level")
        grid = level_grid(self.view.frame.grid, level)
        top, left = row * PICTURE, col * PICTURE
        if top >= grid.height or left >= grid.width:
            return _told(HTTPStatus.NOT_FOUND, "this lies outside of the map")
        if only is not None and not (re.fullmatch("[0-9]{1,3}", only) and int(only) < len(self.view.schema)):
            return _told(HTTPStatus.BAD_REQUEST, "there is no such class")
        window = Window(top, left, min(PICTURE, grid.height - top), min(PICTURE, grid.width - left))
        try:
            picture = self._pool.submit(layer.draw, level, window, None if only is None else int(only)).result()
        except RasterError as error:
            return _told(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        if picture is None:
            return HTTPStatus.OK, "image/png", _EMPTY, _FRESH
        return HTTPStatus.OK, "image/png", _png(picture), _KEEP


def _tell_failure(work: "Future[None]") -> None:
    if not work.cancelled() and (error := work.exception()) is not None:
        _LOG.error("areas and places are not known", exc_info=error)


def _page_files() -> dict[str, tuple[str, bytes]]:
    """The files of the page by the path of their address: type and bytes."""
    folder = resources.files("rs_biformer.viewer") / "static"
    names = {"/": "index.html", **{f"/{name}": name for name in ("viewer.css", "viewer.js", "icon.svg")}}
    names |= {f"/leaflet/{name}": f"leaflet/{name}" for name in ("leaflet.js", "leaflet.css")}
    files = {}
    for path, name in names.items():
        kind = _TYPES[name[name.rindex(".") :]]
        files[path] = (f"{kind}; charset=utf-8", (folder / name).read_bytes())
    return files


def _json(status: int, data: Any) -> Answer:
    return status, "application/json", json.dumps(_finite(data)).encode(), _FRESH


def _told(status: int, message: str) -> Answer:
    return _json(status, {"error": without_access(message)})


def _finite(data: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, list | tuple) else data


def _png(picture: Picture) -> bytes:
    """A picture of at most PICTURE pixels' side, filled up with nothing."""
    whole = np.zeros((PICTURE, PICTURE, 4), np.uint8)
    whole[: picture.shape[0], : picture.shape[1]] = picture
    buffer = BytesIO()
    Image.fromarray(whole).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


_EMPTY = _png(np.zeros((1, 1, 4), np.uint8))


def allows_host(header: str, host: str) -> bool:
    """Whether a request with this Host header is meant for a server at this host.

    A page of another site can point its own name here, but its browser then says that name. So a server of this machine
    alone is called localhost or by a loopback address; one that others may reach by any address, by its own name or
    that which it was given.

    >>> allows_host("localhost:8765", "127.0.0.1"), allows_host("evil.example:8765", "127.0.0.1")
    (True, False)
    """
    named = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]{1,5})?", header.lower(), re.ASCII)
    if named is None:
        return False
    name = named[1] or named[2]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return not is_loopback(host) and name in (host.lower(), socket.gethostname().lower())
    return address.is_loopback or not is_loopback(host)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server at this host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "rs-biformer", ""
    timeout = _IDLE_SECONDS
    server: "Server"

    def do_GET(self) -> None:  # noqa: N802 - as the library calls it
        named = self.headers.get_all("Host") or []
        if len(named) != 1 or not allows_host(named[0], self.server.host):
            status, kind, body, keep = _told(HTTPStatus.MISDIRECTED_REQUEST, "this server has another name")
        else:
            try:
                status, kind, body, keep = self.server.site.answer(self.path)
            except ValueError:  # an address that is none
                status, kind, body, keep = _told(HTTPStatus.BAD_REQUEST, "this is no address")
        self.send_response(status)
        for name, value in {**_POLICY, "Content-Type": kind, "Cache-Control": keep}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A line of text, without the page of HTML that the library writes, which repeats the request."""
        body = f"{code}\n".encode()
        self.send_response(HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else code)
        for name, value in {**_POLICY, "Allow": "GET", "Content-Type": "text/plain", "Connection": "close"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as the library calls it
        _LOG.debug(format, *args)


class Server(ThreadingHTTPServer):
    """A site at a host and a port, to be run by `serve_forever`; a context manager.

    port: None for the first free one from FIRST_PORT on; 0 for any.

    Raises ConfigError when the port is taken, or the host is not this machine's.
    """

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # on Windows it would share a port that another program listens on

    def __init__(self, site: Site, host: str = "127.0.0.1", port: int | None = None) -> None:
        self.site, self.host = site, host
        try:
            family, *_, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        except (OSError, UnicodeError):
            raise ConfigError(f"--host {host} is no address of this machine; leave it out, or use 0.0.0.0") from None
        self.address_family = family
        wanted = range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else [port]
        for number in wanted:
            try:
                super().__init__((str(address[0]), number), _Handler)
                return
            except OSError as error:
                reason = error.strerror
            except OverflowError:
                reason = "ports are 0 to 65535"
        what = f"port {port} cannot" if port is not None else f"none of the ports {wanted[0]} to {wanted[-1]} can"
        raise ConfigError(f"{what} be had at {host}: {reason}; choose another with --port, or leave it out")

    @property
    def url(self) -> str:
        """The address to open."""
        host, port = str(self.server_address[0]), self.server_address[1]
        if host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def server_bind(self) -> None:
        """Bind, without looking up the name of the host, which may ask a network."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error of ours; anything else is told in the log."""
        away = isinstance(sys.exception(), ConnectionError | TimeoutError)
        _LOG.log(logging.DEBUG if away else logging.ERROR, "a request from %s failed", client_address, exc_info=True)
