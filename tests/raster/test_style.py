from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.style import write_category_names, write_crs, write_qml, write_score_qml, write_style
from rs_biformer.raster.writer import MapWriter
from rs_biformer.schema import ClassSchema, load_schema

POTSDAM = load_schema("potsdam")
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


def test_an_edited_style_is_kept_and_one_of_ours_is_renewed(tmp_path, caplog):
    path = tmp_path / "map.tif"
    first = write_qml(path, POTSDAM).read_text()
    assert write_qml(path, POTSDAM).read_text() == first
    other = replace(POTSDAM, colours=POTSDAM.colours[::-1])
    assert write_qml(path, other).read_text() != first
    assert not caplog.text
    edited = (tmp_path / "map.qml").read_text().replace('alpha="255"', 'alpha="100"')
    (tmp_path / "map.qml").write_text(edited)
    write_qml(path, POTSDAM)
    assert (tmp_path / "map.qml").read_text() == edited
    assert "map.qml was edited and is kept" in caplog.text


def test_an_edited_style_for_other_classes_is_set_aside(tmp_path, caplog):
    path = tmp_path / "map.tif"
    (tmp_path / "map.qml").write_text("<qgis>of water alone</qgis>")
    write_qml(path, POTSDAM)
    assert (tmp_path / "map.edited.qml").read_text() == "<qgis>of water alone</qgis>"
    assert POTSDAM.classes[0] in (tmp_path / "map.qml").read_text()
    assert "was edited for other classes" in caplog.text


def test_the_names_of_classes_and_a_crs_stand_in_one_file(tmp_path):
    path = tmp_path / "map.tif"
    crs = CRS.from_user_input("+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +datum=WGS84")
    write_crs(path, crs)
    for _ in range(2):
        write_category_names(path, POTSDAM)
    document = ElementTree.parse(tmp_path / "map.tif.aux.xml").getroot()
    assert [part.tag for part in document] == ["SRS", "PAMRasterBand"]
    assert len(document.findall(".//Category")) == len(POTSDAM.classes)
    assert CRS.from_wkt(document.findtext("SRS")) == crs


def test_scores_are_drawn_from_0_to_1_by_their_first_band(tmp_path):
    root = ElementTree.parse(write_score_qml(tmp_path / "map.tif")).getroot()
    renderer = root.find("./pipe/rasterrenderer")
    assert (renderer.get("type"), renderer.get("band")) == ("singlebandpseudocolor", "1")
    items = [float(item.get("value")) for item in renderer.iterfind("./rastershader/colorrampshader/item")]
    assert (items[0], items[-1]) == (0, 1) and items == sorted(items)


def test_the_band_of_classes_says_what_it_is(tmp_path):
    with MapWriter(
        tmp_path / "map.tif", height=4, width=4, crs="EPSG:25832", transform=Affine(1, 0, 0, 0, -1, 0), schema=SCHEMA
    ) as sink:
        sink.write(Window(0, 0, 4, 4), np.zeros((4, 4), np.uint8))
    write_style(tmp_path / "map.tif", SCHEMA)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.descriptions == ("class",)
