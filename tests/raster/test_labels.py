from collections import Counter

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import blocks, write_chip

from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster import labels
from rs_biformer.raster.labels import LabelRaster, encode_colours, erode_boundaries, translate_bytes
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.source import require_same_grid
from rs_biformer.schema import IGNORE, ClassSchema, load_schema

ISPRS = load_schema("vaihingen")
LOVEDA = load_schema("loveda")
CLOSE = ClassSchema(
    "close", ("a", "b"), ((100, 100, 100), (110, 100, 100)), values=(3, 4), ignore_colours=((100, 120, 100),)
)


def read_all(label: LabelRaster) -> tuple[np.ndarray, Counter]:
    return label.read(Window(0, 0, label.height, label.width))


def indices(seed: int = 0, classes: int = 6, shape: tuple[int, int] = (20, 30)) -> np.ndarray:
    index = np.random.default_rng(seed).integers(0, classes, shape).astype(np.uint8)
    index[0, :5] = IGNORE
    return index


@pytest.mark.parametrize("schema", [ISPRS, LOVEDA])
def test_colours_come_back_as_the_classes_that_were_drawn(write_raster, schema):
    index = indices(classes=len(schema))
    with LabelRaster(write_raster("l.tif", encode_colours(index, schema)), schema) as label:
        got, unknown = read_all(label)
    assert got.dtype == np.uint8
    assert np.array_equal(got, index)
    assert not unknown


def test_windows_put_together_equal_the_whole_label(write_raster):
    index = indices()
    canvas = np.zeros_like(index)
    with LabelRaster(write_raster("l.tif", encode_colours(index, ISPRS)), ISPRS) as label:
        for window in blocks(20, 30, 7):
            canvas[window.slices] = label.read(window)[0]
    assert np.array_equal(canvas, index)


def test_unknown_colours_are_ignored_and_counted(write_raster):
    colours = encode_colours(indices(), ISPRS)
    colours[:, 3, :4] = np.array([1, 2, 3])[:, None]
    colours[:, 4, 0] = (254, 0, 0)
    with LabelRaster(write_raster("l.tif", colours), ISPRS) as label:
        index, unknown = read_all(label)
    assert unknown == Counter({(1, 2, 3): 4, (254, 0, 0): 1})
    assert (index[3, :4] == IGNORE).all()
    assert index[4, 0] == IGNORE


def nearest_by_hand(colour: tuple[int, int, int], schema: ClassSchema, tolerance: int) -> int | None:
    """The rule of the docstring, one colour at a time."""
    best: tuple[int, int] | None = None
    answer: int | None = None
    for known, index in [
        *((c, i) for i, c in enumerate(schema.colours)),
        *((c, IGNORE) for c in schema.ignore_colours),
    ]:
        apart = [abs(a - b) for a, b in zip(colour, known, strict=True)]
        if max(apart) <= tolerance and (best is None or (max(apart), sum(apart)) < best):
            best, answer = (max(apart), sum(apart)), index
    return answer


@pytest.mark.parametrize("tolerance", [0, 1, 6, 12, 40])
def test_a_near_colour_goes_to_the_nearest_class_within_the_tolerance(write_raster, tolerance):
    colours = np.random.default_rng(3).integers(85, 130, (3, 20, 30)).astype(np.uint8)
    colours[:, 0, 0] = (105, 100, 100)  # as far from a as from b: the first wins
    with LabelRaster(write_raster("l.tif", colours), CLOSE, tolerance=tolerance) as label:
        index, unknown = read_all(label)
    missed = 0
    for row, col in np.ndindex(20, 30):
        expected = nearest_by_hand(tuple(colours[:, row, col].tolist()), CLOSE, tolerance)
        missed += expected is None
        assert index[row, col] == (IGNORE if expected is None else expected)
    assert sum(unknown.values()) == missed


