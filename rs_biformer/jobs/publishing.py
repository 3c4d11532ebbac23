"""A trained model as files for others: weights that nobody has to unpickle, and cards that say what they are."""

import json
import os
from pathlib import Path
from typing import Any

from rs_biformer.checkpoint import CheckpointMeta, hub, load_checkpoint, write_safetensors
from rs_biformer.checkpoint.meta import require_licence
from rs_biformer.errors import ConfigError
from rs_biformer.files import temporary_folder, write_text
from rs_biformer.jobs.converting import markdown, write_smp
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
    licence: of the model, an SPDX identifier, for the Item; that of an exported file unless given.

    Raises CheckpointError for a file that is no model, ConfigError for a name that would not be read
    again, or a licence that is none.
    """
    require_licence(licence)
    path = Path(out)
    refuse_overwriting([source], [path, path.with_suffix(".json")] if kind == "safetensors" else [path])
    if kind == "smp":
        return write_smp(load_checkpoint(Path(source)), path)
    if kind == "stac":
        path.parent.mkdir(parents=True, exist_ok=True)
        loaded = load_model(source)
        assert loaded.path is not None, "it was loaded from a file"
        asset = artefact(loaded.path, os.path.relpath(loaded.path, path.parent))
        return [write_json(path, stac_item(loaded.meta, asset, loaded.parameters, licence or loaded.licence))]
    if path.suffix.lower() != SUFFIX:
        raise ConfigError(f"{path} would not be known again for what it is; let it end in {SUFFIX}")
    model = load_checkpoint(Path(source))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(model, path)
    card = write_json(path.with_suffix(".json"), model.meta.to_json())
    return [path, card]


def push_model(
    source: PathLike, repository: str, *, private: bool = False, revision: str | None = None, licence: str = ""
) -> str:
    """Put a model into a repository of the hub; the address of the commit. See `publish` for its files.

    Raises CheckpointError for a file that is no model, ConfigError where the hub refuses.
    """
    require_licence(licence)
    with temporary_folder() as folder:
        weights, card = publish(source, Path(folder) / hub.FILE)
        (item,) = publish(weights, Path(folder) / "model.stac.json", "stac", licence)
        readme = Path(folder) / "README.md"
        write_text(readme, _readme(load_checkpoint(weights).meta, repository, licence))
        files = {path.name: path for path in (weights, card, item, readme)}
        return hub.push(repository, files, message="Model of rs_biformer", private=private, revision=revision)


def _readme(meta: CheckpointMeta, repository: str, licence: str) -> str:
    """The card for people: the header that the hub reads, and what the model takes and gives."""
    figures = "\n".join(
        f"| {markdown(name)} | {value:.4f} |" for name, value in meta.metrics.items() if type(value) is float
    )
    measured = f"| figure ({markdown(meta.protocol)}) |  |\n|---|---|\n{figures}\n\n" if figures else ""
    told = f"license: {licence.lower()}\n" if licence else ""
    size = f" at {meta.gsd:g} m per pixel" if meta.gsd else ""
    return (
        f"---\n{told}library_name: rs_biformer\npipeline_tag: image-segmentation\ntags: [remote-sensing]\n---\n\n"
        f"# {markdown(meta.encoder)} + {markdown(meta.decoder)}\n\n"
        f"Maps {markdown(', '.join(meta.bands))} ({meta.dtype}){size} into "
        f"{markdown(', '.join(meta.schema.classes))}.\n\n"
        f"{measured}```\npip install 'rs_biformer[hub]'\n"
        f"rs-biformer predict SCENE --checkpoint hf://{repository} --out maps\n```\n\n"
        "All that the model was trained on stands in the header of model.safetensors, and in model.json to read; "
        "model.stac.json describes it for catalogues.\n"
    )


def write_json(path: Path, document: Any) -> Path:
    """Write a document for people and programs: indented, in UTF-8."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return path
