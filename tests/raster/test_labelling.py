"""How a label is read, and where it lies: each rule with the classes that it must give."""

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from PIL import Image
from pyogrio.raw import write
from rasterio.crs import CRS

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.labelling import open_label, settle, told, without_effect
from rs_biformer.raster.labels import LabelOptions
from rs_biformer.raster.regrid import PixelGrid
from rs_biformer.schema import IGNORE, ClassSchema

PLACE = Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)
TWO = ClassSchema("two", ("background", "building"), ((0, 0, 0), (255, 255, 255)))
THREE = ClassSchema("three", ("a", "b", "c"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
CLASSES = np.random.default_rng(0).integers(0, 2, (40, 50), np.uint8)
FULL = Window(0, 0, 40, 50)


def scene(height=40, width=50, transform=PLACE, crs="EPSG:32633"):
    return PixelGrid("scene.tif", height, width, CRS.from_string(crs), transform)


def save(path, array, *, crs="EPSG:32633", transform=PLACE, colormap=None, interp=None, **profile):
    array = np.asarray(array)
    array = array[None] if array.ndim == 2 else array
    profile = {
        "driver": "GTiff",
        "count": len(array),
        "dtype": array.dtype,
        "crs": crs,
        "transform": transform,
        **profile,
    }
    with rasterio.open(path, "w", height=array.shape[1], width=array.shape[2], **profile) as file:
        if interp:
            file.colorinterp = interp
        file.write(array)
        if colormap:
            file.write_colormap(1, colormap)
    return path


def read(path, schema=TWO, grid=None, window=FULL, **options):
    """The classes of a window, what is unknown, and the notes."""
    tolerance = options.pop("tolerance", 0)
    grid = grid or scene()
    chosen, notes = settle(path, schema, grid, tolerance=tolerance, options=LabelOptions(**options))
    with open_label(path, schema, grid, tolerance=tolerance, options=chosen) as label:
        return *label.read(window), told(notes)


def test_a_palette_of_other_colours_gives_way_to_known_values(tmp_path):
    path = save(tmp_path / "l.tif", CLASSES, colormap={0: (0, 0, 0, 255), 1: (128, 0, 0, 255)})
    index, unknown, notes = read(path)
    assert (index == CLASSES).all() and not unknown
    assert "by its values" in notes[0] and "--label-as" in notes[0]
    index, unknown, _ = read(path, read_as="palette")
    assert (index[CLASSES == 0] == 0).all() and (index[CLASSES == 1] == IGNORE).all()
    assert unknown == {(128, 0, 0): int(CLASSES.sum())}


def test_a_palette_of_the_schemas_colours_is_obeyed_and_told(tmp_path):
    path = save(tmp_path / "l.tif", CLASSES, colormap={0: (255, 255, 255, 255), 1: (0, 0, 0, 255)})
    index, _, notes = read(path)
    assert (index == 1 - CLASSES).all() and "palette" in notes[0]
    assert (read(path, read_as="values")[0] == CLASSES).all()


def test_a_grey_picture_of_numbers_is_read_by_its_numbers_even_with_a_tolerance(tmp_path):
    Image.fromarray(CLASSES).save(tmp_path / "l.bmp")  # whose grey palette makes 1 a black
    plain = PixelGrid("scene.tif", 40, 50, None, Affine.identity())
    for tolerance in (0, 127):
        assert (read(tmp_path / "l.bmp", grid=plain, tolerance=tolerance)[0] == CLASSES).all()


def test_near_values_are_those_within_the_tolerance(tmp_path):
    schema = ClassSchema("two", TWO.classes, TWO.colours, values=(0, 255))
    band = np.array([[0, 1, 100, 127, 128, 200, 254, 255]], np.uint8)
    grid = scene(1, 8)
    for dtype in (np.uint8, np.uint16, np.int16, np.float32):
        path = save(tmp_path / f"{dtype.__name__}.tif", band.astype(dtype))
        index, unknown, _ = read(path, schema, grid, Window(0, 0, 1, 8), tolerance=127)
        assert index.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]] and not unknown
        index, unknown, _ = read(path, schema, grid, Window(0, 0, 1, 8), tolerance=1)
        assert index.tolist() == [[0, 0, 255, 255, 255, 255, 1, 1]] and sorted(unknown) == [100, 127, 128, 200]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_whole_numbers_are_values_in_every_type(dtype, tmp_path):
    schema = ClassSchema("m", ("a", "b"), TWO.colours, values=(11, 21), further_values=((), (22, 23)))
    band = np.array([[11, 21, 22, 23, 24, 255]]).astype(dtype)
    index, unknown, _ = read(save(tmp_path / "l.tif", band), schema, scene(1, 6), Window(0, 0, 1, 6))
    assert index.tolist() == [[0, 1, 1, 1, 255, 255]] and unknown == {24: 1}


