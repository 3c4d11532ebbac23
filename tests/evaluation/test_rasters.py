"""What is compared with what: maps with pixels of another size than their labels, maps in label values."""

import numpy as np
import pytest
from rasterio.transform import from_origin

from rs_biformer.errors import RasterError
from rs_biformer.evaluation import evaluate, find_label_errors
from rs_biformer.evaluation.maps import ClassMap, find_numbers
from rs_biformer.evaluation.rasters import Spelling, Subject, opened
from rs_biformer.geometry import Window
from rs_biformer.raster.metadata import class_tags
from rs_biformer.schema import IGNORE, PRESETS, ClassSchema

SCHEMA = PRESETS["potsdam"]
LOVEDA = PRESETS["loveda"]


def at(gsd: float, x: float = 500_000.0, y: float = 5_400_000.0):
    return {"transform": from_origin(x, y, gsd, gsd)}


@pytest.mark.parametrize(("fine", "coarse"), [(0.2, 0.4), (0.2, 0.6), (0.3, 0.5)])
def test_a_finer_map_is_compared_by_the_pixel_under_the_middle_of_each_of_the_label_s(write_raster, fine, coarse):
    rng = np.random.default_rng(1)
    shape = 30, 40
    label = rng.integers(0, 6, shape).astype(np.uint8)
    rows, cols = (round(side * coarse / fine) for side in shape)
    mapped = rng.integers(0, 6, (rows, cols)).astype(np.uint8)
    paths = write_raster("a_classes.tif", mapped, **at(fine)), write_raster("a_label.tif", label, **at(coarse))
    said = []
    metrics = evaluate(*paths, SCHEMA, say=said.append)
    # the middles, in exact hundredths of a metre
    fine_cm, coarse_cm = round(fine * 100), round(coarse * 100)
    down = [(2 * row + 1) * coarse_cm // (2 * fine_cm) for row in range(shape[0])]
    right = [(2 * col + 1) * coarse_cm // (2 * fine_cm) for col in range(shape[1])]
    seen = mapped[np.ix_(down, right)]
    assert metrics.scores.confusion.evaluated == label.size
    assert metrics.overall_accuracy == pytest.approx((seen == label).mean())
    assert len(said) == 1 and "1 of 1 maps have pixels of another size" in said[0]


def test_a_coarser_map_its_confidence_and_scene_are_read_on_the_label_s_grid(write_raster):
    rng = np.random.default_rng(2)
    mapped = rng.integers(0, 6, (20, 30)).astype(np.uint8)
    sure = rng.random((20, 30)).astype(np.float32)
    image = np.full((20, 30), 9, np.uint8)
    image[:5] = 0
    label = mapped.repeat(3, 0).repeat(3, 1)
    subject = Subject(
        "a",
        write_raster("a_classes.tif", mapped, **at(1.5)),
        write_raster("a_label.tif", label, **at(0.5)),
        write_raster("a.tif", image, nodata=0, **at(1.5)),
        write_raster("a_sure.tif", sure, **at(1.5)),
    )
    with opened(subject, Spelling(SCHEMA)) as rasters:
        for window in (Window(0, 0, 60, 90), Window(7, 11, 1, 1), Window(10, 4, 23, 50), Window(59, 89, 1, 1)):
            part = window.slices
            assert np.array_equal(rasters.mapped(window), label[part])
            assert np.array_equal(rasters.confidences(window)[0], sure.repeat(3, 0).repeat(3, 1)[part])
            assert np.array_equal(rasters.valid(window), image.repeat(3, 0).repeat(3, 1)[part] > 0)


def test_suspicious_labels_of_a_finer_map_are_outlined_on_the_label_s_grid(write_raster, tmp_path):
    from pyogrio.raw import read
    from shapely import from_wkb

    label = np.zeros((40, 40), np.uint8)
    mapped = label.copy()
    mapped[10:20, 12:24] = 1
    label[30:, :] = 1
    mapped[30:, :] = 1
    fine = mapped.repeat(2, 0).repeat(2, 1)
    paths = write_raster("m.tif", fine, **at(0.25)), write_raster("l.tif", label, **at(0.5))
    sure = write_raster("s.tif", np.full((80, 80), 0.9, np.float32), **at(0.25))
    assert find_label_errors(*paths, [sure], SCHEMA, tmp_path / "e.gpkg") == 1
    (outline,) = from_wkb(read(tmp_path / "e.gpkg", layer="e")[2])
    assert outline.bounds == (500_006.0, 5_399_990.0, 500_012.0, 5_399_995.0)


@pytest.mark.parametrize(
    ("shape", "place"),
    [
        ((31, 40), at(0.4)),  # a row more
        ((60, 80), at(0.2, x=500_000.2)),  # half a pixel off
        ((60, 60), at(0.2)),  # other ground
        ((60, 80), {"transform": from_origin(500_000, 5_400_000, 0.2, 0.2), "crs": "EPSG:25833"}),
    ],
)
def test_other_grids_are_refused(write_raster, shape, place):
    label = write_raster("l.tif", np.zeros((30, 40), np.uint8), **at(0.4))
    mapped = write_raster("m.tif", np.zeros(shape, np.uint8), **place)
    with pytest.raises(RasterError, match=r"m\.tif"):
        evaluate(mapped, label, SCHEMA)


@pytest.fixture
def numbered(write_raster):
    """A map of these numbers, with what it says of them."""

    def write(numbers, name="m.tif", names=None, palette=None):
        import rasterio

        path = write_raster(name, np.array([numbers], np.uint8), nodata=IGNORE)
        with rasterio.open(path, "r+") as file:
            if names:
                file.update_tags(**class_tags(names))
            if palette:
                file.write_colormap(1, {number: (*colour, 255) for number, colour in palette.items()})
        return path

    return write


BY_INDEX = dict(enumerate(LOVEDA.colours))
BY_VALUE = dict(zip(LOVEDA.values, LOVEDA.colours, strict=True))


@pytest.mark.parametrize(
    ("numbers", "says", "meant"),
    [
        ([0, 1, 2, 3], {}, "indices"),
        ([1, 2, 7], {}, "values"),
        ([1, 2, 3], {"names": LOVEDA.classes}, "indices"),
        ([1, 2, 3], {"palette": BY_INDEX}, "indices"),
        ([1, 2, 3], {"palette": BY_VALUE}, "values"),
        ([0, 9], {}, "indices"),  # neither: refused when it is read
    ],
)
def test_names_colours_and_numbers_say_what_the_numbers_of_a_map_mean(numbered, numbers, says, meant):
    assert find_numbers([numbered(numbers, **says)], LOVEDA) == meant


def test_all_maps_of_a_set_decide_together(numbered):
    paths = [numbered([1, 2, 3]), numbered([1, 7], "n.tif")]
    said = []
    assert find_numbers(paths, LOVEDA, said.append) == "values"
    assert said == ["maps are read in the schema's label values: they hold 1, 2, 3, 7, which are no class indices"]
    assert find_numbers([paths[0], numbered([0], "o.tif")], LOVEDA) == "indices"


def test_numbers_that_may_mean_both_are_refused_until_it_is_said(numbered, write_raster):
    mapped, label = numbered([1, 2, 3, 6]), write_raster("l.tif", np.array([[1, 2, 3, 6]], np.uint8))
    with pytest.raises(
        RasterError, match=r"holds the numbers 1, 2, 3, 6, .*--map-numbers indices or --map-numbers values"
    ):
        evaluate(mapped, label, "loveda")
    assert evaluate(mapped, label, "loveda", numbers="values").overall_accuracy == 1
    assert evaluate(mapped, label, "loveda", numbers="indices").overall_accuracy == 0


def test_a_map_in_label_values_is_scored_by_them(numbered, write_raster):
    label = write_raster("l.tif", np.array([[1, 2, 7, 0, 5]], np.uint8))
    metrics = evaluate(numbered([1, 2, 7, 4, IGNORE]), label, "loveda")
    assert metrics.overall_accuracy == 0.75
    assert metrics.scores.confusion.unpredicted.sum() == 1


def test_values_beyond_a_byte_and_several_of_one_class_are_read(write_raster):
    schema = ClassSchema(
        "t", ("water", "forest"), ((0, 0, 9), (0, 9, 0)), values=(500, 21), further_values=((), (22, 23))
    )
    path = write_raster("m.tif", np.array([[500, 21, 22, 23, 65535]], np.uint16), nodata=65535)
    with ClassMap(path, schema) as mapped:
        assert mapped.read(Window(0, 0, 1, 5)).tolist() == [[0, 1, 1, 1, IGNORE]]


def test_classes_in_another_order_are_told_by_their_names(numbered, write_raster):
    other = (LOVEDA.classes[1], LOVEDA.classes[0], *LOVEDA.classes[2:])
    path = numbered([0, 1], names=other)
    with pytest.raises(
        RasterError, match="calls its class 0 'building', but schema 'loveda' calls class 0 'background'"
    ):
        ClassMap(path, LOVEDA)


def test_a_map_or_label_of_absurd_size_is_refused_before_it_is_read(write_raster, tmp_path, monkeypatch):
    huge = tmp_path / "huge.vrt"
    huge.write_text(
        '<VRTDataset rasterXSize="2000000" rasterYSize="2000000"><SRS>EPSG:32632</SRS>'
        "<GeoTransform>5e5,.5,0,5.4e6,0,-.5</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1"/></VRTDataset>'
    )
    refused = "is 2000000 x 2000000 pixels; more than 100,000,000,000 .* --allow-huge"
    label = write_raster("a_label.tif", np.ones((6, 8), np.uint8), **at(0.5))
    for schema in (SCHEMA, LOVEDA):  # the second has the numbers of maps found out, from all of their pixels
        for pair in ((huge, label), (huge, huge)):
            with pytest.raises(RasterError, match=refused):
                evaluate(*pair, schema)
    monkeypatch.setattr("rs_biformer.raster.sizes.MOST_PIXELS", 150)
    fine = write_raster("a_fine.tif", np.ones((12, 16), np.uint8), **at(0.25))
    with pytest.raises(RasterError, match="a_fine.tif is 12 x 16 pixels; more than 150 "):
        evaluate(label, fine, SCHEMA)
    assert evaluate(label, fine, SCHEMA, allow_huge=True).scores.confusion.evaluated == 192
