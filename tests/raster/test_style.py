from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from affine import Affine

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.style import write_category_names, write_qml, write_style
from rs_biformer.raster.writer import MapWriter
from rs_biformer.schema import ClassSchema, load_schema

SCHEMA = ClassSchema("odd", ("<grass & weeds>", 'the "road"', "Fluß"), ((1, 2, 3), (255, 0, 16), (9, 99, 199)))


def entries(path: Path) -> list[dict[str, str]]:
    return [
        entry.attrib for entry in ElementTree.parse(path).iterfind("./pipe/rasterrenderer/colorPalette/paletteEntry")
    ]


def test_a_style_has_an_entry_per_class_as_qgis_writes_them(tmp_path):
    path = write_qml(tmp_path / "map.tif", SCHEMA)
    assert path == tmp_path / "map.qml"
    assert entries(path) == [
        {"value": "0", "color": "#010203", "label": "<grass & weeds>", "alpha": "255"},
        {"value": "1", "color": "#ff0010", "label": 'the "road"', "alpha": "255"},
        {"value": "2", "color": "#0963c7", "label": "Fluß", "alpha": "255"},
    ]
    root = ElementTree.parse(path).getroot()
    renderer = root.find("./pipe/rasterrenderer")
    assert (root.tag, root.attrib["version"][:2]) == ("qgis", "3.")
    assert renderer is not None
    assert renderer.attrib == {"type": "paletted", "band": "1", "opacity": "1", "alphaBand": "-1", "nodataColor": ""}
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE qgis PUBLIC")


def test_nodata_has_no_entry_and_so_is_transparent(tmp_path):
    values = {entry["value"] for entry in entries(write_qml(tmp_path / "map.tif", load_schema("loveda")))}
    assert values == {str(index) for index in range(7)}


def test_names_are_where_gdal_looks_for_them(tmp_path):
    path = tmp_path / "map.tif"
    with MapWriter(
        path, height=9, width=9, crs="EPSG:25832", transform=Affine(1, 0, 7, 0, -1, 9), schema=SCHEMA
    ) as sink:
        sink.write(Window(0, 0, 9, 9), np.ones((9, 9), np.uint8))
    names = write_category_names(path, SCHEMA)
    assert names == tmp_path / "map.tif.aux.xml"
    band = ElementTree.parse(names).find("./PAMRasterBand[@band='1']")
    assert band is not None
    assert [entry.text for entry in band.iterfind("./CategoryNames/Category")] == list(SCHEMA.classes)
    with rasterio.open(path) as file:
        assert str(names) in file.files  # GDAL has read it as its own


def test_both_files_replace_those_of_an_earlier_map(tmp_path):
    for schema in (load_schema("loveda"), SCHEMA):
        made = write_style(tmp_path / "map.tif", schema)
    assert len(entries(made[0])) == 3
    assert sorted(tmp_path.iterdir()) == sorted(made)


def test_a_style_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(RasterError, match=r"map\.qml cannot be written"):
        write_qml(tmp_path / "absent" / "map.tif", SCHEMA)
