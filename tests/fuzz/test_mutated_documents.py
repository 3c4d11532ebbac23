"""Mutated documents: the outcome is right, or one line of ours; never another exception, a hang or a wall of memory.

More of them by hand: RS_BIFORMER_FUZZ=5000 pytest -m "" tests/fuzz
"""

import io
import json
import os
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from mutate import Kind, outcome
from safetensors.torch import save

from rs_biformer.checkpoint import META_KEY, NETWORK_PREFIX, load_checkpoint
from rs_biformer.data.index import TileIndex
from rs_biformer.errors import RsBiformerError
from rs_biformer.evaluation import PROTOCOLS, load_protocol, metrics_to_dict, read_results
from rs_biformer.schema import PRESETS, load_schema

OLD = Path(__file__).parents[1] / "old"
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


def kind_of(name: str) -> Kind:
    if name == "safetensors":
        return safetensors_kind()
    if name == "checkpoint":
        return checkpoint_kind()
    if name == "index":
        return parquet_kind()
    if name == "result":
        document = json.loads((OLD / "result_0_1_0.json").read_text())
        return Kind("result.json", as_json(document), read_result, document, as_json)
    if name == "schema":
        document = PRESETS["loveda"].to_dict()
        return Kind("classes.yaml", as_yaml(document), load_schema, document, as_yaml)
    document = PROTOCOLS["geoseg-legacy"].to_dict()
    return Kind("protocol.yaml", as_yaml(document), load_protocol, document, as_yaml)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of `re`, about patterns with brackets in brackets
@pytest.mark.parametrize("name", ["schema", "protocol", "result", "index", "checkpoint", "safetensors"])
def test_mutated_documents_are_right_or_refused_in_a_line(name, tmp_path):
    kind = kind_of(name)
    (tmp_path / kind.name).write_bytes(kind.intact)
    assert outcome(kind, tmp_path / kind.name, RsBiformerError) == "right"
    found = {"right": 0, "refused": 0}
    for seed in range(FILES):
        path = tmp_path / str(seed) / kind.name
        path.parent.mkdir()
        path.write_bytes(kind.mutant(random.Random(f"{name} {seed}")))
        try:
            found[outcome(kind, path, RsBiformerError)] += 1
        except Exception as error:
            raise AssertionError(f"{name}, seed {seed}: {type(error).__name__}: {error}") from error
        shutil.rmtree(path.parent)
    assert found["refused"] > FILES / 4
