"""The page in a real browser: layers load, the divider moves, the cursor tells the file's class, nothing complains."""

import json
import threading

import numpy as np
import pytest
import rasterio
from browser import Page, chromium
from rasters import NAMES, write_map

from rs_biformer.viewer.server import Server, Site
from rs_biformer.viewer.view import View

pytestmark = pytest.mark.slow
EVIL = "<b>evil<b>&lt;"
INDEX = np.zeros((700, 900), np.uint8)
INDEX[100:400, 200:500], INDEX[450:, 600:], INDEX[:, 700:720] = 1, 2, 3
TILES = "[...document.querySelectorAll('.leaflet-tile')]"
LOADED = f"document.documentElement.dataset.ready === 'yes' && {TILES}.length && {TILES}.every(t => t.complete)"
CURSOR = "document.querySelector('#cursor dd.main')?.textContent"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def site(write_raster, browser):
    rng = np.random.default_rng(0)
    label, other = INDEX.copy(), INDEX.copy()
    label[300:420, 300:620] = 3
    other[500:600, 100:300] = 1
    confidence = np.full(INDEX.shape, 240, np.uint8)
    confidence[600:640, 40:90] = 60
    probabilities = np.stack([np.where(INDEX == number, 220, 10).astype(np.uint8) for number in range(4)])
    view = View(
        write_map(write_raster, "map.tif", INDEX),
        write_raster(f"{EVIL}.tif", rng.integers(0, 255, (3, *INDEX.shape)).astype(np.uint8)),
        write_map(write_raster, "label.tif", label),
        other=write_map(write_raster, "other.tif", other),
        confidence=write_raster("confidence.tif", confidence, nodata=255),
        probabilities=write_raster("probabilities.tif", probabilities, nodata=255),
    )
    with Site(view) as site, Server(site, port=0) as server:
        site.start()
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        browser.allowed = (server.url, "data:image/gif")
        browser.complaints.clear()
        yield server.url
        browser.send("Page.navigate", url="about:blank")
        server.shutdown()
        thread.join()


def pixel_at(page: Page, x: float, y: float) -> tuple[float, float]:
    """Column and row under a point of the window, from where the first picture of the map lies on the screen."""
    script = """(() => {
      const tile = [...document.querySelectorAll('.leaflet-tile')].find(t => /tiles.map.\\d+.0.0.png/.test(t.src));
      const box = tile.getBoundingClientRect();
      return [box.left, box.top, 256 * 2 ** Number(tile.src.match(/tiles.map.(\\d+)/)[1]) / box.width];
    })()"""
    left, top, pixels = page.run(script)
    return (x - left) * pixels, (y - top) * pixels


@pytest.mark.parametrize(("width", "height", "touch"), [(1280, 800, False), (390, 800, True)])
def test_layers_load_and_nothing_complains_or_is_asked_elsewhere(browser, site, width, height, touch):
    browser.open(site, width=width, height=height, touch=touch)
    browser.wait(LOADED)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.querySelectorAll('#layers li').length") == 8
    for number in "25678":  # those that are not shown at first
        browser.press(number)
    browser.wait(f"new Set({TILES}.map(t => t.src.match(/tiles.([a-z]+)/)[1])).size === 8")
    browser.wait(LOADED)
    browser.wait("!document.querySelector('#places').hidden")
    assert browser.run(f"{TILES}.every(t => t.naturalWidth === 256)")
    browser.run("document.querySelector('#legend tbody button').click()")
    browser.wait(f"{TILES}.some(t => t.src.includes('/map/') && t.src.includes('only=0'))")
    browser.wait(LOADED)
    assert EVIL in browser.run("document.querySelector('#layers').textContent")
    assert browser.run("document.querySelectorAll('#layers b').length") == 0
    assert browser.complaints == []