@pytest.mark.parametrize("tolerance", [-1, 256])
def test_a_tolerance_that_is_no_colour_difference_is_refused(write_raster, tolerance):
    with pytest.raises(ConfigError, match="0 to 255"):
        LabelRaster(write_raster("l.tif", encode_colours(indices(), ISPRS)), ISPRS, tolerance=tolerance)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_values_become_indices_and_other_values_are_counted(write_raster, dtype):
    values = np.array([[1, 2, 7, 0], [255, 9, 9, 1]], dtype)
    with LabelRaster(write_raster("l.tif", values), LOVEDA) as label:
        index, unknown = read_all(label)
    assert index.tolist() == [[0, 1, 6, IGNORE], [IGNORE, IGNORE, IGNORE, 0]]
    assert unknown == Counter({9: 2})


def test_negative_and_large_values_are_not_wrapped_into_the_range(write_raster):
    values = np.array([[-1, 256, 257, 1]], np.int16)
    with LabelRaster(write_raster("l.tif", values), LOVEDA) as label:
        index, unknown = read_all(label)
    assert index.tolist() == [[IGNORE, IGNORE, IGNORE, 0]]
    assert unknown == Counter({-1: 1, 256: 1, 257: 1})


def with_palette(path, colours: dict[int, tuple[int, int, int]]):
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, colours)
    return path


def test_a_palette_with_the_schema_s_colours_is_read_as_colours(write_raster):
    shuffled = {7: ISPRS.colours[0], 3: ISPRS.colours[5], 200: ISPRS.colours[2], 0: (9, 9, 9)}
    path = with_palette(write_raster("l.tif", np.array([[7, 3, 200, 0, 0]], np.uint8)), shuffled)
    with LabelRaster(path, ISPRS) as label:
        index, unknown = read_all(label)
    assert index.tolist() == [[0, 5, 2, IGNORE, IGNORE]]
    assert unknown == Counter({(9, 9, 9): 2})


def test_a_palette_with_other_colours_is_read_as_values(write_raster):
    path = with_palette(write_raster("l.tif", np.array([[1, 2, 0]], np.uint8)), {1: (1, 1, 1), 2: ISPRS.colours[0]})
    with LabelRaster(path, LOVEDA) as label:
        assert read_all(label)[0].tolist() == [[0, 1, IGNORE]]


def test_nodata_alpha_and_masks_are_ignored_and_not_counted_as_unknown(write_raster):
    colours = encode_colours(indices(), ISPRS)
    colours[:, 10:] = 77
    mask = np.indices((20, 30))[0] < 10
    expected = np.where(mask, indices(), IGNORE)
    alpha = (mask * 255).astype(np.uint8)[None]
    for path in (
        write_raster("mask.tif", colours, mask=mask),
        write_raster("nodata.tif", colours, nodata=77),
        write_raster("alpha.tif", np.concatenate([colours, alpha]), photometric="RGB", alpha="YES"),
    ):
        with LabelRaster(path, ISPRS) as label:
            index, unknown = read_all(label)
        assert np.array_equal(index, expected), path.name
        assert not unknown


def test_nan_is_ignored(write_raster):
    with LabelRaster(write_raster("l.tif", np.array([[np.nan, 1.0, 1.5]], np.float32)), LOVEDA) as label:
        index, unknown = read_all(label)
    assert index.tolist() == [[IGNORE, 0, IGNORE]]
    assert unknown == Counter({1.5: 1})


@pytest.mark.parametrize("count", [2, 4, 5])
def test_other_numbers_of_bands_are_refused(write_raster, count):
    bands = np.ones((count, 4, 4), np.uint8)
    with pytest.raises(RasterError, match=rf"l\.tif has {count} image bands.*1 \(values\), 3 \(colours\), or 6"):
        LabelRaster(write_raster("l.tif", bands, photometric="MINISBLACK", alpha="NO"), ISPRS)


def test_colours_of_more_than_8_bits_are_refused(write_raster):
    with pytest.raises(RasterError, match="uint16"):
        LabelRaster(write_raster("l.tif", np.ones((3, 4, 4), np.uint16)), ISPRS)


