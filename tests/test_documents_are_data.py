"""Proof that nothing in a document is imported, called or looked up, whatever it is called and wherever it stands."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save
from tiny_checkpoint import tiny_meta

from rs_biformer.checkpoint import META_KEY, NETWORK_PREFIX, load_checkpoint
from rs_biformer.data.index import TileIndex
from rs_biformer.documents import parse_json, parse_yaml
from rs_biformer.errors import RsBiformerError
from rs_biformer.evaluation import PROTOCOLS, load_protocol, read_results
from rs_biformer.schema import PRESETS, load_schema

OLD = Path(__file__).parent / "old"


def write_index(path, document):
    table, geo = pq.read_table(OLD / "index_0_1_0.parquet"), pq.read_metadata(OLD / "index_0_1_0.parquet").metadata
    with pq.ParquetWriter(path, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"rs_biformer": json.dumps(document), "geo": geo[b"geo"]})


def write_checkpoint(path, document):
    network = tiny_meta(encoder="lcnet_035", decoder="segformer").create_network()
    weights = {NETWORK_PREFIX + name: value for name, value in network.state_dict().items()}
    torch.save({META_KEY: document, "state_dict": weights}, path)


def write_safetensors(path, document):
    weights = tiny_meta(encoder="lcnet_035", decoder="segformer").create_network().state_dict()
    path.write_bytes(save(weights, {META_KEY: json.dumps(document)}))


def read_safetensors(path):
    return load_checkpoint(path.rename(path.with_suffix(".safetensors")))


def kinds():
    """By name: intact values, how they are written, how they are read."""
    index = json.loads(pq.read_metadata(OLD / "index_0_1_0.parquet").metadata[b"rs_biformer"])
    index["scenes"] = index["scenes"][:5]
    result = json.loads((OLD / "result_0_1_0.json").read_text())
    return {
        "schema": (PRESETS["loveda"].to_dict(), lambda path, data: path.write_text(yaml.safe_dump(data)), load_schema),
        "protocol": (
            PROTOCOLS["geoseg-legacy"].to_dict(),
            lambda path, data: path.write_text(yaml.safe_dump(data)),
            load_protocol,
        ),
        "result": (result, lambda path, data: path.write_text(json.dumps(data)), read_results),
        "index": (index, write_index, TileIndex.read),
        "checkpoint": (
            tiny_meta(encoder="lcnet_035", decoder="segformer").to_dict(),
            write_checkpoint,
            load_checkpoint,
        ),
        "card": (
            tiny_meta(encoder="lcnet_035", decoder="segformer").to_json(),
            write_safetensors,
            read_safetensors,
        ),
    }


def places(value, trail=()):
    for key, item in value.items() if isinstance(value, dict) else enumerate(value[:2]):
        yield (*trail, key)
        if isinstance(item, dict | list):
            yield from places(item, (*trail, key))


def with_value(document, trail, value):
    found = json.loads(json.dumps(document))
    place = found
    for key in trail[:-1]:
        place = place[key]
    place[trail[-1]] = value
    return found


BAIT = "rs_biformer_bait"


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that tells when it is imported or called, and an environment variable that tells where it went."""
    (tmp_path / f"{BAIT}.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\ndef bait(**_): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("RS_BIFORMER_BAIT", "looked-up")
    return tmp_path / "sprung"


@pytest.mark.parametrize("name", ["schema", "protocol", "result", "index", "checkpoint", "card"])
def test_class_paths_and_variables_in_any_place_are_words(name, trap, tmp_path):
    document, write, read = kinds()[name]
    class_path = {"class_path": f"{BAIT}.bait", "init_args": {"x": 1}}
    trails = list(places(document))
    step = max(1, len(trails) // 8) if name in ("checkpoint", "card") else max(1, len(trails) // 120)
    for number, trail in enumerate(trails[::step]):
        for value in (class_path, f"{BAIT}.bait", "${RS_BIFORMER_BAIT}", "$RS_BIFORMER_BAIT"):
            path = tmp_path / f"{number}.{name}"
            write(path, with_value(document, trail, value))
            try:
                seen = repr(read(path))
            except RsBiformerError as error:
                seen = str(error)
            assert "looked-up" not in seen
            path.unlink(missing_ok=True)
    assert not trap.exists() and BAIT not in sys.modules


@pytest.mark.parametrize("tag", ["python/object/apply:", "python/name:", "python/module:", "python/object/new:"])
def test_yaml_tags_are_refused_in_any_place(tag, trap):
    target = BAIT if "module" in tag else f"{BAIT}.bait"
    for text in (
        f"!!{tag}{target} []",
        f"a: !!{tag}{target} ''",
        f"? !!{tag}{target} x\n: 1",
        f"- [!!{tag}{target} {{}}]",
    ):
        with pytest.raises(RsBiformerError, match="the tag .* is not allowed"):
            parse_yaml(text, "f")
    assert not trap.exists()


def test_the_trap_would_have_sprung(trap):
    code = f"import yaml; yaml.load('!!python/object/apply:{BAIT}.bait []', Loader=yaml.UnsafeLoader)"
    subprocess.run([sys.executable, "-c", code], cwd=trap.parent, capture_output=True)
    assert trap.exists()


def test_classes_in_json_are_plain_mappings():
    text = '{"__class__": "os.system", "py/object": "os.system", "$ref": "file:///etc/passwd"}'
    assert parse_json(text, "f") == json.loads(text)