def test_the_class_under_the_cursor_is_that_of_the_file(browser, site):
    browser.open(site, width=1280, height=800)
    browser.wait(LOADED)
    seen = set()
    for x, y in np.random.default_rng(1).uniform((200, 150), (760, 650), (25, 2)):
        browser.move(round(x), round(y))
        col, row = pixel_at(browser, round(x), round(y))
        expected = "no class here"
        if 0 <= row < INDEX.shape[0] and 0 <= col < INDEX.shape[1]:
            around = INDEX[max(0, int(row) - 2) : int(row) + 3, max(0, int(col) - 2) : int(col) + 3]
            if (around != around[0, 0]).any():
                continue  # the screen's pixel lies on an edge
            expected = NAMES[around[0, 0]]
            browser.wait(f"{CURSOR} === '{expected}'")
            seen.add(expected)
    assert len(seen) >= 3 and browser.complaints == []


def test_the_class_under_the_divider_is_that_of_the_file_too(browser, site):
    """It takes the cursor for 18 px on each side; what was told there was the class of the place before."""
    browser.open(site, width=1280, height=800)
    browser.wait(LOADED)
    middle = browser.run("(b => b.left + b.width / 2)(document.querySelector('#divider').getBoundingClientRect())")
    seen = set()
    for y in range(150, 650, 25):
        for x in (round(middle) - 12, round(middle), round(middle) + 12):
            browser.move(x, y)
            col, row = (int(one) for one in pixel_at(browser, x, y))
            around = INDEX[max(0, row - 2) : row + 3, max(0, col - 2) : col + 3]
            if 0 <= row < INDEX.shape[0] and 0 <= col < INDEX.shape[1] and (around == around[0, 0]).all():
                browser.wait(f"{CURSOR} === '{NAMES[around[0, 0]]}'")
                seen.add(around[0, 0])
    assert len(seen) >= 2 and browser.complaints == []


def test_the_divider_moves_by_mouse_and_keys_and_cuts_the_layers(browser, site):
    browser.open(site, width=1280, height=800)
    browser.wait(LOADED)
    place = "document.querySelector('#divider').getBoundingClientRect().left + 18"
    clip = "getComputedStyle(document.querySelector('.leaflet-other-pane')).clipPath"
    before, cut = browser.run(place), browser.run(clip)
    browser.drag((before, 400), (before - 200, 400))
    assert browser.run(place) == pytest.approx(before - 200, abs=2) and browser.run(clip) != cut
    browser.press(".")
    assert browser.run(place) > before - 190
    browser.press("s")
    assert browser.run("document.querySelector('#divider').hidden") and browser.run(clip) == "none"
    assert browser.complaints == []


@pytest.mark.parametrize(("width", "height", "touch"), [(1280, 800, False), (390, 800, True)])
def test_two_maps_side_by_side_move_together(browser, site, width, height, touch):
    browser.open(site, width=width, height=height, touch=touch)
    browser.wait(LOADED)
    browser.press("b")
    browser.press("8")  # differences, on both
    keys = (
        "[...new Set([...document.querySelectorAll('#{} .leaflet-tile')].map(t => t.src.match(/tiles.([a-z]+)/)[1]))]"
    )
    browser.wait(f"{keys.format('twin')}.length === 3 && {keys.format('map')}.length === 3")
    browser.wait(LOADED)
    assert set(browser.run(keys.format("map"))) == {"scene", "map", "changes"}
    assert set(browser.run(keys.format("twin"))) == {"scene", "other", "changes"}
    boxes = [browser.run(f"(b => [b.left, b.top, b.width, b.height])({of}.getBoundingClientRect())")
             for of in ("document.querySelector('#map')", "document.querySelector('#twin')")]  # fmt: skip
    assert boxes[0][2:] == pytest.approx(boxes[1][2:], abs=2) and boxes[0] != boxes[1]
    corner = """(id => { const pane = document.querySelector('#' + id), box = pane.getBoundingClientRect();
      const tile = [...pane.querySelectorAll('.leaflet-tile')].find(t => /tiles.scene.\\d+.0.0.png/.test(t.src));
      const at = tile.getBoundingClientRect();
      return [at.left - box.left, at.top - box.top, at.width].map(Math.round).join(); })"""
    same = f"{corner}('map') === {corner}('twin')"
    assert browser.run(same)
    before = browser.run(f"{corner}('map')")
    x, y = boxes[1][0] + boxes[1][2] / 2, boxes[1][1] + boxes[1][3] / 2
    if not touch:
        browser.drag((x, y), (x - 60, y - 40))  # on the right, and the left follows
        browser.wait(f"{corner}('map') !== '{before}' && {same}")
    browser.press("+")
    browser.wait(f"document.querySelector('#twin .leaflet-tile') && {same}")
    assert "beside=yes" in browser.run("new Promise(done => setTimeout(() => done(location.hash), 300))")
    browser.press("s")
    assert browser.run("document.querySelector('#twin').hidden && !document.querySelector('#divider').hidden")
    assert browser.complaints == []