def test_bands_are_taken_in_the_order_of_their_colour(write_raster):
    path = write_raster("l.tif", encode_colours(indices(), ISPRS)[::-1])
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [rasterio.enums.ColorInterp[name] for name in ("blue", "green", "red")]
    with LabelRaster(path, ISPRS) as label:
        assert np.array_equal(read_all(label)[0], indices())


def test_an_index_that_is_no_class_has_no_colour():
    with pytest.raises(RasterError, match="holds the index 6"):
        encode_colours(np.array([[0, 6]], np.uint8), ISPRS)


def test_colours_with_a_tolerance_come_back_from_a_large_label(write_raster):
    index = np.repeat(np.repeat(indices(shape=(56, 90)), 10, 0), 12, 1)
    path = write_raster("l.tif", encode_colours(index, ISPRS), compress="lzw")
    with LabelRaster(path, ISPRS, tolerance=2) as label:
        assert np.array_equal(read_all(label)[0], index)


@settings(max_examples=60)
@given(st.lists(st.tuples(*[st.sampled_from([0, 1, 7, 128, 254, 255])] * 3), min_size=2, max_size=9, unique=True))
def test_colours_are_decoded_as_the_table_of_all_colours_says(colours):
    schema = ClassSchema("any", tuple(map(str, colours[1:])), tuple(colours[1:]), ignore_colours=(colours[0],))
    pixels = list(np.random.default_rng(len(colours)).choice([0, 1, 7, 128, 254, 255, 9], (3, 40, 50)).astype(np.uint8))
    pixels[0][0, : len(colours)], pixels[1][0, : len(colours)], pixels[2][0, : len(colours)] = np.array(colours).T
    whole = labels._colour_table(schema, 0)[labels._pack(pixels)]
    np.testing.assert_array_equal(labels._index_of_colours(pixels, schema, 0), whole)
    assert set(whole[0, : len(colours)].tolist()) == {*range(len(colours) - 1), IGNORE}


def eroded_by_hand(index: np.ndarray, radius: int) -> np.ndarray:
    """Every pixel looks at every other pixel."""
    rows, cols = np.indices(index.shape)
    result = index.copy()
    for row, col in np.ndindex(index.shape):
        disc = (rows - row) ** 2 + (cols - col) ** 2 <= radius**2
        seen = set(index[disc].tolist()) - {IGNORE}
        if index[row, col] != IGNORE and len(seen) > 1:
            result[row, col] = IGNORE
    return result


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    height=st.integers(1, 14),
    width=st.integers(1, 14),
    radius=st.integers(0, 5),
    scale=st.integers(1, 5),
)
def test_erosion_equals_its_definition(seed, height, width, radius, scale):
    coarse = np.random.default_rng(seed).choice([0, 1, 2, IGNORE], (height, width)).astype(np.uint8)
    index = np.repeat(np.repeat(coarse, scale, 0), scale, 1)[:height, :width]
    before = index.copy()
    assert np.array_equal(erode_boundaries(index, radius), eroded_by_hand(index, radius))
    assert np.array_equal(index, before)


@pytest.mark.parametrize("band", [1, 40, 130])
def test_erosion_in_bands_equals_erosion_at_once(monkeypatch, band):
    label = np.random.default_rng(band).integers(0, 3, (9, 8)).repeat(5, 0).repeat(5, 1).astype(np.uint8)
    label[3:9, 10:20] = IGNORE
    at_once = erode_boundaries(label, 3)
    monkeypatch.setattr(labels, "_BAND", band)
    np.testing.assert_array_equal(erode_boundaries(label, 3), at_once)


def test_erosion_of_grown_windows_equals_erosion_of_the_whole():
    index = np.repeat(np.repeat(indices(shape=(12, 15)), 6, 0), 5, 1)
    whole = erode_boundaries(index, 3)
    for window in blocks(*index.shape, 17):
        halo = window.grown(3, *index.shape)
        eroded = erode_boundaries(index[halo.slices], 3)
        row, col = window.row - halo.row, window.col - halo.col
        assert np.array_equal(eroded[row : row + window.height, col : col + window.width], whole[window.slices])


