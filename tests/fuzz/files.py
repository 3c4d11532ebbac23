"""Kinds of input files of commands: intact folders, what is mutated in them, which commands read them, the truth."""

import json
import random
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyogrio
import rasterio
import shapely
import yaml
from mutate import mutated_bytes, mutated_document
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning
from rasterio.rpc import RPC
from rasterio.transform import from_origin
from tiffs import mutated_tiff

from rs_biformer.schema import ClassSchema

HEIGHT, WIDTH = 48, 40
SCHEMA = ClassSchema("three", ("low", "middle", "high"), ((0, 0, 0), (0, 255, 0), (255, 0, 0)))
PLACE = {"crs": "EPSG:25832", "transform": from_origin(500_000, 5_400_000, 0.5, 0.5)}
TIFFS = (".tif",)
TEXTS = (".geojson", ".xml", ".vrt", ".hdr", ".asc", ".tfw")


@dataclass(frozen=True)
class Task:
    """A command of a kind: its words with {in} and {out}, and the function of truths.py that looks at what it made."""

    words: str
    truth: str | None = None
    made: tuple[str, ...] = ()

    def argv(self, folder: Path) -> list[str]:
        return [word.format(**{"in": folder, "out": folder / "out"}) for word in self.words.split()]


@dataclass(frozen=True)
class Kind:
    """A kind of files: intact folders, the names that are mutated in each (glob), and the commands that read them."""

    name: str
    intact: Sequence[Path]
    mutated: str
    tasks: Sequence[Task]
    mutate: Callable[[Path, random.Random], None] = field(default=lambda path, chance: mutate_file(path, chance))

    def make(self, folder: Path, seed: int) -> Task:
        """A mutated copy of one of the folders, and the command to be run on it."""
        chance = random.Random(f"{self.name} {seed}")
        shutil.copytree(chance.choice(self.intact), folder, symlinks=True)
        self.mutate(chance.choice(sorted(folder.glob(self.mutated))), chance)
        return chance.choice(self.tasks)


def mutate_file(path: Path, chance: random.Random) -> None:
    """By the structure of the format where it has one that is known here, else by bytes."""
    data = path.read_bytes()
    if path.suffix in TIFFS and chance.random() < 0.7:
        path.write_bytes(mutated_tiff(data, chance))
    elif path.suffix == ".geojson" and chance.random() < 0.6:
        path.write_bytes(json.dumps(mutated_document(json.loads(data), chance)).encode(errors="surrogatepass"))
    elif path.suffix in TEXTS and chance.random() < 0.6:
        path.write_bytes(_with_other_numbers(data, chance))
    else:
        path.write_bytes(mutated_bytes(data, chance))


def _with_other_numbers(data: bytes, chance: random.Random) -> bytes:
    """A text in which one to three words are absurd."""
    words = data.split(b" ")
    for _ in range(chance.randint(1, 3)):
        words[chance.randrange(len(words))] = chance.choice(
            (b"0", b"-1", b"nan", b"1e308", b"99999999999", b"2147483647", b"</x>", b'"', b"\n", b"/etc/passwd", b"")
        )
    return b" ".join(words)


# --- intact files -----------------------------------------------------------------------------------------------------


def image(bands: int = 3, dtype: str = "uint8") -> np.ndarray:
    """(bands, HEIGHT, WIDTH) without 0, but for a corner."""
    found = np.random.default_rng(0).integers(1, 250, (bands, HEIGHT, WIDTH)).astype(dtype)
    found[:, :6, :6] = 0
    return found


