"""Headers that say what cannot be: the pixels are read all the same, and a line tells what was left aside."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.transform import Affine

from rs_biformer.cli import main
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.height import find_ground, write_ndsm
from rs_biformer.raster.legend import Legend
from rs_biformer.raster.metadata import describe_map
from rs_biformer.raster.remarks import remarks
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.source import Source, places_pixels
from rs_biformer.raster.vector import vectorize

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

VALUES = np.arange(12, dtype=np.uint8).reshape(3, 4)


def side_file(raster: Path, inside: str) -> None:
    Path(f"{raster}.aux.xml").write_text(f"<PAMDataset>{inside}</PAMDataset>")


def palette(*colours: tuple[int, int, int]) -> str:
    entries = "".join(f'<Entry c1="{r}" c2="{g}" c3="{b}" c4="255"/>' for r, g, b in colours)
    table = f"<ColorTable>{entries}</ColorTable>" if colours else ""
    return f'<PAMRasterBand band="1"><ColorInterp>Palette</ColorInterp>{table}</PAMRasterBand>'


@pytest.mark.parametrize("colours", [(), ((255, 0, 0), (0, 255, 0))], ids=["no table", "a table"])
@pytest.mark.parametrize("dtype", ["int8", "int16", "uint32", "int32", "float32", "float64", "int64", "uint64"])
def test_a_palette_that_is_none_leaves_the_values(write_raster, dtype, colours):
    # of 32 bits a table of all values would take 17 GB, of 64 more than there is
    path = write_raster("p.tif", VALUES.astype(dtype))
    side_file(path, palette(*colours))
    with Scene(path) as scene:
        image, valid = scene.read(Window(0, 0, 3, 4))
        (said,) = remarks(scene)
    assert image.dtype == dtype and (image[0] == VALUES).all() and valid.all()
    assert "marked as one with a palette" in said and dtype in said


def test_bytes_marked_as_a_palette_without_a_table_are_values(write_raster):
    path = write_raster("p.tif", VALUES.astype(np.int16))
    side_file(path, palette())
    assert Source(path).palette is None
    assert Legend.of(path, ["a"]).colour(0) == Legend({}, {}).colour(0)
    assert describe_map(path) == {}


def test_a_real_palette_is_looked_up(write_raster):
    path = write_raster("p.tif", np.array([[0, 1]], np.uint8), photometric="palette")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (10, 20, 30, 255), 1: (40, 50, 60, 255)})
    with Scene(path) as scene:
        assert scene.read(Window(0, 0, 1, 2))[0][:, 0].tolist() == [[10, 40], [20, 50], [30, 60]]
        assert remarks(scene) == []


COEFFICIENTS = {
    **dict.fromkeys(("ERR_BIAS", "ERR_RAND", "HEIGHT_OFF"), "0"),
    **dict.fromkeys(("LINE_OFF", "SAMP_OFF", "LAT_OFF", "LONG_OFF"), "1"),
    **dict.fromkeys(("LINE_SCALE", "SAMP_SCALE", "LAT_SCALE", "LONG_SCALE", "HEIGHT_SCALE"), "1"),
    **dict.fromkeys(("LINE_NUM_COEFF", "LINE_DEN_COEFF", "SAMP_NUM_COEFF", "SAMP_DEN_COEFF"), "1 " * 20),
}


@pytest.mark.parametrize("key, text", [("LINE_OFF", "abc"), ("HEIGHT_OFF", ""), ("LAT_OFF", None)])
def test_coefficients_that_are_no_numbers_place_nothing(write_raster, key, text):
    path = write_raster("r.tif", VALUES, crs=None, transform=Affine.identity())
    said = {**COEFFICIENTS, key: text}
    items = "".join(f'<MDI key="{name}">{escape(value)}</MDI>' for name, value in said.items() if value is not None)
    side_file(path, f'<Metadata domain="RPC">{items}</Metadata>')
    with Scene(path) as scene:
        assert scene.georeference["rpcs"] is None
        assert (scene.read(Window(0, 0, 3, 4))[0][0] == VALUES).all()
        assert "places nothing" in remarks(scene)[0]


def points(*places: tuple[float, float, float, float]) -> list[GroundControlPoint]:
    return [GroundControlPoint(row, col, x, y) for row, col, x, y in places]


@pytest.mark.parametrize(
    "control",
    [
        points((0, 0, 5e5, 5e6), (1, 1, 5e5 + 1, 5e6 - 1), (2, 2, 5e5 + 2, 5e6 - 2)),
        points((0, 0, 5e5, 5e6), (0, 4, 5e5, 5e6), (3, 0, 5e5, 5e6)),
        points((0, 0, float("nan"), 0), (0, 4, 1, 1), (3, 0, 2, 2)),
        points((0, 0, float("inf"), 0), (0, 4, 1, 1), (3, 0, 2, 2)),
        points((0, 0, 1e300, 0), (0, 4, -1e300, 1), (3, 0, 2, 1e300)),
    ],
    ids=["in a line", "at one place", "nan", "infinite", "out of this world"],
)
def test_control_points_that_place_nothing_are_left_aside(tmp_path, caplog, control):
    with rasterio.open(
        tmp_path / "g.tif", "w", driver="GTiff", height=3, width=4, count=1, dtype="uint8", nodata=255
    ) as file:
        file.write(VALUES, 1)
        file.gcps = (control, rasterio.CRS.from_epsg(32632))
    source = Source(tmp_path / "g.tif")
    assert source.misplaced and source.gcps == ([], None)
    assert vectorize(tmp_path / "g.tif", tmp_path / "g.gpkg") == 12
    assert "places nothing" in caplog.text


def test_control_points_that_place_something_are_kept(tmp_path):
    control = points((0, 0, 5e5, 5e6), (0, 4, 5e5 + 4, 5e6), (3, 0, 5e5, 5e6 - 3))
    with rasterio.open(tmp_path / "g.tif", "w", driver="GTiff", height=3, width=4, count=1, dtype="uint8") as file:
        file.write(VALUES, 1)
        file.gcps = (control, rasterio.CRS.from_epsg(32632))
    source = Source(tmp_path / "g.tif")
    assert not source.misplaced and len(source.gcps[0]) == 3


def test_heights_on_pixels_of_a_hair_are_refused(write_raster, tmp_path):
    path = write_raster("h.tif", VALUES.astype(np.float32), transform=Affine(1e-10, 0, 5e5, 0, -1e-10, 5e6))
    with pytest.raises(RasterError, match=r"pixels of 1e-10 m .* taken for a mistake"):
        write_ndsm(path, tmp_path / "n.tif")
    assert not (tmp_path / "n.tif").exists()


def test_ground_is_the_same_whatever_is_wider_than_all():
    cells = np.zeros((8, 9), np.float32)
    cells[3:5, 3:6] = 7
    assert (find_ground(cells, 1, 1e300, 0.3) == find_ground(cells, 1, 100, 0.3)).all()


def test_outlines_are_moved_by_no_more_than_a_map_is_wide(write_raster, tmp_path):
    path = write_raster("m.tif", VALUES, nodata=255)
    with pytest.raises(ConfigError, match="at most 1e\\+06 pixels"):
        vectorize(path, tmp_path / "m.gpkg", simplify=1e300)
    assert vectorize(path, tmp_path / "m.gpkg", simplify=1e6) == 12


@pytest.mark.parametrize("interleave, bands", [("pixel", 3), ("band", 1)])
def test_the_bytes_of_a_block_are_those_of_all_bands_that_come_with_it(write_raster, interleave, bands):
    path = write_raster(
        "b.tif", np.ones((3, 64, 64), np.uint16), tiled=True, blockxsize=32, blockysize=16, interleave=interleave
    )
    assert Source(path).decoded == bands * 2 * 32 * 16


def wide_vrt(folder: Path, width: int, height: int) -> Path:
    path = folder / "wide.vrt"
    path.write_text(
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>EPSG:32632</SRS>'
        "<GeoTransform>5e5,.5,0,5.4e6,0,-.5</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1"/></VRTDataset>'
    )
    return path


def test_a_map_of_absurd_width_is_refused_before_it_is_read(tmp_path):
    with pytest.raises(RasterError, match=r"16 x 2000000000 pixels; more than 2,097,152 columns .* --allow-huge"):
        vectorize(wide_vrt(tmp_path, 2 * 10**9, 16), tmp_path / "v.gpkg")
    assert not (tmp_path / "v.gpkg").exists()
    with pytest.raises(RasterError, match=r"1,000,000,000,000 cells .* --allow-huge"):
        write_ndsm(wide_vrt(tmp_path, 2 * 10**6, 2 * 10**6), tmp_path / "n.tif")


def test_a_wide_map_is_taken_by_who_insists(tmp_path, monkeypatch):
    monkeypatch.setattr("rs_biformer.raster.vector.MOST_COLUMNS", 50)
    path = wide_vrt(tmp_path, 60, 2)
    with pytest.raises(RasterError, match="insist with --allow-huge"):
        vectorize(path, tmp_path / "v.gpkg")
    assert vectorize(path, tmp_path / "v.gpkg", allow_huge=True) == 1
    monkeypatch.setattr("rs_biformer.raster.height.MOST_CELLS", 5)
    with pytest.raises(RasterError, match="insist with --allow-huge"):
        write_ndsm(path, tmp_path / "n.tif")
    write_ndsm(path, tmp_path / "n.tif", allow_huge=True)


@pytest.mark.parametrize("name", ["-a", "#a", "gpkg_a", "SQLITE_a", "rtree_a", "a\x1bb", "", "a" * 201])
def test_a_layer_that_no_geopackage_takes_is_refused_before_the_work(write_raster, tmp_path, monkeypatch, name):
    path = write_raster("m.tif", VALUES, nodata=255)
    monkeypatch.setattr("rs_biformer.raster.vector.FaceBuilder.add", None)
    monkeypatch.setattr("rs_biformer.raster.vector.layer_name", lambda out: "")
    with pytest.raises(ConfigError, match="a layer is to be called .* choose another --layer"):
        vectorize(path, tmp_path / "m.gpkg", layer=name)
    assert [found.name for found in tmp_path.iterdir()] == ["m.tif"]


@pytest.mark.parametrize("name", ["-a", "#a", "gpkg_a", "a b", "ä"])
def test_a_file_of_any_name_has_a_layer(write_raster, tmp_path, name):
    path = write_raster("m.tif", VALUES, nodata=255)
    assert vectorize(path, tmp_path / f"{name}.gpkg") == 12


def test_an_interruption_stays_one_where_gdal_takes_it_for_an_error(write_raster, tmp_path, monkeypatch):
    path = write_raster("m.tif", VALUES, nodata=255)

    def interrupted(*_: object) -> None:
        raise RuntimeError("Error from Python: KeyboardInterrupt")

    monkeypatch.setattr("rs_biformer.raster.features._write_by_gdal", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vectorize(path, tmp_path / "m.gpkg")

    def refused(*_: object) -> None:
        raise RuntimeError("unable to open database file")

    monkeypatch.setattr("rs_biformer.raster.features._write_by_gdal", refused)
    with pytest.raises(RasterError, match="unable to open database file; choose another name or folder"):
        vectorize(path, tmp_path / "m.gpkg")
    assert [found.name for found in tmp_path.iterdir()] == ["m.tif"]


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_a_transform_that_is_no_numbers_places_nothing_wherever_it_has_none(value, place):
    numbers = [0.5, 0.0, 5e5, 0.0, -0.5, 5e6]
    assert places_pixels(Affine(*numbers), 3, 4)
    numbers[place] = value
    assert not places_pixels(Affine(*numbers), 3, 4)
    if place in (3, 4):  # as GDAL reads such a scale from a GeoTIFF
        assert not places_pixels(Affine(*numbers[:5], float("nan")), 3, 4)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("suffix", ["gpkg", "fgb", "parquet"])
def test_a_signal_between_arrow_and_what_it_calls_is_an_interruption(
    write_raster, tmp_path, monkeypatch, capsys, number, code, suffix
):
    path = write_raster("m.tif", VALUES, nodata=255)

    def interrupted(source: object) -> Iterator[object]:  # before there is one who remembers what ended the batches
        os.kill(os.getpid(), number)
        yield from ()

    monkeypatch.setattr("rs_biformer.raster.features._Batches.record_batches", interrupted)
    assert main(["vectorize", str(path), "--out", str(tmp_path / f"m.{suffix}")]) == code
    assert capsys.readouterr().err.splitlines()[-1] == "rs-biformer vectorize: interrupted"
    assert [found.name for found in tmp_path.iterdir()] == ["m.tif"]


def test_a_file_called_as_an_interruption_is_none(write_raster, tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise RuntimeError("sqlite3_open(Terminated.gpkg) failed")

    monkeypatch.setattr("rs_biformer.raster.features._write_by_gdal", refused)
    with pytest.raises(RasterError, match="Terminated.gpkg. failed; choose another name or folder"):
        vectorize(write_raster("m.tif", VALUES, nodata=255), tmp_path / "Terminated.gpkg")


def test_a_tall_map_makes_nothing_for_each_of_its_rows(tmp_path, monkeypatch):
    """Areas of pixels are asked for by --min-area and --regularise alone: a header may claim a billion rows."""
    monkeypatch.setattr("rs_biformer.raster.vector.pixel_areas", None)
    assert vectorize(wide_vrt(tmp_path, 3, 20), tmp_path / "v.gpkg") == 1
