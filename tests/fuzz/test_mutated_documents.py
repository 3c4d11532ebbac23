"""Mutated documents: the outcome is right, or one line of ours; never another exception, a hang or a wall of memory.

More of them by hand: RS_BIFORMER_FUZZ=5000 pytest -m "" tests/fuzz
"""

import csv
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from mutate import Kind, outcome
from reporting import FROM, report
from safetensors.torch import save

from rs_biformer.checkpoint import META_KEY, NETWORK_PREFIX, load_checkpoint
from rs_biformer.data.index import TileIndex
from rs_biformer.data.layouts import pattern_scenes
from rs_biformer.data.pairs import paired_scenes
from rs_biformer.errors import RsBiformerError
from rs_biformer.evaluation import PROTOCOLS, load_protocol, metrics_to_dict, read_results
from rs_biformer.nn import weights
from rs_biformer.nn.model import create_encoder
from rs_biformer.schema import PRESETS, load_schema
from rs_biformer.train.config import parse
from rs_biformer.train.resuming import read_resumed

OLD = Path(__file__).parents[1] / "old"
ROOT = Path(__file__).parents[2]
FILES = int(os.environ.get("RS_BIFORMER_FUZZ", "60"))


def as_yaml(document: object) -> bytes:
    return yaml.dump(document, allow_unicode=True).encode(errors="surrogatepass")


def as_json(document: object) -> bytes:
    return json.dumps(document).encode()


def read_result(path: Path) -> object:
    return [metrics_to_dict(metrics) for metrics in read_results(path)]


def parquet_kind() -> Kind:
    table, manifest = pq.read_table(OLD / "index_0_1_0.parquet"), pq.read_metadata(OLD / "index_0_1_0.parquet").metadata
    few = table.slice(0, 40)

    def pack(document: object) -> bytes:
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, few.schema, store_schema=False) as writer:
            writer.write_table(few)
            writer.add_key_value_metadata({"rs_biformer": json.dumps(document), "geo": manifest[b"geo"]})
        return sink.getvalue().to_pybytes()

    document = json.loads(manifest[b"rs_biformer"])
    return Kind("tiles.parquet", pack(document), TileIndex.read, document, pack)


def checkpoint_kind() -> Kind:
    from tiny_checkpoint import tiny_meta

    meta = tiny_meta(encoder="lcnet_035", decoder="segformer")
    weights = {NETWORK_PREFIX + name: value for name, value in meta.create_network().state_dict().items()}

    def pack(document: object) -> bytes:
        sink = io.BytesIO()
        torch.save({META_KEY: document, "state_dict": weights}, sink)
        return sink.getvalue()

    return Kind("model.ckpt", pack(meta.to_dict()), load_checkpoint, meta.to_dict(), pack)


def safetensors_kind() -> Kind:
    """The document is the header as it lies in the file; the card, which is text in it, is mutated as often."""
    from tiny_checkpoint import tiny_meta

    meta = tiny_meta(encoder="lcnet_035", decoder="segformer")
    packed = save(meta.create_network().state_dict())
    length = int.from_bytes(packed[:8], "little")
    header, data = json.loads(packed[8 : 8 + length]), packed[8 + length :]
    few = dict(list(header.items())[:20])  # so that a mutation of the card is as likely as one of a tensor's place

    def pack(document: object) -> bytes:
        card = document.pop("card", "none") if isinstance(document, dict) else "none"
        whole = document if not isinstance(document, dict) else header | document
        if isinstance(whole, dict):
            whole = whole | {"__metadata__": {META_KEY: json.dumps(card)}}
        text = json.dumps(whole).encode()
        return len(text).to_bytes(8, "little") + text + data

    document = {"card": meta.to_json(), **few}
    return Kind("model.safetensors", pack(dict(document)), load_checkpoint, document, pack)


