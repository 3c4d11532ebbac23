"""The page in a real browser: what moves, sorts and zooms does so, nothing complains, and it fits a phone and paper."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from browser import Page, chromium
from rasterio.transform import from_origin

from rs_biformer.evaluation import Protocol, SceneView, compare, evaluate_protocols, write_page
from rs_biformer.schema import ClassSchema

SCHEMA = ClassSchema(
    "towns", ("ground", "roof </script><b>", "low vegetation"), ((200, 200, 200), (0, 0, 255), (0, 160, 60))
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


def write_raster(path: Path, array: np.ndarray) -> Path:
    array = array if array.ndim == 3 else array[None]
    profile = {"count": len(array), "height": array.shape[1], "width": array.shape[2], "dtype": array.dtype}
    place = {"crs": "EPSG:25832", "transform": from_origin(500_000, 5_400_000, 0.5, 0.5)}
    with rasterio.open(path, "w", driver="GTiff", compress="deflate", **profile, **place) as sink:
        sink.write(array)
    return path


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of one model with everything on it, and one of two models under two protocols."""
    folder = tmp_path_factory.mktemp("pages")
    rng = np.random.default_rng(0)
    views, sure = [], []
    for number in range(3):
        label = rng.integers(0, 3, (55, 30)).astype(np.uint8).repeat(20, 0).repeat(20, 1)
        maps = []
        for name, share in (("first", 0.1), ("second model with a long name", 0.2 + 0.1 * number)):
            wrong = rng.random((110, 60)).repeat(10, 0).repeat(10, 1) < share
            index = np.where(wrong, (label + 1) % 3, label).astype(np.uint8)
            maps.append((name, write_raster(folder / f"{number}_town_{name}.tif", index)))
        image = rng.integers(0, 255, (3, *label.shape)).astype(np.uint8)
        views.append(
            SceneView(
                f"{number}_town",
                write_raster(folder / f"{number}_image.tif", image),
                write_raster(folder / f"{number}_town_label.tif", label),
                dict(maps),
            )
        )
        sure.append(write_raster(folder / f"{number}_sure.tif", rng.random(label.shape).astype(np.float32)))
    log = folder / "metrics.csv"
    log.write_text("epoch,step,train/loss,val/mean_iou\n0,9,1.5,0.2\n1,19,0.7,0.6\n")
    labels = [view.label for view in views]
    rules = [
        Protocol("mine", exclude=(SCHEMA.classes[2],), ignore_boundary=2),
        Protocol("padded", pad_to=1024, pad_class="ground"),
    ]
    options = {"boundary": (1, 3), "confidences": sure}
    results = {
        name: [
            replace(metrics, name=name)
            for metrics in evaluate_protocols([v.predictions[name] for v in views], labels, SCHEMA, rules, **options)
        ]
        for name in views[0].predictions
    }
    (first, padded), others = results["first"], results["second model with a long name"]
    command = "rs-biformer evaluate --prediction " + "maps/a_very_long_name_without_a_break_classes.tif " * 4
    one = write_page(
        folder / "one.html",
        metrics=replace(first, name="", about={"network": "small", "parameters": "1.2 M"}),
        title="A town with_a_very_long_name_that_has_no_break_whatsoever",
        scenes=[replace(view, prediction=view.predictions["first"]) for view in views],
        curves=log,
        commands=[command],
    )
    two = write_page(
        folder / "two.html",
        metrics=first,
        others=[padded, *others],
        comparisons={"mine": compare([first, others[0]])},
        title="Two models",
        scenes=views,
        commands=[command],
    )
    return one, two


def first_row(page: Page, table: str) -> str:
    return page.run(f"document.querySelector('{table} tbody tr th').dataset.value")


@pytest.mark.parametrize(("width", "height", "touch"), [(1280, 900, False), (390, 844, True)], ids=["desk", "phone"])
def test_nothing_complains_and_nothing_is_wider_than_the_window(browser, pages, width, height, touch):
    for path in pages:
        browser.open(path, width=width, height=height, touch=touch)
        assert browser.run("document.documentElement.scrollWidth") <= width
        broken = "[...document.images].filter((image) => !image.complete || !image.naturalWidth).length"
        assert browser.run("document.images.length") >= 3 * 4 and browser.run(broken) == 0
        assert browser.run("document.querySelectorAll('script').length") == 1
    assert browser.complaints == []


