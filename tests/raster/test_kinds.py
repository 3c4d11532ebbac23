"""What lies behind a name: descriptions of rasters elsewhere are not followed unless the user named that kind.

A server of this machine counts what is asked of it, and must be asked nothing.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import rasterio
import shapely
from pyogrio.raw import write

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.polygons import Polygons
from rs_biformer.raster.source import Source
from rs_biformer.raster.vrt import REMOTE, sources_of

ALL = Window(0, 0, 64, 64)


class Server:
    """A server that has nothing, and remembers what it was asked."""

    def __init__(self) -> None:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_error(404)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.asked = asked
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    found = Server()
    Thread(target=found.http.serve_forever, daemon=True).start()
    yield found
    found.http.shutdown()
    found.http.server_close()


def vrt(source: str, *, relative: int = 0, band: str = "", document: str = "") -> str:
    return f"""<VRTDataset rasterXSize="64" rasterYSize="64">{document}<VRTRasterBand dataType="Byte" band="1" {band}>
        <SimpleSource><SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>1</SourceBand>
        </SimpleSource></VRTRasterBand></VRTDataset>"""


def wms(url: str) -> str:
    return f"""<GDAL_WMS><Service name="TMS"><ServerUrl>{url}/${{z}}/${{x}}/${{y}}</ServerUrl></Service><DataWindow>
        <UpperLeftX>0</UpperLeftX><UpperLeftY>64</UpperLeftY><LowerRightX>64</LowerRightX><LowerRightY>0</LowerRightY>
        <SizeX>64</SizeX><SizeY>64</SizeY><TileLevel>0</TileLevel></DataWindow><Projection>EPSG:25832</Projection>
        <BandsCount>1</BandsCount><Cache/></GDAL_WMS>"""


def described(kind: str, url: str, outside: Path) -> str:
    raw = f"""<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="Byte" band="1"
        subClass="VRTRawRasterBand"><SourceFilename relativeToVRT="0">{outside}</SourceFilename><ImageOffset>0
        </ImageOffset><PixelOffset>1</PixelOffset><LineOffset>4</LineOffset></VRTRasterBand></VRTDataset>"""
    stac = {"stac_version": "1.0.0", "type": "Feature", "assets": {"a": {"href": f"{url}/a.tif"}}}
    return {
        "vrt of a server": vrt(f"/vsicurl/{url}/x.tif"),
        "vrt after a comment": f"<!-- {'x' * 500} -->" + vrt(f"/vsicurl/{url}/x.tif"),
        "vrt of a file": vrt(str(outside)),
        "vrt of raw bytes": raw,
        "wms": wms(url),
        "wmts": f"<GDAL_WMTS><GetCapabilitiesUrl>{url}/wmts</GetCapabilitiesUrl></GDAL_WMTS>",
        "wcs": f"<WCS_GDAL><ServiceURL>{url}/wcs?</ServiceURL><CoverageName>c</CoverageName></WCS_GDAL>",
        "capabilities": f'<WMS_Capabilities version="1.3.0"><Service><URL>{url}</URL></Service></WMS_Capabilities>',
        "tile map": f'<TileMap version="1.0.0" tilemapservice="{url}"><Title/></TileMap>',
        "mrf": f"<MRF_META><CachedSource><Source>/vsicurl/{url}/x.tif</Source></CachedSource></MRF_META>",
        "tile index": f"<GDALTileIndexDataset><IndexDataset>{url}/x.gpkg</IndexDataset></GDALTileIndexDataset>",
        "stac": json.dumps(stac),
    }[kind]


KINDS = (
    "vrt of a server,vrt after a comment,vrt of a file,vrt of raw bytes,wms,wmts,wcs,capabilities,tile map,mrf,"
    "tile index,stac"
).split(",")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.img", "a.nc", "noname"])
def test_a_description_under_the_name_of_a_raster_is_refused_and_nothing_asked(kind, name, tmp_path, server):
    outside = tmp_path / "outside" / "secret.tif"
    outside.parent.mkdir()
    outside.write_bytes(b"secret of sixteen bytes")
    path = tmp_path / "in" / name
    path.parent.mkdir()
    path.write_text(described(kind, server.url, outside))
    before = {*tmp_path.rglob("*")}
    with pytest.raises(RasterError, match=r"nothing of it was followed") as refused:
        Source(path)
    assert "\n" not in str(refused.value)
    assert server.asked == []
    assert {*tmp_path.rglob("*")} == before  # no cache either


@pytest.mark.parametrize("suffix", [".ovr", ".msk", ".OVR", ".MSK", ".msk.ovr", ".ovr.msk", ".aux"])
def test_what_lies_beside_a_raster_leads_nowhere(suffix, write_raster, server):
    path = write_raster("a.tif", np.ones((1, 64, 64), np.uint8))
    beside = path.with_name(path.name + suffix)
    mark = b"EHFA_HEADER_TAG" if suffix == ".aux" else b""
    beside.write_bytes(mark + vrt(f"/vsicurl/{server.url}/x.tif").encode())
    with pytest.raises(RasterError, match="move it away"):
        Source(path)
    assert server.asked == []


def test_overviews_that_a_raster_says_lie_elsewhere_are_not_asked_for(write_raster, server, tmp_path):
    path = write_raster("a.tif", np.ones((1, 64, 64), np.uint8))
    named = f'<MDI key="OVERVIEW&#95;FILE">/vsicurl/{server.url}/o.tif</MDI>'
    beside = tmp_path / "a.tif.aux.xml"
    beside.write_text(f'<PAMDataset><Metadata domain="OVERVIEWS">{named}</Metadata></PAMDataset>')
    with pytest.raises(RasterError, match="overviews lie in"):
        Source(path)
    beside.unlink()
    with rasterio.open(path, "r+") as file:
        file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=f"/vsicurl/{server.url}/o.tif")
    with pytest.raises(RasterError, match="overviews lie in"):
        Source(path)
    assert server.asked == []


def test_masks_and_overviews_in_files_of_their_own_are_read(write_raster):
    values = np.arange(4096, dtype=np.uint8).reshape(1, 64, 64)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        path = write_raster("a.tif", values, mask=values[0] > 9)
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as file:
        file.build_overviews([2], rasterio.enums.Resampling.nearest)
    assert {".msk", ".ovr"} <= {beside.suffix for beside in path.parent.iterdir()}
    source = Source(path)
    pixels = source.read([1], ALL)
    np.testing.assert_array_equal(source.valid([1], pixels, ALL), values[0] > 9)


def test_a_vrt_that_the_user_names_is_read_from_files_of_this_machine(write_raster, tmp_path):
    values = np.arange(4096, dtype=np.uint8).reshape(1, 64, 64)
    path = write_raster("elsewhere/a.tif", values)
    inner, outer = tmp_path / "inner.vrt", tmp_path / "outer.VRT"
    inner.write_text(vrt("elsewhere/a.tif", relative=1))
    outer.write_text(vrt(str(inner)))
    np.testing.assert_array_equal(Source(outer).read([1], ALL)[0], values[0])
    assert sources_of(outer) == [inner, inner.parent / "elsewhere/a.tif"]
    assert path.samefile(sources_of(inner)[0])


@pytest.mark.parametrize(
    "source",
    [
        "/vsicurl/URL/x.tif",
        "URL/x.tif",
        "vrt://URL/x.tif",
        "WMS:URL/wms",
        "inner.vrt",
        "wms.tif",
        "wms.dat",
        "&lt;GDAL_WMS/>",
    ],
)
def test_a_vrt_that_names_a_server_is_refused(source, tmp_path, server):
    (tmp_path / "inner.vrt").write_text(vrt(f"/vsicurl/{server.url}/y.tif"))
    for name in ("wms.tif", "wms.dat"):
        (tmp_path / name).write_text(wms(server.url))
    path = tmp_path / "a.vrt"
    path.write_text(vrt(source.replace("URL", server.url), relative=1))
    server.asked.clear()
    with pytest.raises(RasterError, match="nothing of it was followed"):
        Source(path)
    assert server.asked == []


def test_a_vrt_of_one_s_own_may_name_a_server(tmp_path, monkeypatch):
    path = tmp_path / "a.vrt"
    path.write_text(vrt("/vsicurl/http://127.0.0.1:9/x.tif"))  # where nobody answers
    with pytest.raises(RasterError, match=REMOTE):
        Source(path)
    monkeypatch.setenv(REMOTE, "YES")
    with suppress(RasterError):
        Source(path).read([1], ALL)
        return
    with pytest.raises(RasterError, match="127.0.0.1"):
        Source(path).read([1], ALL)


def test_no_pixel_function_in_python_runs_whatever_the_environment_says(write_raster, tmp_path, monkeypatch):
    monkeypatch.setenv("GDAL_VRT_ENABLE_PYTHON", "YES")
    write_raster("a.tif", np.ones((1, 64, 64), np.uint8))
    ran = tmp_path / "ran"
    code = f"""<PixelFunctionType>f</PixelFunctionType><PixelFunctionLanguage>Python</PixelFunctionLanguage>
        <PixelFunctionCode><![CDATA[open({str(ran)!r}, "w")
def f(*args, **kwargs): pass]]></PixelFunctionCode>"""
    text = vrt("a.tif", relative=1, band='subClass="VRTDerivedRasterBand"').replace(
        "<SimpleSource>", f"{code}<SimpleSource>"
    )
    (tmp_path / "a.vrt").write_text(text)
    with pytest.raises(RasterError):
        Source(tmp_path / "a.vrt").read([1], ALL)
    assert not ran.exists()


def test_raw_bytes_outside_of_the_folder_of_a_vrt_are_not_read(tmp_path):
    outside = tmp_path / "secret"
    outside.write_bytes(bytes(range(64)))
    path = tmp_path / "in" / "a.vrt"
    path.parent.mkdir()
    path.write_text(described("vrt of raw bytes", "", outside))
    with pytest.raises(RasterError):
        Source(path).read([1], Window(0, 0, 4, 4))


@pytest.mark.parametrize("text", ["<VRTDataset>" * 3, "<!DOCTYPE x><VRTDataset/>", "\x00<VRTDataset/>", ""])
def test_a_damaged_vrt_is_refused_in_a_line(text, tmp_path):
    (tmp_path / "a.vrt").write_text(text)
    with pytest.raises(RasterError) as refused:
        Source(tmp_path / "a.vrt")
    assert "\n" not in str(refused.value)


def test_vrts_that_name_each_other_are_refused(tmp_path):
    (tmp_path / "a.vrt").write_text(vrt("b.vrt", relative=1))
    (tmp_path / "b.vrt").write_text(vrt("a.vrt", relative=1))
    with pytest.raises(RasterError, match="VRTs deep"):
        Source(tmp_path / "a.vrt")


@pytest.mark.parametrize("name", ["l.gpkg", "l.geojson", "l.shp", "l.kml", "l.dat"])
@pytest.mark.parametrize("kind", ["vrt", "wfs", "gdalg"])
def test_a_description_under_the_name_of_a_layer_is_refused_and_nothing_asked(
    name, kind, tmp_path, server, write_raster
):
    texts = {
        "vrt": f'<OGRVRTDataSource><OGRVRTLayer name="l"><SrcDataSource>/vsicurl/{server.url}/l.gpkg</SrcDataSource>'
        "</OGRVRTLayer></OGRVRTDataSource>",
        "wfs": f"<OGRWFSDataSource><URL>{server.url}/wfs</URL></OGRWFSDataSource>",
        "gdalg": json.dumps({"type": "gdal_streamed_alg", "command_line": f"gdal vector pipeline read {server.url}"}),
    }
    (tmp_path / name).write_text(texts[kind])
    server.asked.clear()
    with pytest.raises(RasterError, match="nothing of it was followed"):
        Polygons(tmp_path / name, Source(write_raster("a.tif", np.ones((1, 8, 8), np.uint8))))
    assert server.asked == []


def test_a_gml_does_not_ask_the_server_for_its_schema(tmp_path, server, write_raster):
    ns = f"{server.url}/ns"
    (tmp_path / "l.gml").write_text(
        f'<wfs:FeatureCollection xmlns:wfs="http://www.opengis.net/wfs" xmlns:l="{ns}"'
        ' xmlns:gml="http://www.opengis.net/gml" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
        f' xsi:schemaLocation="{ns} {server.url}/wfs?SERVICE=WFS'
        '&amp;VERSION=1.1.0&amp;REQUEST=DescribeFeatureType&amp;TYPENAME=l:l">'
        "<gml:featureMembers><l:l gml:id='1'><l:geom>"
        "<gml:Point><gml:pos>1 2</gml:pos></gml:Point></l:geom></l:l></gml:featureMembers></wfs:FeatureCollection>"
    )
    server.asked.clear()
    Polygons(tmp_path / "l.gml", Source(write_raster("a.tif", np.ones((1, 8, 8), np.uint8))))
    assert server.asked == []


def test_a_view_in_a_geopackage_that_would_ask_a_server_is_refused(tmp_path, server, write_raster):
    import sqlite3

    path = tmp_path / "l.gpkg"
    box = np.array([shapely.to_wkb(shapely.box(0, 0, 9, 9))], object)
    write(
        str(path),
        box,
        [np.array(["a"], object)],
        ["class"],
        layer="l",
        driver="GPKG",
        geometry_type="Polygon",
        crs="EPSG:25832",
    )
    with sqlite3.connect(path) as base:
        call = f"ogr_geocode('x', 'geometry', 'service=OSM_NOMINATIM', 'query_template={server.url}/g?q=%s')"
        base.execute(f"CREATE VIEW v AS SELECT fid, geom, {call} AS class FROM l")
        for table in ("gpkg_contents", "gpkg_geometry_columns"):
            names = [row[1] for row in base.execute(f"PRAGMA table_info({table})")]
            new = ["'v'" if name in ("table_name", "identifier") else name for name in names]
            base.execute(f"INSERT INTO {table} SELECT {', '.join(new)} FROM {table} WHERE table_name = 'l'")
    server.asked.clear()
    with pytest.raises(RasterError, match="cannot be read"):
        Polygons(path, Source(write_raster("a.tif", np.ones((1, 8, 8), np.uint8)))).layer.within(
            (0, 0, 9, 9), ("class",)
        )
    assert server.asked == []
