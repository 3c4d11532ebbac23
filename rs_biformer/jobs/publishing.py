"""A trained model as files for others: weights that nobody has to unpickle, and cards that say what they are."""

import json
from pathlib import Path
from typing import Any

from rs_biformer.checkpoint import load_checkpoint, write_safetensors
from rs_biformer.errors import ConfigError
from rs_biformer.files import replacing
from rs_biformer.nn.tensor_files import SUFFIX
from rs_biformer.raster.paths import PathLike


def publish(source: PathLike, out: PathLike, kind: str = "safetensors") -> list[Path]:
    """Write a model in another form; the paths of what was written.

    kind: `safetensors` writes the weights with all that the checkpoint carries in the header of the file, and the same
        for people beside it as NAME.json: the header counts.

    Raises CheckpointError for a file that is no model, ConfigError for a name that would not be read again.
    """
    path = Path(out)
    if path.suffix.lower() != SUFFIX:
        raise ConfigError(f"{path} would not be known again for what it is; let it end in {SUFFIX}")
    model = load_checkpoint(Path(source))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(model, path)
    card = write_json(path.with_suffix(".json"), model.meta.to_json())
    return [path, card]


def write_json(path: Path, document: Any) -> Path:
    """Write a document for people and programs: indented, in UTF-8."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
