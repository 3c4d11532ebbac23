"""What maps say of themselves, read back by us and by GDAL."""

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.transform import from_origin

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.metadata import ScoreScale, class_tags, made_by, read_class_names, score_scale, score_tags
from rs_biformer.raster.writer import MapWriter


def write(path, array, scale: float = 1, **tags: str):
    with MapWriter(
        path,
        height=array.shape[0],
        width=array.shape[1],
        crs="EPSG:25832",
        transform=from_origin(5e5, 5.4e6, 1, 1),
        dtype=array.dtype,
        nodata=None,
        scale=scale,
        tags=tags,
    ) as sink:
        sink.write(Window(0, 0, *array.shape), array)
    return path


STORED = np.array([[0, 25, 125, 250]], np.uint8)


def test_a_score_layer_gives_0_to_1_to_whoever_heeds_the_scale_of_gdal(tmp_path):
    path = write(tmp_path / "a.tif", STORED, score_scale("uint8"), **score_tags("confidence", "uint8"))
    with rasterio.open(path) as file:
        assert file.scales == (0.004,)
        assert (file.read(1) * file.scales[0] + file.offsets[0]).tolist() == [[0, 0.1, 0.5, 1]]
        assert file.tags()["SCALE"] == "value / 250"


@pytest.mark.parametrize(
    ("scale", "tags", "levels", "wanted"),
    [
        (0.004, {"SCALE": "value / 250"}, False, [0, 0.1, 0.5, 1]),  # said twice, meant once
        (1, {"SCALE": "value / 250"}, False, [0, 0.1, 0.5, 1]),  # maps of earlier versions
        (1, {}, True, [0, 0.1, 0.5, 1]),
        (1, {}, False, [0, 25, 125, 250]),
        (0.002, {}, True, [0, 0.05, 0.25, 0.5]),
        (1, {"SCALE": "value / many"}, False, [0, 25, 125, 250]),
        (1, {"SCALE": "value / 0"}, False, [0, 25, 125, 250]),
    ],
)
def test_scores_are_read_in_the_scale_that_the_file_declares(tmp_path, scale, tags, levels, wanted):
    path = write(tmp_path / "a.tif", STORED, scale, **tags)
    np.testing.assert_allclose(ScoreScale(path, levels=levels)(STORED[None])[0], [wanted], rtol=1e-12)


def test_floats_mean_what_they_are(tmp_path):
    values = np.array([[0.25, 1.0]], np.float32)
    path = write(tmp_path / "a.tif", values, score_scale("float32"), **score_tags("confidence", "float32"))
    assert ScoreScale(path, levels=True)(values[None]).tolist() == [[[0.25, 1.0]]]
    assert score_scale("float16") == 1


def test_the_names_of_classes_are_found_in_the_parts_of_a_vrt(tmp_path):
    path = write(tmp_path / "a.tif", STORED, **class_tags(["road", "Stra\u00dfe"]))
    assert read_class_names(path) == ("road", "Stra\u00dfe")
    vrt = tmp_path / "a.vrt"
    rasterio.shutil.copy(path, vrt, driver="VRT")
    with rasterio.open(vrt, "r+") as file:
        tagged = "CLASS_NAMES" in file.tags()
    text = vrt.read_text()
    start = text.index("<Metadata")
    vrt.write_text(text[:start] + text[text.index("</Metadata>", start) + len("</Metadata>") :])
    with rasterio.open(vrt) as file:
        assert tagged and "CLASS_NAMES" not in file.tags()  # what gdalbuildvrt makes has none
    assert read_class_names(vrt) == ("road", "Stra\u00dfe")


def test_a_map_without_names_has_none(tmp_path):
    for tags in ({}, {"CLASS_NAMES": "{"}, {"CLASS_NAMES": "[]"}, {"CLASS_NAMES": '{"a": 1}'}):
        assert read_class_names(write(tmp_path / "a.tif", STORED, **tags)) is None


def test_parts_of_a_vrt_with_other_classes_are_refused(tmp_path):
    parts = [
        write(tmp_path / f"{name}.tif", STORED, **class_tags(classes))
        for name, classes in (("a", ["road", "roof"]), ("b", ["roof", "road"]))
    ]
    sources = "".join(
        f'<SimpleSource><SourceFilename relativeToVRT="1">{part.name}</SourceFilename><SourceBand>1</SourceBand>'
        f'<DstRect xOff="{4 * place}" yOff="0" xSize="4" ySize="1"/></SimpleSource>'
        for place, part in enumerate(parts)
    )
    vrt = tmp_path / "all.vrt"
    vrt.write_text(
        f'<VRTDataset rasterXSize="8" rasterYSize="1"><VRTRasterBand dataType="Byte" band="1">{sources}'
        "</VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(RasterError, match=r"other classes: .*a\.tif has road, roof and .*b\.tif has roof, road"):
        read_class_names(vrt)


def test_what_a_map_says_of_its_making_is_the_model_and_the_options():
    tags = {"MODEL": "net", "MODEL_FILE": "a.ckpt", "PREDICTION_TTA": "d4", "AREA_OR_POINT": "Area", "MODELTYPE": "x"}
    assert made_by(tags) == {"MODEL": "net", "MODEL_FILE": "a.ckpt", "PREDICTION_TTA": "d4"}
