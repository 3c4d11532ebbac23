import subprocess
import sys

import numpy as np
import pyogrio
import pytest
import rasterio.features
import shapely
from rasterio.transform import Affine

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.evaluation import find_label_errors, labelcheck
from rs_biformer.schema import IGNORE, ClassSchema

SCHEMA = ClassSchema("three", ("ground", "roof", "tree"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)))
GROUND, ROOF, TREE = range(3)


@pytest.fixture
def town(write_raster):
    """A scene of 120 x 100 pixels whose model is right and whose label is wrong in two places, and sloppy at an edge.

    A third place, where the model is wrong and unsure, must not be reported.
    """
    truth = np.zeros((120, 100), np.uint8)
    truth[:, 50:] = TREE
    truth[35:55, 70:90] = ROOF
    label = truth.copy()
    truth[10:30, 10:25] = ROOF  # missing in the label: 300 pixels
    label[60:70, 70:90] = ROOF  # in the label and not there: 200 pixels
    label[:, 48:50] = TREE  # drawn two pixels off
    label[100:110] = IGNORE
    prediction = truth.copy()
    prediction[80:95, 5:30] = ROOF  # unsure
    sure = np.full(truth.shape, 0.9, np.float32)
    sure[10:30, 10:25] = 0.98
    sure[60:70, 70:90] = 0.95
    sure[80:95, 5:30] = 0.4
    rest = (1 - sure) / 2
    stack = np.stack([rest] * 3)
    np.put_along_axis(stack, prediction[None].astype(int), sure[None], axis=0)
    stack[TREE, 10:30, 10:25], stack[GROUND, 10:30, 10:25] = 0.0, 0.02
    return {
        "map": write_raster("a_classes.tif", prediction, nodata=IGNORE),
        "label": write_raster("a_label.tif", label, nodata=IGNORE),
        "probabilities": write_raster("a_probabilities.tif", stack),
        "confidence": write_raster("a_confidence.tif", sure),
    }


def places(path):
    """Attributes by name, and outlines, of a GeoPackage."""
    about, _, geometry, columns = pyogrio.raw.read(path, layer=path.stem)
    return dict(zip(about["fields"], columns, strict=True)), shapely.from_wkb(geometry), about["crs"]


def test_wrong_labels_are_found_ranked_and_outlined_and_nothing_else_is(town, tmp_path):
    out = tmp_path / "suspects.gpkg"
    assert find_label_errors(town["map"], town["label"], [town["probabilities"]], SCHEMA, out) == 2
    found, outlines, crs = places(out)
    assert crs == "EPSG:25832" and found["rank"].tolist() == [1, 2]
    assert found["label"].tolist() == ["ground", "roof"] and found["predicted"].tolist() == ["roof", "tree"]
    assert found["pixels"].tolist() == [300, 200] and found["area"].tolist() == [75.0, 50.0]
    np.testing.assert_allclose(found["gap"], [0.98 - 0.02, 0.95 - 0.025], atol=1e-6)
    np.testing.assert_allclose(found["score"], found["gap"] * found["pixels"])
    grid = Affine(0.5, 0, 500_000.0, 0, -0.5, 5_400_000.0)
    drawn = rasterio.features.rasterize([(outlines[0], 1), (outlines[1], 2)], (120, 100), transform=grid)
    assert (drawn[10:30, 10:25] == 1).all() and (drawn[60:70, 70:90] == 2).all() and (drawn > 0).sum() == 500
    assert [path.name for path in tmp_path.iterdir() if "suspects" in path.name] == ["suspects.gpkg"]


def test_the_confidence_alone_finds_them_too_by_a_lower_bound_of_the_gap(town, tmp_path):
    out = tmp_path / "suspects.gpkg"
    assert find_label_errors(town["map"], town["label"], [town["confidence"]], SCHEMA, out) == 2
    found, *_ = places(out)
    np.testing.assert_allclose(found["gap"], [2 * 0.98 - 1, 2 * 0.95 - 1], atol=1e-6)


def test_bands_of_any_height_find_the_same(town, tmp_path, monkeypatch):
    seen = []
    for pixels in (1 << 20, 16 * 100):
        monkeypatch.setattr(labelcheck, "_BAND_PIXELS", pixels)
        out = tmp_path / "suspects.gpkg"
        find_label_errors(town["map"], town["label"], [town["probabilities"]], SCHEMA, out)
        found, outlines, _ = places(out)
        seen.append((found["score"].round(9).tolist(), shapely.normalize(outlines).tolist()))
    assert seen[0] == seen[1]