def test_several_colours_are_one_class(tmp_path):
    schema = ClassSchema("m", ("a", "b"), TWO.colours, further_colours=((), ((9, 9, 9), (9, 0, 9))))
    pixels = np.array([[[0, 255, 9, 9, 8]], [[0, 255, 9, 0, 8]], [[0, 255, 9, 9, 8]]], np.uint8)
    index, unknown, _ = read(save(tmp_path / "l.tif", pixels), schema, scene(1, 5), Window(0, 0, 1, 5))
    assert index.tolist() == [[0, 1, 1, 1, 255]] and unknown == {(8, 8, 8): 1}


def test_equal_grey_triples_are_values_where_their_colours_are_none(tmp_path):
    path = save(tmp_path / "l.tif", np.stack([CLASSES] * 3))
    index, unknown, notes = read(path)
    assert (index == CLASSES).all() and not unknown and "three equal bands" in notes[0]
    coloured = save(tmp_path / "c.tif", np.stack([CLASSES * np.uint8(255)] * 3))
    index, _, notes = read(coloured)
    assert (index == CLASSES).all() and not notes


@pytest.mark.parametrize(("count", "on"), [(2, 1), (3, 1), (4, 255), (5, 1)])
def test_a_band_for_each_class_is_read_so(count, on, tmp_path):
    names = "abcde"[:count]
    schema = ClassSchema("n", tuple(names), tuple((50 + 9 * n, n, 7) for n in range(count)))
    truth = np.random.default_rng(1).integers(0, count, (40, 50), np.uint8)
    bands = (np.arange(count)[:, None, None] == truth).astype(np.uint8) * np.uint8(on)
    bands[:, 0, 0] = 0
    if count > 1:
        bands[:, 0, 1] = np.arange(count) < 2
    index, unknown, _ = read(save(tmp_path / "l.tif", bands), schema, read_as="one-hot")
    assert index[0, 0] == IGNORE and index[0, 1] == IGNORE and unknown == {"2 bands at once": 1}
    assert (index[1:] == truth[1:]).all()
    bands[1, 0, 1] = 0
    assert (read(save(tmp_path / "l.tif", bands), schema)[0][1:] == truth[1:]).all()


def test_one_of_several_bands_is_taken_on_request(tmp_path):
    path = save(tmp_path / "l.tif", np.stack([CLASSES + 7, CLASSES, CLASSES + 9, CLASSES, CLASSES]))
    with pytest.raises(RasterError, match="--label-band"):
        read(path)
    assert (read(path, band=2)[0] == CLASSES).all()
    with pytest.raises(RasterError, match="has 5 bands; --label-band is 6"):
        read(path, band=6)


def test_a_class_that_is_nodata_is_told_and_kept_on_request(tmp_path):
    path = save(tmp_path / "l.tif", CLASSES, nodata=0)
    index, _, notes = read(path)
    assert (index[CLASSES == 0] == IGNORE).all()
    assert "nodata value 0 is the class background" in notes[0] and "--label-nodata none" in notes[0]
    index, _, notes = read(path, nodata="none")
    assert (index == CLASSES).all() and not notes
    assert not read(save(tmp_path / "o.tif", CLASSES, nodata=9))[2]


def test_a_class_under_an_alpha_band_or_in_a_transparent_palette_entry_is_told(tmp_path):
    grey_alpha = save(
        tmp_path / "l.tif",
        np.stack([CLASSES, CLASSES * np.uint8(255)]),
        alpha="YES",
        interp=(rasterio.enums.ColorInterp.gray, rasterio.enums.ColorInterp.alpha),
    )
    index, _, notes = read(grey_alpha)
    assert (index[CLASSES == 0] == IGNORE).all() and "alpha band is the class background" in notes[0]
    assert (read(grey_alpha, nodata="none")[0] == CLASSES).all()
    picture = Image.fromarray(CLASSES, "P")
    picture.putpalette([0, 0, 0, 255, 255, 255] + [7] * 762)
    picture.save(tmp_path / "p.png", transparency=0)
    plain = PixelGrid("scene.tif", 40, 50, None, Affine.identity())
    index, _, notes = read(tmp_path / "p.png", grid=plain)
    assert (index[CLASSES == 0] == IGNORE).all() and any("transparent palette entry" in note for note in notes)
    assert (read(tmp_path / "p.png", grid=plain, nodata="none")[0] == CLASSES).all()


