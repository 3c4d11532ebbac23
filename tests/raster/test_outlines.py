"""Polygons from slabs, exact and simplified."""

from collections.abc import Iterator

import numpy as np
import pytest
import rasterio.features
import shapely
import shapely.geometry
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rs_biformer.raster.tracing import Traced, traced
from rs_biformer.raster.vector import FaceBuilder
from rs_biformer.schema import IGNORE

TOLERANCES = [0.5, 0.75, 1.0, 1.5, 3.0, 20.0]


def blobs(
    seed: int, height: int, width: int, scale: int = 1, values: tuple[int, ...] = (0, 1, 2, IGNORE)
) -> np.ndarray:
    coarse = np.random.default_rng(seed).choice(values, (-(-height // scale), -(-width // scale)))
    return np.repeat(np.repeat(coarse, scale, 0), scale, 1)[:height, :width].astype(np.uint8)


def smooth(seed: int, height: int, width: int, sigma: float) -> np.ndarray:
    """Round patches of three classes, as a network draws them."""
    noise = np.random.default_rng(seed).standard_normal((3, height, width))
    return ndimage.gaussian_filter(noise, (0, sigma, sigma)).argmax(0).astype(np.uint8)


maps = st.one_of(
    st.builds(blobs, st.integers(0, 10_000), st.integers(1, 24), st.integers(1, 16), st.integers(1, 4)),
    st.builds(blobs, st.integers(0, 10_000), st.integers(1, 16), st.integers(1, 16), st.just(1), st.just((0, 1))),
    st.builds(smooth, st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 40), st.floats(0.5, 4)),
)


def slabs(index: np.ndarray, rows: int, tolerance: float) -> Iterator[Traced]:
    for row in range(0, len(index), rows):
        above = index[row - 1] if row else None
        yield traced(index[row : row + rows], above, None, tolerance, last=row + rows >= len(index))


def faces(index: np.ndarray, rows: int, tolerance: float = 0) -> tuple[np.ndarray, np.ndarray]:
    """All polygons and their classes."""
    builder = FaceBuilder(len(index))
    found = [builder.add(slab)[:2] for slab in slabs(index, rows, tolerance)]
    return np.concatenate([some for some, _ in found]), np.concatenate([some for _, some in found])


def by_gdal(index: np.ndarray) -> set[tuple[int, str]]:
    return {
        (int(value), shapely.geometry.shape(shape).normalize().wkt)
        for shape, value in rasterio.features.shapes(index, mask=index != IGNORE, connectivity=4)
    }


def corners(ring: shapely.LinearRing) -> np.ndarray:
    """The corners of an exact outline, without the points on straight edges where other patches meet."""
    points = shapely.get_coordinates(ring)[:-1]
    straight = (points == np.roll(points, 1, 0)) & (points == np.roll(points, -1, 0))
    return points[~straight.any(axis=1)]


def burnt(outlines: np.ndarray, classes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    pairs = [(outline, int(value)) for outline, value in zip(outlines, classes, strict=True)]
    return rasterio.features.rasterize(pairs, shape, fill=IGNORE, dtype=np.uint8) if pairs else np.full(shape, IGNORE)


@settings(max_examples=80)
@given(index=maps, rows=st.integers(1, 12))
def test_bands_give_the_polygons_of_gdal_for_the_whole_map(index, rows):
    outlines, classes = faces(index, rows)
    assert shapely.is_valid(outlines).all()
    assert len(outlines) == len(by_gdal(index))
    assert by_gdal(index) == {
        (int(value), shapely.Polygon(corners(o.exterior), [corners(i) for i in o.interiors]).normalize().wkt)
        for o, value in zip(outlines, classes, strict=True)
    }


@settings(max_examples=60)
@given(index=maps, rows=st.integers(1, 12))
def test_exact_polygons_are_the_same_for_any_height_of_a_band_and_burn_back_to_the_map(index, rows):
    outlines, classes = faces(index, rows)
    whole, whole_classes = faces(index, len(index))
    assert {(int(v), o.normalize().wkt) for o, v in zip(outlines, classes, strict=True)} == {
        (int(v), o.normalize().wkt) for o, v in zip(whole, whole_classes, strict=True)
    }
    assert np.array_equal(burnt(outlines, classes, index.shape), index)


@settings(max_examples=150)
@given(index=maps, rows=st.integers(1, 40), tolerance=st.sampled_from(TOLERANCES))
def test_simplified_polygons_have_no_gaps_and_no_overlaps(index, rows, tolerance):
    outlines, _ = faces(index, rows, tolerance)
    exact, _ = faces(index, rows)
    assert len(outlines) == len(exact)
    assert shapely.is_valid(outlines).all()
    assert (shapely.area(outlines) > 0).all()
    assert (shapely.get_num_coordinates(outlines) <= shapely.get_num_coordinates(exact)).all()
    if len(outlines):
        assert shapely.coverage_is_valid(outlines)
    if not (index == IGNORE).any():
        assert shapely.area(outlines).sum() == pytest.approx(index.size, abs=1e-9)


@settings(max_examples=60)
@given(index=maps, rows=st.integers(1, 40), tolerance=st.sampled_from(TOLERANCES))
def test_no_outline_leaves_its_pixels_by_more_than_the_tolerance(index, rows, tolerance):
    outlines, classes = faces(index, rows, tolerance)
    exact, _ = faces(index, rows)
    moved = shapely.hausdorff_distance(shapely.boundary(outlines), shapely.boundary(exact))
    assert (moved <= tolerance + 1e-9).all()
    change = np.abs(shapely.area(outlines) - shapely.area(exact))
    assert (change <= 2 * tolerance * shapely.length(exact)).all()
    drawn = burnt(outlines, classes, index.shape)
    for value in np.unique(drawn[drawn != index]):
        far = ndimage.distance_transform_edt(index != value)  # to the middle of the nearest pixel of that class
        assert far[(drawn == value) & (index != value)].max() <= tolerance + 1


def test_a_slanted_border_becomes_straight():
    y, x = np.mgrid[:60, :60]
    outlines, _ = faces((3 * x + 2 * y > 150).astype(np.uint8), 60, 1.0)
    assert shapely.get_num_coordinates(outlines).max() <= 7


def test_what_is_thinner_than_the_tolerance_stays():
    index = np.zeros((40, 40), np.uint8)
    index[20, 5:35] = 1  # a line of single pixels,
    index[4, 4] = 2  # one pixel alone,
    index[9:11, 10:16] = 3  # and across the seam at row 10: one pixel above, one below
    for rows in (40, 10, 1):
        outlines, classes = faces(index, rows, 20.0)
        assert sorted(classes.tolist()) == [0, 1, 2, 3]
        assert (shapely.area(outlines) > 0).all()
        assert shapely.coverage_is_valid(outlines)


def test_the_frame_stays_even_where_the_map_is_masked():
    index = smooth(3, 60, 50, 4.0)
    index[:20, :20] = IGNORE
    index[45:, 30:] = IGNORE
    outlines, _ = faces(index, 16, 3.0)
    ring = shapely.box(0, 0, 50, 60).exterior
    on_frame = shapely.union_all(outlines).boundary.intersection(ring).length
    assert on_frame == pytest.approx(2 * (50 + 60) - 20 - 20 - 20 - 15)


def test_a_ring_through_many_bands_keeps_its_hole_and_its_corners():
    index = np.full((40, 30), 1, np.uint8)
    index[5:35, 5:25] = 0
    index[10:30, 10:20] = 2
    outlines, classes = faces(index, 7)
    found = dict(zip(classes.tolist(), outlines, strict=True))
    assert {value: len(outline.interiors) for value, outline in found.items()} == {0: 1, 1: 1, 2: 0}
    assert found[0].area == 30 * 20 - 20 * 10
    assert len(found[2].exterior.coords) == 5


def test_a_patch_that_meets_itself_at_a_corner_has_a_hole_there():
    index = np.zeros((5, 5), np.uint8)
    index[1:4, 1:4] = 1
    index[2, 2] = index[1, 1] = 0  # the middle touches the outside at one corner
    for rows in (5, 2, 1):
        outlines, classes = faces(index, rows)
        (ring,) = outlines[classes == 1]
        assert ring.is_valid
        assert (ring.area, len(ring.interiors)) == (7, 1)


def test_a_polygon_comes_as_soon_as_its_last_row_is_past():
    index = np.zeros((12, 6), np.uint8)
    index[1:3, 1:3] = 1
    index[7:11, 1:5] = 2
    builder = FaceBuilder(12)
    assert [builder.add(slab)[1].tolist() for slab in slabs(index, 4, 1.0)] == [[1], [], [0, 2]]
