"""Windows to label next, read back with rasterio, shapely and sqlite."""

import sqlite3
from contextlib import closing
from xml.etree import ElementTree

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from pyogrio.raw import read, write
from pyproj import Geod, Transformer
from rasterio.transform import Affine
from tiny_checkpoint import pointwise_model, tiny_meta, write_checkpoint

from rs_biformer.cli import main
from rs_biformer.data.acquisition import hellinger
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.jobs import SuggestOptions, suggest_from_maps, suggest_from_model
from rs_biformer.raster.metadata import class_tags, score_tags
from rs_biformer.schema import IGNORE

NAMES = ("ground", "roof", "tree")
UTM = Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)
SIDE = 32


def write_raster(path, values, tags, transform=UTM, crs="EPSG:32633", scale=None):
    layout = {"height": values.shape[0], "width": values.shape[1], "count": 1, "dtype": "uint8", "nodata": IGNORE}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **layout) as file:
        file.write(values, 1)
        file.update_tags(**tags)
        if scale:
            file.scales = (scale,)
    return path


def write_map(folder, name="a", seed=0, rows=6, cols=7, layer="entropy", **place):
    """A map of windows of SIDE with one class mostly, and a score of one level in each; the levels (rows, cols)."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    main_class = rng.integers(0, 3, (rows, cols))
    index = np.kron(main_class, np.ones((SIDE, SIDE), int)).astype(np.uint8)
    noise = rng.random(index.shape) < np.kron(rng.random((rows, cols)), np.ones((SIDE, SIDE))) / 2
    index[noise] = rng.integers(0, 3, int(noise.sum()))
    levels = rng.permutation(rows * cols).reshape(rows, cols) * 5 + 20
    score = np.kron(levels, np.ones((SIDE, SIDE), int)).astype(np.uint8)
    write_raster(folder / f"{name}_classes.tif", index, class_tags(NAMES), **place)
    write_raster(folder / f"{name}_{layer}.tif", score, score_tags(layer, "uint8"), scale=1 / 250, **place)
    return index, levels


def fill(path, setting):
    """Change attributes as a GIS does; the triggers call functions of its own."""
    with closing(sqlite3.connect(path)) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f'DROP TRIGGER "{name}"')
        database.execute(f"UPDATE {path.stem} SET {setting}")
        database.commit()


def options(**changed):
    return SuggestOptions(**{"window": SIDE, "count": 5, "min_distance": 0.0} | changed)


def test_the_most_uncertain_windows_come_first_where_nothing_else_counts(tmp_path):
    _, levels = write_map(tmp_path / "maps")
    found = suggest_from_maps(tmp_path / "maps", tmp_path / "next.gpkg", options=options(parts=("uncertainty",)))
    order = np.argsort(-levels.ravel())[:5]
    assert (found["row"] // SIDE * 7 + found["col"] // SIDE).tolist() == order.tolist()
    assert found["uncertainty"] == pytest.approx(levels.ravel()[order] / 250) and found["scene"].tolist() == ["a"] * 5


def test_every_part_and_the_class_of_a_window_are_those_that_rasterio_gives(tmp_path):
    index, levels = write_map(tmp_path / "maps")
    found = suggest_from_maps(tmp_path / "maps" / "a_classes.tif", tmp_path / "next.gpkg", options=options(count=9))
    counts = np.bincount(index.ravel(), minlength=3)
    information = -np.log(counts / counts.sum())
    before = []
    for place, (row, col) in enumerate(zip(found["row"], found["col"], strict=True)):
        pixels = index[row : row + SIDE, col : col + SIDE]
        shares = np.bincount(pixels.ravel(), minlength=3) / SIDE**2
        rare = shares @ information / information.max()
        diverse = min([1.0, *(float(hellinger(shares, other)) for other in before)])
        uncertain = levels[row // SIDE, col // SIDE] / 250
        parts = [found[name][place] for name in ("uncertainty", "rarity", "diversity", "score")]
        assert parts == pytest.approx([uncertain, rare, diverse, uncertain * rare * diverse])
        assert found["largest"][place] == NAMES[shares.argmax()]
        before.append(shares)


@pytest.mark.parametrize("layer, certain", [("entropy", False), ("margin", True), ("confidence", True)])
def test_confidence_and_margin_tell_uncertainty_the_other_way_round(tmp_path, layer, certain):
    _, levels = write_map(tmp_path / "maps", layer=layer)
    said = []
    found = suggest_from_maps(
        tmp_path / "maps", tmp_path / "next.gpkg", options=options(count=1, parts=("uncertainty",)), say=said.append
    )
    wanted = 1 - levels.min() / 250 if certain else levels.max() / 250
    assert found["uncertainty"] == pytest.approx([wanted]) and said == [f"uncertainty is told by {layer}"]


def test_the_layer_holds_the_windows_and_empty_attributes_and_two_styles_that_list_the_classes(tmp_path):
    write_map(tmp_path / "maps")
    out = tmp_path / "next.gpkg"
    found = suggest_from_maps(tmp_path / "maps", out, options=options())
    meta, _, shapes, values = read(out, layer="next")
    columns = dict(zip(meta["fields"], values, strict=True))
    assert columns["rank"].tolist() == [1, 2, 3, 4, 5] and meta["crs"] == "EPSG:32633"
    assert columns["class"].tolist() == columns["note"].tolist() == [None] * 5
    for shape, row, col in zip(shapely.from_wkb(shapes), found["row"], found["col"], strict=True):
        corners = [UTM @ (col, row), UTM @ (col + SIDE, row + SIDE)]
        assert shape.equals(shapely.box(corners[0][0], corners[1][1], corners[1][0], corners[0][1]))
    with closing(sqlite3.connect(out)) as database:
        (style,) = database.execute("SELECT styleQML FROM layer_styles WHERE f_table_name = 'next'").fetchone()
    for text in (style, out.with_suffix(".qml").read_text()):
        words = ElementTree.fromstring(text).findall(".//field[@name='class']/editWidget//Option[@type='QString']")
        assert [word.get("value") for word in words] == list(NAMES)


def test_windows_with_nodata_are_left_out_or_taken_by_their_share(tmp_path):
    index, levels = write_map(tmp_path / "maps")
    best = np.unravel_index(levels.argmax(), levels.shape)
    index[best[0] * SIDE, best[1] * SIDE] = IGNORE
    write_raster(tmp_path / "maps" / "a_classes.tif", index, class_tags(NAMES))
    only, said = ("uncertainty",), []
    found = suggest_from_maps(tmp_path / "maps", tmp_path / "a.gpkg", options=options(parts=only), say=said.append)
    assert found["uncertainty"].max() < levels.max() / 250
    assert "of 42 windows 1 hold nodata; they are left out" in said
    taken = suggest_from_maps(tmp_path / "maps", tmp_path / "b.gpkg", options=options(parts=only, min_valid=0.99))
    assert taken["uncertainty"].max() == pytest.approx(levels.max() / 250)


def test_windows_keep_their_distance_on_the_ground_across_scenes(tmp_path):
    write_map(tmp_path / "maps")
    write_map(tmp_path / "maps", "b", 1, transform=UTM @ Affine.translation(40, 3))  # the same ground, another date
    said = []
    found = suggest_from_maps(
        tmp_path / "maps", tmp_path / "next.gpkg", options=options(count=99, min_distance=45.0), say=said.append
    )
    _, _, shapes, _ = read(tmp_path / "next.gpkg", layer="next")
    lonlat = Transformer.from_crs(32633, 4326, always_xy=True)
    middles = [lonlat.transform(shape.centroid.x, shape.centroid.y) for shape in shapely.from_wkb(shapes)]
    metres = [Geod(ellps="WGS84").inv(*a, *b)[2] for n, a in enumerate(middles) for b in middles[:n]]
    assert 44.7 < min(metres) and set(found["scene"]) == {"a", "b"}
    assert said[-1].startswith(f"{len(middles)} windows and not 99: no other is 45 m from all of them")


def test_labelled_ground_is_not_suggested_again_whatever_its_crs(tmp_path):
    write_map(tmp_path / "maps")
    left = Transformer.from_crs(32633, 4326, always_xy=True)
    x, y = UTM @ (3 * SIDE, 0)
    corners = [
        left.transform(*one)
        for one in ((499_990, 5_399_000), (x - 1, 5_399_000), (x - 1, 5_400_100), (499_990, y + 100))
    ]
    write(
        tmp_path / "done.gpkg",
        shapely.to_wkb(np.array([shapely.Polygon(corners)], object)),
        [],
        [],
        geometry_type="Polygon",
        crs="EPSG:4326",
    )
    found = suggest_from_maps(
        tmp_path / "maps", tmp_path / "next.gpkg", labelled=[tmp_path / "done.gpkg"], options=options(count=99)
    )
    assert found["col"].min() == 3 * SIDE and len(found["col"]) == 4 * 6


def test_an_earlier_suggestion_counts_where_its_class_is_filled(tmp_path):
    write_map(tmp_path / "maps")
    first = suggest_from_maps(tmp_path / "maps", tmp_path / "first.gpkg", options=options())
    fill(tmp_path / "first.gpkg", "class = CASE rank WHEN 1 THEN 'roof' WHEN 2 THEN '' END")
    second = suggest_from_maps(
        tmp_path / "maps", tmp_path / "second.gpkg", labelled=[tmp_path / "first.gpkg"], options=options(count=99)
    )
    places = [set(zip(one["row"].tolist(), one["col"].tolist(), strict=True)) for one in (first, second)]
    assert places[0] - places[1] == {(int(first["row"][0]), int(first["col"][0]))} and len(places[1]) == 41


def test_what_somebody_filled_in_is_never_lost(tmp_path, capsys):
    write_map(tmp_path / "maps")
    out = tmp_path / "next.gpkg"
    suggest_from_maps(tmp_path / "maps", out, options=options())
    suggest_from_maps(tmp_path / "maps", out, options=options(count=3))  # nobody did
    fill(out, "note = 'a shed' WHERE rank = 1")
    before = out.read_bytes()
    assert main(["suggest", str(tmp_path / "maps"), "--out", str(out)]) == 2
    assert "1 features whose class or note is filled" in capsys.readouterr().err and out.read_bytes() == before


def test_classes_that_an_index_knows_are_neither_rare_nor_new(tmp_path):
    index, _ = write_map(tmp_path / "maps")
    write_raster(tmp_path / "a.tif", index, {})
    colours = [[0, 0, 0], [255, 0, 0], [0, 255, 0]]
    classes = [{"name": n, "colour": c, "value": v} for v, (n, c) in enumerate(zip(NAMES, colours, strict=True))]
    (tmp_path / "classes.yaml").write_text(f"name: mine\nclasses: {classes}\n".replace("'", ""))
    label = index.copy()
    label[:, SIDE:] = IGNORE
    write_raster(tmp_path / "a_label.tif", label, {})
    arguments = [
        "tile",
        tmp_path / "a.tif",
        "--labels",
        "{dir}/{stem}_label.tif",
        "--classes",
        tmp_path / "classes.yaml",
    ]
    arguments += ["--out", tmp_path / "tiles", "--window", SIDE, "--overlap", 0, "--split", "train", "--workers", 1]
    assert main([str(one) for one in arguments]) == 0
    found = suggest_from_maps(
        tmp_path / "maps", tmp_path / "next.gpkg", labelled=[tmp_path / "tiles"], options=options(count=99)
    )
    assert found["col"].min() == SIDE and len(found["col"]) == 36
    known = [index[r : r + SIDE, :SIDE] for r in range(0, 6 * SIDE, SIDE)]
    histograms = np.array([np.bincount(one.ravel(), minlength=3) for one in known])
    information = -np.log(histograms.sum(axis=0) / histograms.sum())
    row, col = found["row"][0], found["col"][0]
    shares = np.bincount(index[row : row + SIDE, col : col + SIDE].ravel(), minlength=3) / SIDE**2
    assert found["rarity"][0] == pytest.approx(shares @ information / information.max())
    assert found["diversity"][0] == pytest.approx(min(hellinger(shares, one / SIDE**2) for one in histograms))


def test_maps_without_a_place_have_windows_in_pixels(tmp_path):
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        write_map(tmp_path / "maps", crs=None, transform=Affine.identity())
        found = suggest_from_maps(tmp_path / "maps", tmp_path / "next.gpkg", options=options())
    info = pyogrio.read_info(tmp_path / "next.gpkg", layer="next")
    shape = shapely.from_wkb(read(tmp_path / "next.gpkg", layer="next")[2][0])
    row, col = int(found["row"][0]), int(found["col"][0])
    assert info["crs"] is None or "Undefined" in info["crs"]
    assert shape.bounds == (col, -row - SIDE, col + SIDE, -row)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"count": 0}, "count is 0"),
        ({"window": -1}, "window is -1"),
        ({"measure": "variance"}, "no measure 'variance'"),
        ({"min_distance": -1.0}, "min_distance is -1"),
        ({"min_distance": float("nan")}, "min_distance is nan"),
        ({"min_valid": 0.0}, "min_valid is 0"),
        ({"parts": ()}, "parts are none"),
        ({"parts": ("beauty",)}, "parts are beauty"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(changed, message):
    with pytest.raises(ConfigError, match=message):
        options(**changed)


def test_what_is_no_map_or_has_no_score_is_one_line(tmp_path):
    index, _ = write_map(tmp_path / "maps")
    maps, out = tmp_path / "maps", tmp_path / "next.gpkg"
    with pytest.raises(ConfigError, match=r"must end in \.gpkg"):
        suggest_from_maps(maps, tmp_path / "next.shp")
    write_raster(maps / "b_classes.tif", index, score_tags("entropy", "uint8"))
    with pytest.raises(RasterError, match="is a map of entropy; give class maps"):
        suggest_from_maps(maps / "b_classes.tif", out, score=str(maps / "a_entropy.tif"))
    with pytest.raises(ConfigError, match=r"there is no .*a_margin\.tif; map with `predict --margin`"):
        suggest_from_maps(maps, out, options=options(measure="margin"))
    (maps / "a_entropy.tif").rename(maps / "a_doubt.tif")
    with pytest.raises(ConfigError, match=r"there is no .*a_entropy\.tif; map with `predict --entropy`"):
        suggest_from_maps(maps / "a_classes.tif", out)
    write_raster(maps / "a_doubt.tif", index, {})
    with pytest.raises(ConfigError, match="does not say what it measures"):
        suggest_from_maps(maps / "a_classes.tif", out, score="{dir}/{name}_doubt.tif")
    write_raster(maps / "a_entropy.tif", index[1:], score_tags("entropy", "uint8"))
    with pytest.raises(RasterError, match="a score has the pixels of its map"):
        suggest_from_maps(maps / "a_classes.tif", out)
    assert not out.exists()


def test_a_model_maps_the_scenes_first_and_leaves_no_map_unless_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 70, 100)).astype(np.uint8)
    with rasterio.open(
        "scene.tif", "w", driver="GTiff", height=70, width=100, count=3, dtype="uint8", crs="EPSG:32633", transform=UTM
    ) as file:
        file.write(pixels)
    model = pointwise_model()
    one = suggest_from_model("scene.tif", model, "one.gpkg", options=options(), device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.gpkg", "one.qml", "scene.tif"]
    suggest_from_model("scene.tif", model, "two.gpkg", maps="maps", options=options(), device="cpu")
    other = suggest_from_maps("maps", "three.gpkg", options=options())
    assert all(one[name].tolist() == other[name].tolist() for name in one)


@pytest.mark.slow
def test_a_checkpoint_on_the_command_line_maps_by_its_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "model.ckpt", tiny_meta())
    write_raster("scene.tif", np.zeros((64, 100), np.uint8), {})
    options = ["--bands", "1,1,1", "--window", "64"]
    assert main(["suggest", "scene.tif", "--checkpoint", "model.ckpt", "--out", "a.gpkg", *options]) == 0
    assert read("a.gpkg", layer="a", columns=["width"])[3][0].tolist() == [64]


def test_options_without_effect_are_refused(tmp_path, capsys):
    write_map(tmp_path / "maps")
    assert main(["suggest", str(tmp_path / "maps"), "--out", str(tmp_path / "a.gpkg"), "--tta", "d4"]) == 2
    assert "--tta has no effect without --checkpoint" in capsys.readouterr().err