def test_yellow_is_no_hole_where_white_is_nodata(tmp_path):
    schema = ClassSchema("c", ("car", "roof"), ((255, 255, 0), (0, 0, 255)))
    pixels = np.array([[[255, 0, 255]], [[255, 0, 255]], [[0, 255, 255]]], np.uint8)
    index, _, _ = read(save(tmp_path / "l.tif", pixels, nodata=255), schema, scene(1, 3), Window(0, 0, 1, 3))
    assert index.tolist() == [[0, 1, 255]]


def test_a_label_that_covers_more_is_cut_in_whole_pixels(tmp_path):
    city = np.random.default_rng(2).integers(0, 2, (90, 95), np.uint8)
    path = save(tmp_path / "l.tif", city, transform=PLACE * Affine.translation(-13, -21), crs="EPSG:32633+5773")
    index, _, notes = read(path, window=Window(3, 5, 20, 30))
    assert (index == city[21:61, 13:63][3:23, 5:35]).all() and "cut to its scene" in notes[0]


@pytest.mark.parametrize(
    ("moved", "crs", "words"),
    [
        (Affine.translation(-10.5, -10), "EPSG:32633", "10.5 columns and -?10 rows off|-10.5 columns"),
        (Affine.translation(-10, -10) * Affine.scale(1.1), "EPSG:32633", "1.1 x 1.1 times as large"),
        (Affine.translation(5, 0), "EPSG:32633", "lacks 5 columns at the left"),
        (Affine.translation(-10, -10), "EPSG:25833", "CRS is EPSG:25833"),
    ],
)
def test_a_label_on_other_pixels_is_refused_or_resampled_by_nearest_neighbour(moved, crs, words, tmp_path):
    city = np.random.default_rng(3).integers(0, 2, (90, 90), np.uint8)
    there = PLACE * moved
    path = save(tmp_path / "l.tif", city, transform=there, crs=crs)
    with pytest.raises(RasterError, match=f"({words}).*--regrid-labels"):
        read(path)
    index, _, notes = read(path, regrid=True)
    cols, rows = np.meshgrid(np.arange(50) + 0.5, np.arange(40) + 0.5)
    u, v = ~there * (PLACE * (cols, rows))  # ETRS89 and WGS 84 are taken for the same by PROJ
    under = (u >= 0) & (v >= 0)
    truth = np.where(under, city[np.floor(v).astype(int).clip(0), np.floor(u).astype(int).clip(0)], IGNORE)
    tie = (np.abs(u - np.rint(u)) < 1e-6) | (np.abs(v - np.rint(v)) < 1e-6)
    assert (index == truth)[~tie].all() and "resampled by nearest neighbour" in notes[0]


def draw(path, shapes, columns, crs="EPSG:32633"):
    write(
        path,
        shapely.to_wkb(np.array(shapes, object)),
        [
            np.asarray(values, object) if values and isinstance(values[0], str) else np.asarray(values)
            for values in columns.values()
        ],
        list(columns),
        geometry_type="Unknown",
        crs=crs,
    )
    return path


LEFT, RIGHT = shapely.box(500_000, 5_399_980, 500_010, 5_400_000), shapely.box(500_015, 5_399_980, 500_025, 5_400_000)


@pytest.mark.parametrize(
    ("schema", "columns"),
    [
        (TWO, {"kind": ["background", "building"]}),
        (TWO, {"kind": [" Background", "BUILDING"]}),
        (TWO, {"kind": [0, 1], "fid_old": [7, 8]}),
        (TWO, {"kind": ["0", "1"]}),
        (TWO, {"kind": [0.0, 1.0]}),
        (TWO, {"id": [1, 0], "kind": ["background", "building"]}),
        (
            ClassSchema("w", ("x", "y"), TWO.colours, (21, 22), further_values=(("forest",), ())),
            {"kind": ["forest", "22"]},
        ),
    ],
)
def test_the_attribute_that_holds_the_classes_is_found(schema, columns, tmp_path):
    index, unknown, notes = read(draw(tmp_path / "l.gpkg", [LEFT, RIGHT], columns), schema)
    assert (index[:, :20] == 0).all() and (index[:, 30:] == 1).all() and (index[:, 20:30] == IGNORE).all()
    assert not unknown and "attribute kind" in notes[0] and "ignored" in notes[0]