DRAWN = """
    aaaaaaaaaaaa     aaaa.aaaaaaa
    aaaaaaaaaaaa     aa.....aaaaa
    aaaaaaaaaaaa     aa.....aaaaa
    aaaabaaaaaaa     a.......aaaa
    aaaaaaaaaaaa     aa.....aa...
    aaaaaaaaaaaa     aa..........
    aaaaaaaa____     aaaa.aa.____
    aaaaaaaa_ccc     aaaaaa.._...
    aaaaaaaa_ccc     aaaaaa.._...
    aaaaaaaa_ccc     aaaaaa.._..c
"""


def test_a_drawn_label_is_eroded_pixel_by_pixel_as_the_isprs_rule_says():
    """A car of one pixel takes the disc of radius 3 around it; unlabelled pixels (_) are no class."""
    lines = [line.split() for line in DRAWN.strip().splitlines()]
    before, after = (np.array([list(line[side]) for line in lines]) for side in (0, 1))
    values = {"a": 0, "b": 1, "c": 2, "_": IGNORE, ".": IGNORE}
    index, expected = (np.vectorize(values.get)(part).astype(np.uint8) for part in (before, after))
    found = erode_boundaries(index, 3)
    np.testing.assert_array_equal(found, expected)


def test_a_straight_boundary_loses_the_radius_on_both_sides():
    index = np.zeros((9, 20), np.uint8)
    index[:, 10:] = 1
    assert (erode_boundaries(index, 3) == IGNORE).sum(axis=1).tolist() == [6] * 9


def pair(write_raster, tmp_path, **other):
    image = write_raster("top.tif", np.ones((3, 20, 30), np.uint8))
    settings = {"crs": "EPSG:25832", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000), **other}
    write_chip(
        tmp_path / "gts.tif",
        encode_colours(indices(shape=other.pop("shape", (20, 30))), ISPRS),
        **{key: value for key, value in settings.items() if key != "shape"},
    )
    return Scene(image), LabelRaster(tmp_path / "gts.tif", ISPRS)


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"crs": None, "transform": Affine.identity()},
        {"crs": None},
        {"transform": Affine(0.5, 0, 500_000.1, 0, -0.5, 5_400_000)},
    ],
)
def test_labels_on_the_same_grid_or_without_a_place_are_accepted(write_raster, tmp_path, other):
    require_same_grid(*pair(write_raster, tmp_path, **other))


@pytest.mark.parametrize(
    ("other", "values"),
    [
        ({"shape": (20, 31)}, ("20 x 30", "20 x 31")),
        ({"crs": "EPSG:25833"}, ("EPSG:25832", "EPSG:25833")),
        ({"transform": Affine(0.5, 0, 500_000.25, 0, -0.5, 5_400_000)}, ("500000.0", "500000.25")),
        ({"transform": Affine(0.5, 0, 500_000, 0, 0.5, 5_400_000)}, ("-0.5", "0.5")),
        ({"crs": None, "transform": Affine(1, 0, 500_000, 0, -1, 5_400_000)}, ("0.5", "1.0")),
    ],
)
def test_labels_on_another_grid_are_refused_with_both_files_and_values(write_raster, tmp_path, other, values):
    with pytest.raises(RasterError) as caught:
        require_same_grid(*pair(write_raster, tmp_path, **other))
    for part in ("top.tif", "gts.tif", *values):
        assert part in str(caught.value)


@pytest.mark.parametrize("kept", [0, 1, 6, 255])
@pytest.mark.parametrize("last", [255, 7])
def test_bytes_are_translated_by_their_table(kept, last):
    table = np.random.default_rng(kept).integers(0, 256, 256).astype(np.uint8)
    table[:kept] = np.arange(kept)
    table[255] = last
    for values in (np.arange(256), np.arange(kept), [0, 255], [255], []):
        pixels = np.array(values, np.uint8)
        found = translate_bytes(pixels, table.tobytes())
        np.testing.assert_array_equal(found, table[pixels])
        found[...] = 3  # the result is the caller's own
        np.testing.assert_array_equal(pixels, np.array(values, np.uint8))