def test_a_link_brings_back_the_view(browser, site):
    browser.open(site, width=1280, height=800)
    browser.wait(LOADED)
    browser.wait("!document.querySelector('#places').hidden")
    browser.press("n")  # the least certain place
    browser.wait("document.querySelector('.place') && /^1 of/.test(document.querySelector('#place').textContent)")
    browser.press("5")
    browser.run("document.querySelectorAll('#legend tbody button')[2].click()")
    browser.wait(
        "location.hash.includes('only=2') && location.hash.includes('zoom=1') && /confidence:1/.test(location.hash)"
    )
    told = browser.run("location.hash")
    browser.open("about:blank")
    browser.open(site + told, width=1280, height=800)
    browser.wait(LOADED)
    browser.wait(f"location.hash === {told!r}")
    col, row = (float(part) for part in told.partition("at=")[2].partition("&")[0].split(","))
    assert abs(col - 65) < 20 and abs(row - 620) < 20
    assert browser.run("[...document.querySelectorAll('#legend tbody tr')].map(r => r.className === 'faint')") == [
        True, True, False, True,
    ]  # fmt: skip
    assert browser.run(f"{TILES}.some(t => t.src.includes('/confidence/'))") and browser.complaints == []


def test_a_czech_label_as_a_map_over_its_unconverted_scene(browser, shared, tmp_path):
    """Classes in colours, over an image without overviews: what the cursor tells is what rasterio reads there."""
    colours = {"vegetation": (50, 255, 167), "unpaved road": (255, 140, 0), "paved": (109, 50, 255),
               "building": (255, 225, 50), "water": (50, 167, 255), "bare land": (166, 117, 86)}  # fmt: skip
    entries = [{"name": name, "colour": list(colour)} for name, colour in colours.items()]
    schema = tmp_path / "czech.yaml"
    schema.write_text(json.dumps({"name": "czech", "classes": entries, "ignore": {"colours": [[50, 50, 50]]}}))
    label, image = (shared / "data" / "czech" / "val" / f"VYSK122_{kind}.tif" for kind in ("label", "image"))
    with rasterio.open(label) as file:
        pixels = file.read()
    seen = set()
    with Site(View(label, image, classes=str(schema))) as site, Server(site, port=0) as server:
        site.start()
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        browser.allowed = (server.url, "data:image/gif")
        browser.complaints.clear()
        browser.open(server.url, width=1280, height=800)
        browser.wait(LOADED)
        for x, y in np.random.default_rng(2).integers((150, 100), (850, 700), (60, 2)).tolist():
            col, row = (int(part) for part in pixel_at(browser, x, y))
            if not (6 <= row < pixels.shape[1] - 6 and 6 <= col < pixels.shape[2] - 6):
                continue
            around = pixels[:, row - 6 : row + 7, col - 6 : col + 7]
            if (around != around[:, :1, :1]).any():
                continue  # the screen's pixel may lie on an edge
            browser.move(x, y)
            name = next(
                (name for name, colour in colours.items() if (around[:, 0, 0] == colour).all()), "no class here"
            )
            browser.wait(f"{CURSOR} === '{name}'")
            seen.add(name)
        browser.send("Page.navigate", url="about:blank")
        server.shutdown()
        thread.join()
    assert len(seen) >= 2 and browser.complaints == []
