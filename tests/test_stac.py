"""The STAC Item of a model: what it says, and that it is one.

pystac brings the schemas of STAC itself. Those of MLM and other extensions are in no package and no part of this
project: RS_BIFORMER_STAC_SCHEMAS names a folder with mlm.json, classification.json and file.json, each the schema.json
of the extension's repository. stac-model is asked where installed.
"""

import hashlib
import json
import os
from pathlib import Path

import pytest
from tiny_checkpoint import tiny_meta, write_checkpoint

from rs_biformer.checkpoint import CheckpointMeta
from rs_biformer.cli import main
from rs_biformer.jobs import publish

META = tiny_meta(encoder="lcnet_035", decoder="segformer", metrics={"mean_iou": 0.5}, protocol="validation-windows")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    found = tmp_path_factory.mktemp("stac")
    (found / "weights").mkdir()
    publish(write_checkpoint(found / "model.ckpt", META), found / "weights" / "model.safetensors")
    for name in ("model.ckpt", "weights/model.safetensors"):
        model, out = str(found / name), str(found / f"{Path(name).suffix[1:]}.stac.json")
        assert main(["export", "--checkpoint", model, "--out", out, "--license", "CC-BY-4.0"]) == 0
    return found


def item(folder: Path, name: str = "safetensors") -> dict:
    return json.loads((folder / f"{name}.stac.json").read_text())


def test_it_says_what_goes_in_and_what_comes_out(folder):
    properties = item(folder)["properties"]
    (given,), (made,) = properties["mlm:input"], properties["mlm:output"]
    assert given["bands"] == ["red", "green", "blue"]
    assert given["input"]["shape"] == [-1, 3, 64, 64]
    assert given["value_scaling"][1] == {"type": "z-score", "mean": 115.0, "stddev": 55.0}
    assert made["result"]["shape"] == [-1, 6, 64, 64]
    assert made["classification:classes"][0] == {
        "value": 0,
        "name": "impervious_surface",
        "description": "impervious surface",
        "color_hint": "FFFFFF",
    }
    assert (properties["gsd"], properties["license"]) == (0.5, "CC-BY-4.0")
    assert "mean_iou 0.5000 by the protocol validation-windows" in properties["description"]
    parameters = sum(value.numel() for value in META.create_network().parameters())
    assert properties["mlm:total_parameters"] == parameters


def test_it_leads_to_the_file_and_tells_its_digest(folder):
    for name, href, kind in (
        ("ckpt", "model.ckpt", "torch.save"),
        ("safetensors", "weights/model.safetensors", "safetensors"),
    ):
        asset = item(folder, name)["assets"]["model"]
        assert (asset["href"], asset["mlm:artifact_type"]) == (href, kind)
        content = (folder / asset["href"]).read_bytes()
        assert asset["file:size"] == len(content)
        assert asset["file:checksum"] == "1220" + hashlib.sha256(content).hexdigest()


def test_all_that_a_checkpoint_carries_is_in_it(folder):
    assert CheckpointMeta.from_dict(item(folder)["properties"]["rs_biformer:card"]) == META


def test_an_exported_model_takes_raw_values(folder):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert main(["export", "--checkpoint", str(folder / "model.ckpt"), "--out", str(folder / "model.onnx")]) == 0
    publish(folder / "model.onnx", folder / "onnx.stac.json", "stac")
    properties = item(folder, "onnx")["properties"]
    assert properties["mlm:input"][0]["value_scaling"] is None and properties["mlm:framework"] == "ONNX"
    assert properties["mlm:output"][0]["name"] == "probabilities"
    assert "license" not in properties


@pytest.mark.parametrize(
    ("told", "said", "wanted"),
    [("CC-BY-4.0", "", "CC-BY-4.0"), ("CC-BY-4.0", "MIT", "MIT"), ("ask me first", "", None), ("", "MIT", "MIT")],
)
def test_the_licence_of_an_exported_file_is_that_of_its_item_unless_another_is_given(
    folder, tmp_path, told, said, wanted
):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    if not (folder / "model.onnx").exists():
        assert main(["export", "--checkpoint", str(folder / "model.ckpt"), "--out", str(folder / "model.onnx")]) == 0
    model = onnx.load(folder / "model.onnx")
    if told:
        model.metadata_props.add(key="model_license", value=told)
    onnx.save(model, tmp_path / "model.onnx")
    (path,) = publish(tmp_path / "model.onnx", tmp_path / "m.stac.json", "stac", said)
    assert json.loads(path.read_text())["properties"].get("license") == wanted
    assert item(folder, "onnx")["assets"]["model"]["mlm:artifact_type"] == "onnx"


def schemas() -> dict[str, dict]:
    home = os.environ.get("RS_BIFORMER_STAC_SCHEMAS")
    if not home:
        pytest.skip("RS_BIFORMER_STAC_SCHEMAS names no folder with the schemas of the extensions")
    return {path.stem: json.loads(path.read_text()) for path in Path(home).glob("*.json")}


def within(schema):
    """A schema without what it takes from other files: their part is not looked at here."""
    if isinstance(schema, list):
        return [within(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {} if str(schema.get("$ref", "")).startswith("http") else {name: within(one) for name, one in schema.items()}


def test_it_is_valid_by_the_schemas_of_the_extensions(folder):
    jsonschema = pytest.importorskip("jsonschema")
    found = schemas()
    for name in ("mlm", "classification", "file"):
        checker = jsonschema.Draft7Validator(within(found[name]))
        assert [error.message for error in checker.iter_errors(item(folder))] == []
        broken = item(folder)
        del broken["properties"]["mlm:name"]
        broken["properties"]["mlm:output"][0]["classification:classes"][0]["value"] = "zero"
        broken["assets"]["model"]["file:size"] = "large"
        assert list(checker.iter_errors(broken))


def test_pystac_reads_and_validates_it(folder):
    pystac = pytest.importorskip("pystac")
    document = item(folder) | {"stac_extensions": []}  # whose schemas it would fetch
    assert pystac.Item.from_dict(document).validate()
    document["properties"] |= {"license": 4}
    with pytest.raises(pystac.STACValidationError):
        pystac.Item.from_dict(document).validate()


def test_the_models_of_mlm_read_its_properties(folder):
    stac_model = pytest.importorskip("stac_model.schema")
    properties = {name.removeprefix("mlm:"): value for name, value in item(folder)["properties"].items()}
    known = set(stac_model.MLModelProperties.model_fields)
    stac_model.MLModelProperties.model_validate({name: value for name, value in properties.items() if name in known})
