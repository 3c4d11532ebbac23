"""The server: what it answers, what it refuses, and how the command begins and ends."""

import hashlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
from io import BytesIO

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasters import COLOURS, write_map

import rs_biformer.viewer
from rs_biformer.errors import ConfigError
from rs_biformer.viewer.server import Server, Site, allows_host
from rs_biformer.viewer.view import View

INDEX = np.random.default_rng(5).integers(0, 4, (300, 420)).astype(np.uint8)
ROWS, COLS = np.mgrid[:280, :400]
SCENE = np.stack([128 + 100 * np.sin(COLS / 20), 128 + 100 * np.cos(ROWS / 15), (ROWS + COLS) / 3]).astype(np.uint8)
EVIL = "<img src=x onerror=alert(1)>.tif"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")

    def write(name, array, **options):
        bands = array if array.ndim == 3 else array[None]
        profile = {"crs": "EPSG:25832", "transform": from_origin(500_000, 5_400_000, 0.5, 0.5)} | options
        height, width = bands.shape[1:]
        with rasterio.open(
            folder / name, "w", driver="GTiff", height=height, width=width, count=len(bands), dtype="uint8", **profile
        ) as sink:
            sink.write(bands)
        return folder / name

    path = write_map(write, "map.tif", INDEX)
    with rasterio.open(path) as file:
        left, _, _, top = transform_bounds(file.crs, "EPSG:4326", *file.bounds)
    scene = write(EVIL, SCENE, crs="EPSG:4326", transform=from_origin(left, top, 6e-6, 4.5e-6))
    (folder / "secret.txt").write_text("secret")
    with Site(View(path, scene)) as site, Server(site, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, path, method="GET", host=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Host": host or f"127.0.0.1:{server.server_address[1]}", **headers}.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def picture(body):
    return np.asarray(Image.open(BytesIO(body)).convert("RGBA"))


def test_pictures_are_the_pixels_of_the_rasters(server):
    _, body = ask(server, "/tiles/map/0/1/1.png")
    expected = np.array(COLOURS, np.uint8)[INDEX[256:, 256:]]
    assert np.array_equal(picture(body)[:44, :164, :3], expected)
    assert not picture(body)[44:, :, 3].any()
    _, body = ask(server, "/tiles/map/1/0/0.png")
    assert np.array_equal(picture(body)[:150, :210, :3], np.array(COLOURS, np.uint8)[INDEX[1::2, 1::2]])


def test_a_scene_in_another_crs_is_drawn_where_gdal_would_warp_it(server):
    grid, scene = server.site.view.frame.grid, server.site.view.layers["scene"].pyramids[0].source.path
    _, body = ask(server, "/tiles/scene/0/0/0.png")
    with (
        rasterio.open(scene) as file,
        WarpedVRT(file, crs=grid.crs, transform=grid.transform, height=grid.height, width=grid.width,
                  resampling=Resampling.bilinear) as warped,
    ):  # fmt: skip
        expected = warped.read(window=((0, 256), (0, 256))).astype(int)
    shown = np.moveaxis(picture(body)[..., :3].astype(int), -1, 0)
    seen = picture(body)[..., 3] > 0
    seen[:3], seen[:, :3] = False, False
    assert seen.mean() > 0.8 and np.percentile(np.abs(shown - expected)[:, seen], 99) <= 3


def test_the_page_and_what_it_asks_for_come_from_here_and_tell_browsers_to_keep_it_so(server):
    answer, body = ask(server, "/")
    assert answer.status == 200 and b"<script src=" in body and b"http" not in body
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in answer.headers
    for path in ("/viewer.js", "/viewer.css", "/icon.svg", "/leaflet/leaflet.js", "/leaflet/leaflet.css"):
        assert ask(server, path)[0].status == 200
    facts = json.loads(ask(server, "/api/view")[1])
    assert [one["name"] for one in facts["classes"]] == ["road", "roof", "wood", "water"]
    assert facts["layers"][0]["title"] == EVIL.removesuffix(".tif")  # set as text by the script
    told = json.loads(ask(server, "/api/point?col=30.5&row=20.5")[1])
    assert told["layers"]["map"]["class"] == INDEX[20, 30] and len(told["lonlat"]) == 2
    assert json.loads(ask(server, "/api/state")[1])["done"] is False


def test_texts_never_become_html():
    static = rs_biformer.viewer.__path__[0] + "/static/viewer.js"
    with open(static, encoding="utf-8") as file:
        script = file.read()
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "bindPopup", "bindTooltip"):
        assert way not in script


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt", "/%2e%2e/secret.txt", "/static/../viewer.py", "//etc/passwd", "/leaflet/../viewer.js",
        "/leaflet/LICENSE.txt", "/tiles/../../secret/0/0/0.png", "/tiles/map/0/0/0.png/..", "/tiles/secret/0/0/0.png",
        "/tiles/map/99/0/0.png", "/tiles/map/0/9/0.png", "/tiles/map/-1/0/0.png", "/tiles/map/0/0/0.jpg", "/api",
        "/favicon.ico",
        "/tiles/map/0/9999999999999/0.png", "/%00", "//[/",
    ],
)  # fmt: skip
def test_what_was_not_given_is_not_found(server, path):
    answer, body = ask(server, path)
    assert answer.status == 404 and b"secret" not in body and b"Traceback" not in body


