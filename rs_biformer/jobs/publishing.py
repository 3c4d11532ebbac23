"""A trained model as files for others: weights that nobody has to unpickle, and cards that say what they are."""

import json
import os
from pathlib import Path
from typing import Any

from rs_biformer.checkpoint import load_checkpoint, write_safetensors
from rs_biformer.errors import ConfigError
from rs_biformer.files import write_text
from rs_biformer.jobs.converting import write_smp
from rs_biformer.jobs.models import load_model
from rs_biformer.jobs.stac import artefact, stac_item
from rs_biformer.nn.tensor_files import SUFFIX
from rs_biformer.raster.overwriting import refuse_overwriting
from rs_biformer.raster.paths import PathLike


def publish(source: PathLike, out: PathLike, kind: str = "safetensors", licence: str = "") -> list[Path]:
    """Write a model in another form; the paths of what was written.

    kind: `safetensors` writes the weights with all that the checkpoint carries in the header of the file, and the same
        for people beside it as NAME.json: the header counts. `smp` writes a folder for smp's `from_pretrained`, see
        `converting.write_smp`. `stac` writes a STAC Item that describes the file at hand, see stac.py.
    licence: of the model, an SPDX identifier, for the Item.

    Raises CheckpointError for a file that is no model, ConfigError for a name that would not be read again.
    """
    path = Path(out)
    refuse_overwriting([source], [path, path.with_suffix(".json")] if kind == "safetensors" else [path])
    if kind == "smp":
        return write_smp(load_checkpoint(Path(source)), path)
    if kind == "stac":
        path.parent.mkdir(parents=True, exist_ok=True)
        loaded = load_model(source)
        assert loaded.path is not None, "it was loaded from a file"
        asset = artefact(loaded.path, os.path.relpath(loaded.path, path.parent))
        return [write_json(path, stac_item(loaded.meta, asset, loaded.parameters, licence))]
    if path.suffix.lower() != SUFFIX:
        raise ConfigError(f"{path} would not be known again for what it is; let it end in {SUFFIX}")
    model = load_checkpoint(Path(source))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(model, path)
    card = write_json(path.with_suffix(".json"), model.meta.to_json())
    return [path, card]


def write_json(path: Path, document: Any) -> Path:
    """Write a document for people and programs: indented, in UTF-8."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return path