def with_tensors(document: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The document with the tensors that its texts `tensor NAME` stand for, and its numbers as keys again."""
    if isinstance(document, dict):
        keys = {key: int(key) if key.isdigit() else key for key in document}
        return {keys[key]: with_tensors(value, tensors) for key, value in document.items()}
    if isinstance(document, list):
        return [with_tensors(value, tensors) for value in document]
    name = document.removeprefix("tensor ") if isinstance(document, str) else None
    return tensors[name] if name in tensors else document


def without_tensors(content: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """What JSON can hold of the content of a checkpoint; its tensors go to `tensors`."""
    if isinstance(content, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = content
        return f"tensor {name}"
    if isinstance(content, dict):
        return {str(key): without_tensors(value, tensors) for key, value in content.items()}
    return [without_tensors(value, tensors) for value in content] if isinstance(content, list | tuple) else content


def pickled(name: str, content: Any, read: Callable[[Path], object]) -> Kind:
    """A file of torch's, whose values are mutated as those of a document are."""
    tensors: dict[str, torch.Tensor] = {}
    document = without_tensors(content, tensors)

    def pack(mutated: object) -> bytes:
        sink = io.BytesIO()
        torch.save(with_tensors(mutated, tensors), sink)
        return sink.getvalue()

    return Kind(name, pack(document), read, document, pack)


def weights_kind() -> Kind:
    """As authors publish: weights in a container, beside what they know of their training."""
    encoder = create_encoder("lcnet_035", 3)
    content = {"state_dict": dict(encoder.state_dict()), "epoch": 3, "args": {"lr": 0.1, "names": ["a"]}}

    def read(path: Path) -> object:
        with patch.object(weights, "LOOKALIKES", {}):  # making those networks, to say what a file looks like, takes 3 s
            return weights.load_published_weights(encoder, path)

    return pickled("weights.pth", content, read)


def resumed_kind(folder: Path) -> Kind:
    from tiny_index import write_tiny_index
    from tiny_run import begun_run

    meta, content = begun_run(write_tiny_index(folder / "scenes", {"a": "train", "b": "val"}), folder / "run")
    return pickled("last.ckpt", content, lambda path: read_resumed(path, meta))


def items_kind(folder: Path) -> Kind:
    files = [folder / f"{name}.tif" for name in "abc"]
    for file in files:
        file.touch()

    def item(number: int) -> dict:
        assets = {"visual": {"href": str(files[number]), "type": "image/tiff", "roles": ["data"]}}
        assets["thumbnail"] = {"href": "t.png", "type": "image/png", "roles": ["thumbnail"]}
        known = {"datetime": "2024-05-01T00:00:00Z", "gsd": 0.5}
        return {"type": "Feature", "id": f"s{number}", "properties": known, "links": [], "assets": assets}

    inner = [folder / "item.json", folder / "catalogue.json"]
    inner[0].write_text(json.dumps(item(2)))
    inner[1].write_text(json.dumps({"type": "Catalog", "links": [{"rel": "item", "href": "item.json"}] * 2}))
    links = [{"rel": "child", "href": str(inner[1])}, {"rel": "self", "href": "collection.json"}]
    document = {"type": "FeatureCollection", "features": [item(0), item(1)], "links": links}
    return Kind("items.json", as_json(document), lambda path: pattern_scenes([str(path)], None), document, as_json)


def as_table(document: object) -> bytes:
    sink = io.StringIO(newline="")
    rows = document if isinstance(document, list) else [document]
    csv.writer(sink).writerows(row if isinstance(row, list) else [row] for row in rows)
    return sink.getvalue().encode(errors="surrogatepass")


def pairs_kind(folder: Path) -> Kind:
    rows = [["image", "label", "split", "name", "extra_dsm"]]
    for name in "abc":
        for part in ("", "_label", "_dsm"):
            (folder / f"{name}{part}.tif").touch()
        files = [f"{folder / name}{part}.tif" for part in ("", "_label", "_dsm")]
        rows.append([files[0], files[1], "train", f'scene "{name}"', files[2]])
    return Kind("pairs.csv", as_table(rows), paired_scenes, rows, as_table)


def config_kind() -> Kind:
    document = yaml.safe_load((ROOT / "configs" / "vaihingen" / "recommended.yaml").read_text())
    return Kind("config.yaml", as_yaml(document), lambda path: parse(["--config", str(path)]), document, as_yaml)


def result_kind() -> Kind:
    document = json.loads((OLD / "result_0_1_0.json").read_text())
    return Kind("result.json", as_json(document), read_result, document, as_json)


def schema_kind() -> Kind:
    document = PRESETS["loveda"].to_dict()
    return Kind("classes.yaml", as_yaml(document), load_schema, document, as_yaml)


def protocol_kind() -> Kind:
    document = PROTOCOLS["geoseg-legacy"].to_dict()
    return Kind("protocol.yaml", as_yaml(document), load_protocol, document, as_yaml)


KINDS: dict[str, Callable[..., Kind]] = {
    "schema": schema_kind,
    "protocol": protocol_kind,
    "result": result_kind,
    "config": config_kind,
    "index": parquet_kind,
    "checkpoint": checkpoint_kind,
    "safetensors": safetensors_kind,
    "weights": weights_kind,
    "resumed": resumed_kind,
    "items": items_kind,
    "pairs": pairs_kind,
}


@pytest.mark.slow
@pytest.mark.timeout(36000)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of `re`, about patterns with brackets in brackets
@pytest.mark.parametrize("name", KINDS)
def test_mutated_documents_are_right_or_refused_in_a_line(name, tmp_path):
    kind = KINDS[name](tmp_path) if name in ("resumed", "items", "pairs") else KINDS[name]()
    (tmp_path / kind.name).write_bytes(kind.intact)
    assert outcome(kind, tmp_path / kind.name, RsBiformerError) == "right"
    found = {"right": 0, "refused": 0}
    findings = []
    for seed in range(FROM, FROM + FILES):
        path = tmp_path / str(seed) / kind.name
        path.parent.mkdir()
        path.write_bytes(kind.mutant(random.Random(f"{name} {seed}")))
        try:
            found[outcome(kind, path, RsBiformerError)] += 1
        except Exception as error:
            findings.append(f"{name}, seed {seed}: {type(error).__name__}: {error}")
        shutil.rmtree(path.parent)
    report(name, found | {"finding": len(findings)}, findings)
    assert findings == []
    assert found["refused"] > FILES / 4
