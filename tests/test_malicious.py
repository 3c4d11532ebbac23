"""Files that mean harm: nothing in them executes, and nothing outside of what was named is read or written.

Others stand where their subject is: checkpoints (test_checkpoint.py), documents (test_documents_are_data.py), drivers
and VRTs (raster/test_kinds.py), outputs over inputs (test_overwriting.py), links in folders of ours
(raster/test_staging.py, data/test_chips.py), the page (evaluation/test_page.py), the card (evaluation/test_card.py).
"""

import json
import os
import sqlite3
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import torch
from tiny_checkpoint import pointwise_model, tiny_meta

from rs_biformer.cli import main
from rs_biformer.predict import predict_scene
from rs_biformer.raster.metadata import read_class_names
from rs_biformer.raster.vector import vectorize
from rs_biformer.schema import ClassSchema

NAMES = (
    "</td><script>alert(1)</script>",
    "'; DROP TABLE gpkg_contents; --",
    '"]]></value><!ENTITY x SYSTEM "file:///etc/passwd">&amp;&x;',
    "${HOME} $(touch x) `touch x` %s {0} {{7*7}} [red]b[/] \\u0041",
)
SCHEMA = ClassSchema("hostile", NAMES, ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)))
PIXELS = np.arange(4, dtype=np.uint8).repeat(16).reshape(1, 8, 8)


def argmax(batch: torch.Tensor) -> torch.Tensor:
    return -torch.cat([(batch - value) ** 2 for value in range(4)], 1)


@pytest.fixture
def class_map(write_raster, tmp_path) -> Path:
    predict_scene(argmax, write_raster("scene.tif", PIXELS), tmp_path / "map.tif", classes=SCHEMA, window=8)
    return tmp_path / "map.tif"


def test_names_of_classes_are_text_in_every_file_that_is_made_of_them(class_map, tmp_path):
    assert read_class_names(class_map) == NAMES
    style = ET.parse(class_map.with_suffix(".qml"))
    assert [entry.get("label") for entry in style.iter("paletteEntry")] == list(NAMES)
    side = ET.parse(f"{class_map}.aux.xml")
    assert [entry.text for entry in side.iter("Category")][:4] == list(NAMES)
    layer = "x'; DROP TABLE gpkg_contents; --"
    for suffix in (".gpkg", ".fgb", ".geojson", ".parquet"):
        out = tmp_path / f"polygons{suffix}"
        vectorize(class_map, out, **({"layer": layer} if suffix == ".gpkg" else {}))
        assert set(names_in(out, layer)) == set(NAMES), suffix
    with closing(sqlite3.connect(tmp_path / "polygons.gpkg")) as base:
        assert layer in [row[0] for row in base.execute("SELECT table_name FROM gpkg_contents")]


def names_in(path: Path, layer: str) -> list[str]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        return next(c.to_pylist() for n, c in zip(table.column_names, table.columns, strict=True) if "name" in n)
    meta, _, _, values = pyogrio.raw.read(str(path), layer=layer if path.suffix == ".gpkg" else None)
    return next(v.tolist() for n, v in zip(meta["fields"], values, strict=True) if "name" in n)


def test_names_of_classes_are_text_in_the_description_of_a_model(tmp_path):
    pytest.importorskip("onnxscript")
    from rs_biformer.export import export_onnx
    from rs_biformer.jobs import publish

    model = export_onnx(pointwise_model(tiny_meta(window=32, schema=SCHEMA)), tmp_path / "m.onnx").path
    (item,) = publish(model, tmp_path / "m.stac.json", "stac", "")
    found = list(texts(json.loads(item.read_text())))
    assert all(any(name in text for text in found) for name in NAMES)


def texts(value: object) -> Iterator[str]:
    """All texts in a document."""
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts(part)


@pytest.mark.parametrize("place", ["../outside.bin", "/etc/hostname", "{outside}", "inside/../../outside.bin"])
def test_weights_that_onnx_wants_from_elsewhere_are_not_read(place, tmp_path, capsys, write_raster):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from rs_biformer.export import export_onnx

    folder = tmp_path / "in"
    folder.mkdir()
    path = export_onnx(pointwise_model(), folder / "m.onnx").path
    outside = tmp_path / "outside.bin"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        data = onnx.numpy_helper.to_array(tensor).tobytes()
        outside.write_bytes(data * 8)
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", place.format(outside=outside)), ("offset", "0"), ("length", str(len(data)))):
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    scene = write_raster("scene.tif", np.ones((3, 32, 32), np.uint8), photometric="rgb")
    assert main(["predict", str(scene), "--checkpoint", str(path), "--out", str(tmp_path / "maps")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert "m.onnx" in told[-1] and "Traceback" not in "".join(told)
    assert not list((tmp_path / "maps").glob("*.tif"))


def test_triggers_of_a_layer_that_is_read_change_nothing(write_raster, tmp_path):
    scene = write_raster("scene.tif", np.ones((3, 32, 32), np.uint8))
    path = tmp_path / "labels.gpkg"
    box = np.array([shapely.to_wkb(shapely.box(500_000, 5_399_984, 500_016, 5_400_000))], object)
    names = np.array([NAMES[1]], object)
    kind = {"crs": "EPSG:25832", "geometry_type": "Polygon", "driver": "GPKG"}
    pyogrio.raw.write(str(path), box, [names], ["class"], layer="labels", **kind)
    with closing(sqlite3.connect(path)) as base, base:
        for event in ("INSERT", "UPDATE", "DELETE"):
            for table in ("gpkg_contents", "gpkg_ogr_contents"):
                base.execute(f"CREATE TRIGGER t_{event}_{table} AFTER {event} ON {table} BEGIN DELETE FROM labels; END")
    before = path.read_bytes()
    classes = tmp_path / "classes.yaml"
    classes.write_text(json.dumps(SCHEMA.to_dict()))
    options = ["--classes", str(classes), "--window", "32", "--split", "train", "--workers", "1"]
    done = main(["tile", str(scene), "--labels", str(path), *options, "--out", str(tmp_path / "tiles")])
    assert done == 0
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["classes.yaml", "labels.gpkg", "scene.tif", "tiles"]


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".geojson", ".parquet"])
def test_polygons_are_not_written_through_a_link_to_what_is_somebody_elses(suffix, class_map, tmp_path):
    precious = tmp_path / "elsewhere" / f"precious{suffix}"
    precious.parent.mkdir()
    precious.write_text("precious")
    out = tmp_path / f"out{suffix}"
    out.symlink_to(precious)
    assert main(["vectorize", str(class_map), "--out", str(out)]) in (0, 2)
    assert precious.read_text() == "precious"
    assert os.listdir(precious.parent) == [precious.name]


def test_a_map_is_not_written_through_a_link_to_what_is_somebody_elses(write_raster, tmp_path):
    precious = tmp_path / "elsewhere" / "precious.tif"
    precious.parent.mkdir()
    precious.write_text("precious")
    for name in ("map.tif", "map.qml", "map.tif.aux.xml"):
        (tmp_path / name).symlink_to(precious)
    predict_scene(argmax, write_raster("scene.tif", PIXELS), tmp_path / "map.tif", classes=SCHEMA, window=8)
    assert precious.read_text() == "precious" and os.listdir(precious.parent) == ["precious.tif"]
    with rasterio.open(tmp_path / "map.tif") as made:
        assert (made.read() == PIXELS).all()
