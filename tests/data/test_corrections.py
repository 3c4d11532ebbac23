"""Later labels replace earlier ones: what is tiled and read, against arrays that are put together by hand."""

import numpy as np
import pytest
import rasterio
import shapely
from pyogrio.raw import write
from rasterio.transform import from_origin

from rs_biformer.cli import main
from rs_biformer.data.index import FORMAT_VERSION, TileIndex
from rs_biformer.data.reader import SceneReader
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window
from rs_biformer.jobs import create_tile_index
from rs_biformer.schema import IGNORE

SIDE = 64
CLASSES = """
name: three
classes:
  - {name: road, colour: [1, 1, 1], value: 1}
  - {name: roof, colour: [2, 2, 2], value: 2}
  - {name: tree, colour: [3, 3, 3], value: 3}
"""


def save(path, array, x=500_000.0, y=5_400_000.0, **layout):
    height, width = array.shape[-2:]
    layout = {"crs": "EPSG:25832", "transform": from_origin(x, y, 0.5, 0.5), **layout}
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=height, width=width, dtype=array.dtype, **layout
    ) as file:
        file.write(array.reshape(1, height, width))


def box(col, row, width, height):
    return shapely.box(5e5 + col / 2, 5.4e6 - (row + height) / 2, 5e5 + (col + width) / 2, 5.4e6 - row / 2)


def draw(path, **columns):
    shapes = np.array(columns.pop("shapes"), object)
    values = [np.array(one, object if None in one else None) for one in columns.values()]
    write(path, shapely.to_wkb(shapes), values, list(columns), geometry_type="Polygon", crs="EPSG:25832")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """a.tif, b.tif and their labels: a of roads, with nothing labelled in its last columns; b of roofs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "classes.yaml").write_text(CLASSES)
    for name, value, x in (("a", 1, 500_000.0), ("b", 2, 600_000.0)):
        save(tmp_path / f"{name}.tif", np.random.default_rng(0).integers(1, 255, (SIDE, SIDE)).astype(np.uint8), x)
        label = np.full((SIDE, SIDE), value, np.uint8)
        label[:, 48:] = 0
        save(tmp_path / f"{name}_label.tif", label, x, nodata=0)
    return tmp_path


def tiled(scenes=("a.tif",), *, out="tiles", **options):
    return create_tile_index(
        list(scenes), "classes.yaml", out, labels="{dir}/{stem}_label.tif", split=["train"], **options
    )


def read(index, scene=0):
    return SceneReader(index.manifest).read(scene, Window(0, 0, SIDE, SIDE))[1]


def test_later_labels_replace_earlier_ones_and_nothing_else(folder):
    draw("one.gpkg", shapes=[box(0, 0, 20, 64), box(8, 0, 4, 64)], what=["roof", None])
    later = np.zeros((10, 12), np.uint8)  # a part of the scene; 0 is nodata
    later[2:, 3:] = 3
    save("two.tif", later, 500_000 + 15 / 2, 5_400_000 - 20 / 2, nodata=0)
    index, summary = tiled(corrections=["one.gpkg", "two.tif"])
    expected = np.full((SIDE, SIDE), 0, np.uint8)
    expected[:, 48:] = IGNORE
    expected[:, :20] = 1
    expected[22:30, 18:27] = 2
    for found in (index, TileIndex.read("tiles")):
        assert (read(found) == expected).all()
    assert sum(summary["splits"]["train"]["classes"][name]["pixels"] for name in ("road", "roof", "tree")) == 48 * 64
    assert summary["splits"]["train"]["classes"]["tree"]["pixels"] == 8 * 9
    assert any("a correction; 1 features have no class yet" in note for note in summary["notes"])


def test_the_order_of_corrections_is_that_of_the_command(folder):
    draw("roof.gpkg", shapes=[box(0, 0, 9, 9)], what=["roof"])
    draw("tree.gpkg", shapes=[box(5, 5, 9, 9)], kind=["tree"])
    arguments = ["tile", "a.tif", "--labels", "{stem}_label.tif", "--classes", "classes.yaml", "--workers", "1"]
    for order in (["roof.gpkg", "tree.gpkg"], ["tree.gpkg", "roof.gpkg"]):
        assert main([*arguments, "--split", "train", "--out", order[0][:4], "--corrections", *order]) == 0
    assert read(TileIndex.read("roof"))[7, 7] == 2 and read(TileIndex.read("tree"))[7, 7] == 1


def test_ground_outside_of_a_corrections_polygons_keeps_its_label(folder):
    (folder / "classes.yaml").write_text(CLASSES + "outside: tree\n")
    draw("one.gpkg", shapes=[box(0, 0, 5, 5)], what=["roof"])
    index, _ = tiled(corrections=["one.gpkg"])
    found = read(index)
    assert (found[:5, :5] == 1).all() and (found[:, 5:48] == 0).all()


def test_corrections_of_one_scene_leave_the_others_and_their_index_is_of_a_newer_format(folder):
    draw("a_fix.gpkg", shapes=[box(0, 0, 64, 64)], what=["tree"])
    index, _ = tiled(["a.tif", "b.tif"], corrections=["{stem}_fix.gpkg"])
    assert [len(one.corrections) for one in index.manifest.scenes] == [1, 0]
    assert (read(index, 0) == 2).all() and (read(index, 1)[:, :48] == 1).all()
    assert TileIndex.read("tiles").manifest.version == FORMAT_VERSION == 2
    assert tiled(["a.tif"], out="plain")[0].manifest.version == 1


def test_an_index_that_is_moved_finds_its_corrections(folder):
    draw("one.gpkg", shapes=[box(0, 0, 20, 64)], what=["roof"])
    tiled(corrections=["one.gpkg"])
    moved = folder / "elsewhere"
    moved.mkdir()
    for one in ("a.tif", "a_label.tif", "one.gpkg", "tiles"):
        (folder / one).rename(moved / one)
    assert (read(TileIndex.read(moved / "tiles"))[:, :20] == 1).all()


def test_corrections_that_lie_nowhere_are_one_line(folder):
    with pytest.raises(ConfigError, match=r"--corrections '\{stem\}_new.gpkg' leads to no file, such as a_new.gpkg"):
        tiled(corrections=["{stem}_new.gpkg"])
    draw("far.gpkg", shapes=[box(10**6, 0, 5, 5)], what=["roof"])
    with pytest.raises(RasterError, match=r"corrections far.gpkg lie on none of the scenes"):
        tiled(corrections=["far.gpkg"])
    save("far.tif", np.ones((4, 4), np.uint8), 700_000.0)
    with pytest.raises(RasterError, match=r"corrections far.tif lie on none of the scenes"):
        tiled(corrections=["far.tif"])
    assert not (folder / "tiles").exists()
    tiled()
    with pytest.raises(ConfigError, match="would replace"):
        tiled(corrections=["tiles/tiles.parquet"])


def test_only_what_is_labelled_is_tiled_from_suggested_windows(folder):
    """`tile --labels next.gpkg`: windows that nobody filled are as if they were not there."""
    draw("next.gpkg", shapes=[box(0, 0, 32, 32), box(32, 32, 32, 32)], rank=[1, 2], **{"class": ["tree", None]})
    index, _ = create_tile_index("a.tif", "classes.yaml", "tiles", labels="next.gpkg", split=["train"], options=None)
    assert len(index) and index.table.histogram.sum(axis=0).tolist()[:2] == [0, 0]
    found = read(index)
    assert (found[:32, :32] == 2).all() and (found[32:] == IGNORE).all() and (found[:, 32:] == IGNORE).all()
