"""What `vectorize --regularise` makes of buildings, and how long it takes.

Labels are the truth: their outlines are moved to and fro by a smooth field of so many pixels (standard deviation), as a
good map's are, and what comes of both is compared, without and with right angles. Pixels without a class get that of
the nearest one. Then maps of houses of any direction on three classes are timed, in processor seconds.

    python benchmarks/regularise.py --classes configs/classes/czech.yaml czech/test/PROS362_label.tif
    python benchmarks/regularise.py --houses 2500 10000
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.transform import Affine
from scipy import ndimage
from shapely import affinity

from rs_biformer import ClassSchema, load_schema
from rs_biformer.raster.vector import vectorize

METRE = Affine(1, 0, 0, 0, -1, 0)
SMALLEST = 60  # pixels of a patch


def class_map(path: Path, schema: ClassSchema) -> NDArray[np.uint8]:
    with rasterio.open(path) as file:
        pixels = file.read()
    index = np.full(pixels.shape[1:], 255, np.uint8)
    for number, colour in enumerate(schema.colours):
        index[(pixels[:3] == np.array(colour)[:, None, None]).all(axis=0)] = number
    nearest = ndimage.distance_transform_edt(index == 255, return_distances=False, return_indices=True)
    return index[tuple(nearest)]


def moved(index: NDArray[np.uint8], by: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    field = np.array([ndimage.gaussian_filter(rng.standard_normal(index.shape), 4) for _ in range(2)])
    places = np.indices(index.shape) + by * field / field.std()
    row, column = (
        np.clip(np.rint(some), 0, side - 1).astype(int) for some, side in zip(places, index.shape, strict=True)
    )
    return index[row, column]


def write(path: Path, index: NDArray[np.uint8], names: tuple[str, ...]) -> Path:
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": 255, "compress": "deflate"}
    height, width = index.shape
    with rasterio.open(path, "w", height=height, width=width, crs="EPSG:25832", transform=METRE, **profile) as file:
        file.write(index, 1)
        file.update_tags(CLASS_NAMES=json.dumps(names))
    return path


def corners(house: shapely.Polygon) -> tuple[int, int]:
    """How many corners its outlines have, and how many of these are right within three degrees."""
    every, right = 0, 0
    for ring in [house.exterior, *house.interiors]:
        points = shapely.get_coordinates(shapely.simplify(ring, 0.02))[:-1]
        before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
        turn = np.degrees(
            np.abs(np.arctan2(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0], (before * after).sum(1)))
        )
        every, right = every + int((turn > 2).sum()), right + int((np.abs(turn - 90) < 3).sum())
    return every, right


def compare(name: str, index: NDArray[np.uint8], truth: NDArray[np.uint8], schema: ClassSchema, folder: Path) -> None:
    building = [number for number, of in enumerate(schema.classes) if of.startswith("building")][0]
    path = write(folder / "map.tif", index, schema.classes)
    for kind, options in {"as they are": {}, "regularised": {"regularise": [schema.classes[building]]}}.items():
        said: list[str] = []
        vectorize(path, folder / "map.parquet", min_area=SMALLEST, say=said.append, **options)
        table = pq.read_table(folder / "map.parquet")
        outlines = shapely.transform(shapely.from_wkb(table["geometry"].to_numpy()), lambda points: points * [1, -1])
        assert shapely.coverage_is_valid(outlines)
        houses = outlines[table["class_index"].to_numpy() == building]
        every, right = np.array([corners(house) for house in houses]).sum(axis=0)
        drawn, there = rasterize([(house, 1) for house in houses], truth.shape) == 1, truth == building
        squared = said[0].split(" polygons")[0] if said else f"0 of {len(houses)}"
        points, iou = shapely.get_num_coordinates(houses).sum(), (drawn & there).sum() / (drawn | there).sum()
        print(f"| {name} | {kind} | {squared} | {points:,} | {100 * right / every:.0f} % | {100 * iou:.2f} % |")


def town(houses: int) -> NDArray[np.uint8]:
    """A map with so many houses, one in each square of 82 pixels."""
    rng = np.random.default_rng(0)
    across, cell = round(houses**0.5), 82
    part = ndimage.gaussian_filter(rng.standard_normal((3, 1024, 1024)), (0, 20, 20), mode="wrap").argmax(0)
    ground = np.tile(np.array([0, 1, 3], np.uint8)[part], [-(-across * cell // 1024)] * 2)
    ground = ground[: across * cell, : across * cell]
    for row, column in np.ndindex(across, across):
        width, height = rng.uniform(0.35, 0.6, 2) * cell
        house = shapely.box((cell - width) / 2, (cell - height) / 2, (cell + width) / 2, (cell + height) / 2)
        here = rasterize([(affinity.rotate(house, rng.uniform(0, 90)), 1)], (cell, cell)) == 1
        ground[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell][here] = 2
    return ground


def timed(houses: int, folder: Path) -> None:
    index = town(houses)
    path = write(folder / "town.tif", index, ("grass", "road", "building", "tree"))
    for kind, options in {"as they are": {}, "regularised": {"regularise": []}}.items():
        start = time.process_time()
        number = vectorize(path, folder / "town.gpkg", **options)
        spent, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"| {len(index):,} squared, {number:,} polygons | {kind} | {spent:.1f} s | {peak:.0f} MB |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", nargs="*", type=Path)
    parser.add_argument("--classes", default="vaihingen")
    parser.add_argument(
        "--by", nargs="+", type=float, default=[0.0, 1.0, 2.0], help="pixels that outlines are moved by"
    )
    parser.add_argument("--houses", nargs="+", type=int, default=[])
    args = parser.parse_args()
    schema = load_schema(args.classes)
    with tempfile.TemporaryDirectory() as folder:
        for label in args.labels:
            truth = class_map(label, schema)
            for by in args.by:
                name = f"{label.stem}, moved by {by:g} px"
                compare(name, moved(truth, by, np.random.default_rng(0)), truth, schema, Path(folder))
        for houses in args.houses:
            timed(houses, Path(folder))


if __name__ == "__main__":
    main()
