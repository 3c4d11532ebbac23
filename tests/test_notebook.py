"""What results show of themselves in a notebook: the right figures, the right pixels, and no text as HTML."""

import re
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
import rasterio
from PIL import Image
from tiny_checkpoint import pointwise_model, tiny_meta
from tiny_index import write_tiny_index

from rs_biformer import evaluate
from rs_biformer.data.index import TileIndex
from rs_biformer.notebook import facts, swatch, table
from rs_biformer.raster.scene import Scene
from rs_biformer.schema import ClassSchema
from rs_biformer.viewer.view import View

EVIL = "<script>alert(1)<b>"
SCHEMA = ClassSchema("two", (EVIL, "roof"), ((0, 120, 0), (200, 0, 0)))


def pixels_of(html: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(b64decode(re.search(r"base64,([^\"]+)", html)[1]))))


def cells(html: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def test_texts_are_escaped():
    html = facts({EVIL: EVIL, "none": None}) + table([EVIL], [[EVIL, EVIL]], [EVIL]) + swatch((1, 2, 3), EVIL)
    assert "<script" not in html and "<b>" not in html and "none" not in html and html.count("&lt;script") == 7


def test_a_scene_shows_its_pixels(write_raster):
    image = np.random.default_rng(0).integers(1, 255, (4, 30, 40)).astype(np.uint8)
    image[:, :5] = 0
    with Scene(write_raster("<b>a.tif", image, nodata=0), bands=[3, 1, 2]) as scene:
        html = scene._repr_html_()
        assert np.array_equal(pixels_of(html)[5:, :, :3], np.moveaxis(image[[2, 0, 1], 5:], 0, -1))
    assert not pixels_of(html)[:5, :, 3].any() and pixels_of(html)[5:, :, 3].all()
    assert "<b>" not in html and ["size", "40 x 30 pixels"] in cells(html) and ["pixel", "0.5 m"] in cells(html)


def test_a_large_scene_is_shown_from_an_overview_or_not_at_all(tmp_path):
    path = tmp_path / "large.tif"
    profile = {"crs": "EPSG:25832", "transform": rasterio.transform.from_origin(5e5, 5.4e6, 1, 1)}
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=9000,
        width=6000,
        count=1,
        dtype="uint16",
        tiled=True,
        sparse_ok=True,
        **profile,
    ) as sink:
        sink.write(np.full((1, 512, 512), 900, np.uint16), window=rasterio.windows.Window(0, 0, 512, 512))
    with Scene(path) as scene:
        assert "without overviews" in scene._repr_html_()
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4, 8], rasterio.enums.Resampling.nearest)
    with Scene(path) as scene:
        shown = pixels_of(scene._repr_html_())
    assert max(shown.shape[:2]) <= 480 and shown.shape[0] / shown.shape[1] == pytest.approx(1.5, rel=0.02)
    assert shown[0, 0, 0] == 255 and shown[-1, -1, 0] == 0


def test_metrics_show_the_figures_of_each_class(write_raster):
    label = np.zeros((64, 64), np.uint8)
    label[:32] = 1
    predicted = np.zeros((64, 64), np.uint8)
    predicted[:16] = 1
    metrics = evaluate(write_raster("map.tif", predicted), write_raster("label.tif", label), SCHEMA)
    html = metrics._repr_html_()
    assert "<script" not in html and "accuracy 75.0 %" in html
    shown = {row[0]: row[1:] for row in cells(html)}
    assert shown["roof"] == ["50.0 %", "66.7 %", "100.0 %", "50.0 %"]
    assert shown["mean"][:2] == ["58.3 %", "73.3 %"]


def test_an_index_shows_its_windows_and_the_share_of_each_class(tmp_path):
    index = TileIndex.read(write_tiny_index(tmp_path, {"a": "train", "b": "val"}))
    html = index._repr_html_()
    assert ["windows", "train 4, val 4 of 64 x 64 pixels"] in cells(html)
    train = index.table.histogram[index.table.split == "train"].sum(axis=0)
    shown = {row[0]: row[1:] for row in cells(html)}
    assert shown["middle"][0] == f"{100 * train[1] / train.sum():.1f} %"


def test_a_model_shows_what_it_was_trained_on():
    model = pointwise_model(tiny_meta(schema=SCHEMA, window=32))
    shown = dict(row for row in cells(model._repr_html_()) if len(row) == 2)
    assert shown["parameters"] == "8" and shown["bands"] == "red, green, blue (uint8)" and shown["pixel"] == "0.5 m"
    assert shown["classes"].endswith("roof") and "<script" not in model._repr_html_()


def test_a_map_shows_itself_over_its_scene_with_areas(write_raster):
    index = np.zeros((40, 60), np.uint8)
    index[:, :15] = 1
    with View(write_raster("map.tif", index), write_raster("scene.tif", np.full((3, 40, 60), 100, np.uint8))) as view:
        html = view._repr_html_()
    colour = np.array(view.schema.colours[1])
    assert np.abs(pixels_of(html)[3, 3] - (0.7 * colour + 30)).max() <= 1
    assert cells(html)[2] == ["class 1", "25.0 %", "150 m²"]