@pytest.mark.parametrize(
    "path",
    ["/api/point", "/api/point?col=a&row=1", "/api/point?col=nan&row=1", "/api/point?col=1e99&row=1",
     "/tiles/map/0/0/0.png?only=4", "/tiles/map/0/0/0.png?only=-1", "/tiles/map/0/0/0.png?only=x"],
)  # fmt: skip
def test_what_is_no_request_is_refused(server, path):
    answer, body = ask(server, path)
    assert answer.status == 400 and "error" in json.loads(body)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PATCH"])
def test_only_get_is_answered(server, method):
    answer, body = ask(server, "/api/view", method)
    assert answer.status == 405 and answer.headers["Allow"] == "GET" and b"classes" not in body


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.1.7", "[::1",
     "a b", "127.0.0.1@evil.example", "evil.example#localhost", "[evil]", "localhost:", "\xe9", "[::ffff:10.0.0.1]"],
)  # fmt: skip
def test_a_name_that_is_not_this_machine_is_refused(server, host):
    answer, body = ask(server, "/api/view", host=host)
    assert answer.status in (400, 421) and b"classes" not in body


def test_no_host_or_two_are_refused(server):
    port = server.server_address[1]
    for names in (b"", b"Host: localhost\r\nHost: evil.example\r\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(b"GET /api/view HTTP/1.1\r\n" + names + b"Connection: close\r\n\r\n")
            assert connection.makefile("rb").readline().split()[1] == b"421"


def test_names_of_this_machine_are_known():
    for name in ("localhost", "localhost:1", "127.0.0.1:9", "[::1]:8765", "map.localhost:80"):
        assert allows_host(name, "127.0.0.1")
    assert allows_host("192.168.1.7:8765", "0.0.0.0") and allows_host(socket.gethostname(), "0.0.0.0")
    assert not allows_host("evil.example", "0.0.0.0") and not allows_host(socket.gethostname() + ".evil", "0.0.0.0")


def test_a_port_that_is_taken_is_told_and_without_one_the_next_is_found(server):
    taken = server.server_address[1]
    with pytest.raises(ConfigError, match=f"port {taken} cannot be had at 127.0.0.1.*--port"):
        Server(server.site, port=taken)
    with pytest.raises(ConfigError, match="0 to 65535"):
        Server(server.site, port=70_000)
    with pytest.raises(ConfigError, match="no address of this machine"):
        Server(server.site, "no.such.host.invalid")
    with Server(server.site) as one, Server(server.site) as two:
        assert one.server_address[1] != two.server_address[1]


def test_the_map_library_is_the_one_that_is_named():
    folder = rs_biformer.viewer.__path__[0] + "/static/leaflet/"
    sums = {
        "leaflet.js": "db49d009c841f5ca34a888c96511ae936fd9f5533e90d8b2c4d57596f4e5641a",
        "leaflet.css": "a7837102824184820dfa198d1ebcd109ff6d0ff9a2672a074b9a1b4d147d04c6",
    }
    for name, expected in sums.items():
        with open(folder + name, "rb") as file:
            assert hashlib.sha256(file.read()).hexdigest() == expected
    with open(folder + "LICENSE.txt", encoding="utf-8") as file:
        assert "BSD 2-Clause" in file.read()


def test_the_command_serves_until_ctrl_c_and_loads_no_torch(write_raster):
    path = write_map(write_raster, "map.tif", INDEX)
    code = (
        "import sys; from rs_biformer.cli import main; code = main(['view', sys.argv[1], '--port', '0'])\n"
        "print([name for name in ('torch', 'timm', 'pytorch_lightning') if name in sys.modules], code)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    lines = iter(process.stdout.readline, "")
    url = next(line for line in lines if line.startswith("http")).split()[0]
    port = int(url.rstrip("/").rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/tiles/map/0/0/0.png")
    with connection.getresponse() as answer:
        assert answer.status == 200 and answer.read()
    connection.close()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "[] 0" and not err