def classes() -> np.ndarray:
    """(HEIGHT, WIDTH) of patches of three classes."""
    cells = np.random.default_rng(1).integers(0, 3, (HEIGHT // 8, WIDTH // 8))
    return cells.repeat(8, 0).repeat(8, 1).astype(np.uint8)


def write_raster(path: Path, pixels: np.ndarray, **profile: object) -> Path:
    profile = {"driver": "GTiff", **PLACE, **profile}
    size = {"count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2], "dtype": pixels.dtype}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # points and models of rays come after the opening
        with rasterio.open(path, "w", **(size | profile)) as sink:
            sink.write(pixels)
    return path


def scenes(folder: Path) -> list[Path]:
    """Folders with a scene.SUFFIX each, in every way that a scene is stored."""
    rgb = {"photometric": "rgb"}
    tiled = {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate", "predictor": 2}
    forms: dict[str, dict] = {
        "strips": {"nodata": 0, **rgb},
        "tiles": {**tiled, "interleave": "pixel", **rgb},
        "planes": {**tiled, "compress": "lzw", "interleave": "band", "nodata": 0},
        "big": {"BIGTIFF": "YES", "compress": "packbits", **rgb},
        "motorola": {"ENDIANNESS": "BIG", **rgb},
        "jpeg": {"compress": "jpeg", "photometric": "ycbcr", "tiled": True, "blockxsize": 16, "blockysize": 16},
        "erdas": {"driver": "HFA"},
        "envi": {"driver": "ENVI"},
        "png": {"driver": "PNG", "crs": None, "transform": None},
    }
    found = []
    for name, profile in forms.items():
        place = folder / name
        place.mkdir(parents=True)
        suffix = {"erdas": "img", "envi": "dat", "png": "png"}.get(name, "tif")
        path = write_raster(place / f"scene.{suffix}", image(), **profile)
        if name == "tiles":
            with rasterio.open(path, "r+") as file:
                file.build_overviews([2, 4])
                file.write_mask(image()[0] > 0)
        found.append(place)
    found += [_with_metadata(folder / "metadata"), _with_points(folder / "points"), _with_rpc(folder / "rpc")]
    return found


def _with_metadata(place: Path) -> Path:
    place.mkdir(parents=True)
    path = write_raster(place / "scene.tif", image(), nodata=0, photometric="rgb")
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (0.01, 0.01, 0.01), (1.0, 0.0, 0.0)
        file.descriptions, file.units = ("red", "green", "blue"), ("m", "m", "m")
        file.update_tags(TIFFTAG_DATETIME="2024:05:01 10:00:00", anything="else")
    return place


def _with_points(place: Path) -> Path:
    place.mkdir(parents=True)
    points = [
        GroundControlPoint(row, col, 500_000 + col / 2, 5_400_000 - row / 2)
        for row, col in ((0, 0), (0, WIDTH), (HEIGHT, 0), (HEIGHT, WIDTH), (20, 11))
    ]
    write_raster(place / "scene.tif", image(), transform=None, gcps=points, photometric="rgb")
    return place


def _with_rpc(place: Path) -> Path:
    place.mkdir(parents=True)
    rows = RPC(
        **{"height_off": 100.0, "height_scale": 500.0, "lat_off": 48.0, "lat_scale": 0.1, "line_off": 24.0},
        **{"line_scale": 24.0, "long_off": 9.0, "long_scale": 0.1, "samp_off": 20.0, "samp_scale": 20.0},
        line_num_coeff=[0.0, 0.0, 1.0] + [0.0] * 17,
        line_den_coeff=[1.0] + [0.0] * 19,
        samp_num_coeff=[0.0, 1.0] + [0.0] * 18,
        samp_den_coeff=[1.0] + [0.0] * 19,
    )
    write_raster(place / "scene.tif", image(), transform=None, crs=None, rpcs=rows, photometric="rgb")
    return place


def with_files(places: Sequence[Path], add: Callable[[Path], None]) -> list[Path]:
    """The same folders, each with more files."""
    for place in places:
        add(place)
    return list(places)


def class_rasters(folder: Path, stem: str) -> list[Path]:
    """Folders with a raster of classes: values, a palette, colours, tiles."""
    values, palette = classes()[None], {index: (*colour, 255) for index, colour in enumerate(SCHEMA.colours)}
    forms: dict[str, tuple[np.ndarray, dict]] = {
        "values": (values, {"nodata": 255}),
        "tiles": (values, {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "zstd", "nodata": 255}),
        "palette": (values, {}),
    }
    if stem != "map":
        forms["colours"] = (np.moveaxis(np.array(SCHEMA.colours, np.uint8)[values[0]], -1, 0), {"photometric": "rgb"})
    found = []
    for name, (pixels, profile) in forms.items():
        place = folder / name
        place.mkdir(parents=True)
        path = write_raster(place / f"{stem}.tif", pixels, **profile)
        if name == "palette":
            with rasterio.open(path, "r+") as file:
                file.write_colormap(1, palette)
        found.append(place)
    return found


def surfaces(folder: Path) -> list[Path]:
    """Folders with a dsm.SUFFIX: floats, whole numbers with scale and unit, a text."""
    rng = np.random.default_rng(2)
    heights = rng.normal(300, 3, (1, HEIGHT, WIDTH))
    found = []
    for name, dtype, profile in (("floats", "float32", {"nodata": -9999}), ("feet", "int16", {"nodata": -32768})):
        place = folder / name
        place.mkdir(parents=True)
        path = write_raster(place / "dsm.tif", heights.astype(dtype), **profile)
        if name == "feet":
            with rasterio.open(path, "r+") as file:
                file.scales, file.units = (0.1,), ("ft",)
        found.append(place)
    place = folder / "ascii"
    place.mkdir()
    rows = "\n".join(" ".join(f"{value:.2f}" for value in row) for row in heights[0])
    head = f"ncols {WIDTH}\nnrows {HEIGHT}\nxllcorner 5e5\nyllcorner 5.4e6\ncellsize 0.5\nNODATA_value -9999\n"
    (place / "dsm.asc").write_text(head + rows)
    (place / "dsm.prj").write_text(rasterio.CRS.from_epsg(25832).to_wkt())
    return [*found, place]


def polygon_layers(folder: Path) -> list[Path]:
    """Folders with a layer.SUFFIX of polygons with the names of classes, in every format."""
    left, top = 500_000.0, 5_400_000.0
    boxes = [shapely.box(left + 8 * col, top - 24, left + 8 * col + 6, top - 1) for col in range(3)]
    boxes.append(shapely.box(left, top - 9, left + 19, top).difference(shapely.Point(left + 9, top - 4).buffer(2)))
    shapes = np.array([shapely.to_wkb(box) for box in boxes], object)
    names = np.array([*SCHEMA.classes, SCHEMA.classes[0]], object)
    found = []
    for name, suffix, driver in (
        ("geojson", "geojson", "GeoJSON"),
        ("geopackage", "gpkg", "GPKG"),
        ("flatgeobuf", "fgb", "FlatGeobuf"),
        ("shapefile", "shp", "ESRI Shapefile"),
    ):
        place = folder / name
        place.mkdir(parents=True)
        kind = {"geometry_type": "Polygon", "crs": "EPSG:25832", "driver": driver}
        pyogrio.raw.write(str(place / f"layer.{suffix}"), shapes, [names], ["class"], **kind)
        found.append(place)
    place = folder / "geoparquet"
    place.mkdir()
    _write_geoparquet(place / "layer.parquet", shapes, names)
    return [*found, place]


def _write_geoparquet(path: Path, shapes: np.ndarray, names: np.ndarray) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import pyproj

    column = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": pyproj.CRS("EPSG:25832").to_json_dict()}
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    table = pa.table({"geometry": shapes.tolist(), "class": names.tolist()})
    pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), path)


def write_classes(place: Path) -> None:
    (place / "classes.yaml").write_text(yaml.dump(SCHEMA.to_dict()))