def test_only_the_likeliest_are_kept_and_pixels_without_data_are_none(town, tmp_path, write_raster):
    out = tmp_path / "suspects.gpkg"
    inputs = (town["map"], town["label"], [town["probabilities"]], SCHEMA, out)
    assert find_label_errors(*inputs, most=1) == 1 and places(out)[0]["pixels"].tolist() == [300]
    image = np.full((3, 120, 100), 9, np.uint8)
    image[:, :40] = 0
    seen = []
    scene = write_raster("a_image.tif", image, nodata=0)
    assert find_label_errors(*inputs, scenes=[scene], progress=lambda *done: seen.append(done)) == 1
    assert places(out)[0]["pixels"].tolist() == [200] and seen[-1] == (24_000, 24_000)


def test_a_perfect_label_gives_an_empty_layer(town, tmp_path):
    out = tmp_path / "none.gpkg"
    assert find_label_errors(town["map"], town["map"], [town["confidence"]], SCHEMA, out) == 0
    assert len(places(out)[1]) == 0


def test_what_cannot_be_checked_is_refused(town, tmp_path, write_raster):
    with pytest.raises(ConfigError, match="must end in .gpkg"):
        find_label_errors(town["map"], town["label"], [town["confidence"]], SCHEMA, tmp_path / "a.shp")
    with pytest.raises(ConfigError, match="0 confidence rasters"):
        find_label_errors(town["map"], town["label"], [], SCHEMA, tmp_path / "a.gpkg")
    elsewhere = write_raster("b_classes.tif", np.zeros((120, 100), np.uint8), crs="EPSG:25833")
    maps, labels = [town["map"], elsewhere], [town["label"], elsewhere]
    beside = write_raster("b_confidence.tif", np.zeros((120, 100), np.float32), crs="EPSG:25833")
    with pytest.raises(RasterError, match="different CRSs and a layer has one"):
        find_label_errors(maps, labels, [town["confidence"], beside], SCHEMA, tmp_path / "a.gpkg")
    assert not (tmp_path / "a.gpkg").exists()


def test_hundreds_of_scenes_need_few_handles(tmp_path):
    """In a process that may have 40 files open, of which the interpreter and its libraries take about a dozen."""
    code = """
import resource, sys
from pathlib import Path
import numpy as np, rasterio
from rs_biformer.evaluation import evaluate, find_label_errors
from rs_biformer.schema import PRESETS

folder = Path(sys.argv[1])
profile = dict(driver="GTiff", height=8, width=8, count=1, transform=rasterio.Affine(1, 0, 9, 0, -1, 9))
label, mapped = np.zeros((8, 8), np.uint8), np.ones((8, 8), np.uint8)
mapped[4:] = 0
files = {kind: [] for kind in ("map", "label", "sure", "image")}
for number in range(200):
    sure = np.full((8, 8), 0.9, np.float32)
    for kind, values in (("map", mapped), ("label", label), ("sure", sure), ("image", label + 1)):
        path = folder / f"{kind}_{number:03d}.tif"
        with rasterio.open(path, "w", dtype=values.dtype, **profile) as file:
            file.write(values, 1)
        files[kind].append(path)
import pyogrio  # loads a library
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
schema = PRESETS["potsdam"]
metrics = evaluate(files["map"], files["label"], schema, scenes=files["image"], confidences=files["sure"])
found = find_label_errors(files["map"], files["label"], files["sure"], schema, folder / "e.gpkg", scenes=files["image"])
print(len(metrics.scenes), metrics.overall_accuracy, found)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout == "200 0.5 0\n"


def test_the_places_are_drawn_as_outlines_with_their_rank(town, tmp_path):
    import sqlite3
    from contextlib import closing

    out = tmp_path / "suspects.gpkg"
    find_label_errors(town["map"], town["label"], [town["confidence"]], SCHEMA, out)
    with closing(sqlite3.connect(out)) as database, database:
        ((qml,),) = database.execute("SELECT styleQML FROM layer_styles WHERE f_table_name = 'suspects'").fetchall()
        assert database.execute("PRAGMA user_version").fetchone() == (10300,)
    assert 'v="no"' in qml and 'fieldName="rank"' in qml and 'asc="0"' in qml