def test_a_click_on_a_heading_sorts_its_table_up_and_down(browser, pages):
    browser.open(pages[0])
    click = "document.querySelectorAll('#scenes thead button')[{}].click()"
    browser.run(click.format(0))
    assert first_row(browser, "#scenes") == "0_town"
    browser.run(click.format(0))
    assert first_row(browser, "#scenes") == "2_town"
    key = "[...document.querySelectorAll('#scenes tbody tr')].map((row) => Number(row.cells[1].dataset.value))"
    browser.run(click.format(1))
    values = browser.run(key)
    assert values == sorted(values, reverse=True) and len(set(values)) == 3
    browser.run(click.format(1))
    assert browser.run(key) == sorted(values)
    assert browser.run("document.querySelector('#scenes [aria-sort]').ariaSort") == "ascending"
    assert browser.complaints == []


def test_the_slider_follows_the_mouse_and_the_keyboard(browser, pages):
    browser.open(pages[0])
    left, top, wide, high = browser.run(
        "(() => { const viewer = document.querySelector('.compare'); viewer.scrollIntoView({behavior: 'instant'});"
        "const box = viewer.getBoundingClientRect(); return [box.left, box.top, box.width, box.height]; })()"
    )
    cut = "parseFloat(document.querySelector('.compare').style.getPropertyValue('--cut'))"
    assert browser.run(cut) == 50
    browser.drag((left + wide / 2, top + high / 2), (left + wide / 5, top + high / 2))
    assert browser.run(cut) == pytest.approx(20, abs=0.5)
    edge = browser.run("document.querySelector('.compare .edge').getBoundingClientRect().left")
    assert edge == pytest.approx(left + wide / 5, abs=2)
    browser.run("document.querySelector('.compare input').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.send("Input.dispatchKeyEvent", type=kind, key="End", code="End", windowsVirtualKeyCode=35)
    assert browser.run(cut) == 100
    assert browser.complaints == []


def test_a_zoomed_picture_is_dragged_and_both_sides_move_alike(browser, pages):
    browser.open(pages[0])
    left, top, wide, high = browser.run(
        "(() => { const viewer = document.querySelector('.compare'); viewer.scrollIntoView({behavior: 'instant'});"
        "const box = viewer.getBoundingClientRect(); return [box.left, box.top, box.width, box.height]; })()"
    )
    places = (
        "[...document.querySelectorAll('.compare')[0].querySelectorAll('img')]"
        ".map((image) => { const box = image.getBoundingClientRect(); return [box.left, box.top, box.width]; })"
    )
    browser.run("document.querySelectorAll('.zoom button')[1].click()")
    under, over = browser.run(places)
    assert under == over and under[2] == pytest.approx(2 * wide, rel=1e-3)
    assert under[0] == pytest.approx(left - wide / 2, abs=1)  # the middle stays
    browser.drag((left + 0.8 * wide, top + high / 2), (left + 0.9 * wide, top + high / 2))
    moved, also = browser.run(places)
    assert moved == also and moved[0] - under[0] == pytest.approx(0.1 * wide, abs=1)
    browser.drag((left + 0.6 * wide, top + high / 2), (left + 5 * wide, top + high / 2))
    assert browser.run(places)[0][0] == pytest.approx(left, abs=1)  # no further than the picture's edge
    browser.run("document.querySelectorAll('.zoom button')[2].click()")
    assert browser.run(places)[0] == pytest.approx([left, top, wide], abs=1)
    assert browser.complaints == []


def test_either_side_shows_any_of_the_layers(browser, pages):
    browser.open(pages[1])
    names = browser.run(
        "[...document.querySelectorAll('.layers fieldset')[1].querySelectorAll('label')].map((l) => l.textContent)"
    )
    second = "second model with a long name"
    assert names == ["Image", "Truth", "first", "Error of first", second, f"Error of {second}"]
    tag = "document.querySelector('.compare .tag.rest').textContent"
    assert browser.run(tag) == "first"
    browser.run("document.querySelectorAll('.layers fieldset')[1].querySelectorAll('input')[5].click()")
    assert browser.run(tag) == f"Error of {second}"
    source = browser.run("document.querySelectorAll('.compare img')[1].src")
    assert source == browser.run("document.querySelectorAll('.scene .panels img')[5].src")
    assert browser.complaints == []


def test_on_paper_the_pictures_are_there_and_the_controls_are_not(browser, pages, tmp_path):
    browser.send("Emulation.setEmulatedMedia", media="print")
    try:
        for path in pages:
            browser.open(path, width=690)
            assert browser.run("document.documentElement.scrollWidth") <= 690
            hidden = (
                "[...document.querySelectorAll('nav, .compare, .layers, .zoom')].every((part) => !part.offsetParent)"
            )
            assert browser.run(hidden) and browser.run("document.querySelector('.panels').offsetHeight") > 50
        assert browser.pdf(tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    finally:
        browser.send("Emulation.setEmulatedMedia", media="")
    assert browser.complaints == []