def test_what_no_polygon_covers_is_what_the_schema_says(tmp_path):
    schema = ClassSchema("o", TWO.classes, TWO.colours, outside="background")
    index, _, notes = read(draw(tmp_path / "l.gpkg", [LEFT], {"height": [9.5]}), schema)
    assert (index[:, :20] == 1).all() and (index[:, 20:] == 0).all()
    assert "all of the class building" in notes[0] and "of the class background" in notes[0]


def test_attributes_that_could_mean_two_things_are_asked_for(tmp_path):
    path = draw(
        tmp_path / "l.gpkg", [LEFT, RIGHT], {"old": ["background", "building"], "new": ["building", "background"]}
    )
    with pytest.raises(RasterError, match="old, new all hold classes; name one with --label-field"):
        read(path)
    assert (read(path, field="new")[0][:, :20] == 1).all()
    with pytest.raises(RasterError, match="no attribute 'kind'; it has old, new"):
        read(path, field="kind")
    other = draw(tmp_path / "m.gpkg", [LEFT, RIGHT], {"kind": ["meadow", "lake"]})
    with pytest.raises(RasterError, match=r"kind: 'meadow', 'lake'\).*--label-field"):
        read(other)


def test_unknown_and_missing_attributes_are_told_and_counted(tmp_path):
    shapes = [LEFT, RIGHT, shapely.box(500_010, 5_399_980, 500_012, 5_400_000), LEFT.buffer(0)]
    path = tmp_path / "l.gpkg"
    write(
        path,
        shapely.to_wkb(np.array(shapes[:3], object)),
        [np.array(["building", "bilding", None], object)],
        ["kind"],
        geometry_type="Polygon",
        crs="EPSG:32633",
    )
    index, unknown, notes = read(path, field="kind")
    assert unknown == {"bilding": 20 * 40}  # the feature without a class is as if it was not there
    assert (index[:, :20] == 1).all() and (index[:, 20:] == IGNORE).all()
    assert any("'bilding' (1 features, did you mean building?)" in note for note in notes)
    assert any("1 features have no class yet and are as if they were not there" in note for note in notes)


def test_layers_without_an_area_or_without_this_place_are_refused(tmp_path):
    line = shapely.LineString([(500_000, 5_399_990), (500_025, 5_399_990)])
    path = draw(tmp_path / "l.gpkg", [line], {"kind": ["building"]})
    with pytest.raises(RasterError, match="1 lines have no area and are left out; --buffer-labels"):
        read(path)
    index, _, _ = read(path, width=3.0)
    assert (index[17:23] == 1).all() and (index[:17] == IGNORE).all() and (index[23:] == IGNORE).all()
    far = draw(tmp_path / "f.gpkg", [shapely.box(0, 0, 5, 5)], {"kind": ["building"]})
    with pytest.raises(RasterError, match=r"does not overlap.*\(--label-crs\)"):
        read(far)


def test_names_in_the_code_page_of_windows_are_understood(tmp_path):
    schema = ClassSchema("u", ("Wald", "Straße"), TWO.colours)
    path = tmp_path / "l.shp"
    write(
        path,
        shapely.to_wkb(np.array([LEFT, RIGHT], object)),
        [np.array(["Wald", "Straße"], object)],
        ["kind"],
        geometry_type="Polygon",
        crs="EPSG:32633",
        driver="ESRI Shapefile",
        encoding="cp1252",
    )
    index, unknown, _ = read(path, schema)
    assert (index[:, 30:] == 1).all() and not unknown


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("l.tif", {"field": "kind"}, "a raster, on which --label-field has no effect"),
        ("l.tif", {"crs": "zzz", "width": 2.0, "order": "smallest"}, "--buffer-labels, --label-order have no effect"),
        ("l.tif", {"read_as": "values", "band": 1, "nodata": 0, "regrid": True}, None),
        ("l.gpkg", {"field": "kind", "layer": "a", "crs": "EPSG:4326", "width": 2.0}, None),
        ("l.gpkg", {"read_as": "values"}, "polygons, on which --label-as has no effect"),
        ("l.gpkg", {"nodata": "none", "band": 2, "regrid": True}, "--label-nodata, --regrid-labels have no effect"),
    ],
)
def test_options_for_labels_of_the_other_kind_are_told(name, given, said):
    lines = told(without_effect(name, LabelOptions(**given)))
    assert (said is None and not lines) or (said in lines[0] and lines[0].startswith(name))
