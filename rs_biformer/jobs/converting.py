"""Models of segmentation-models-pytorch as ours, and ours as smp's, where the architecture is one of smp's.

smp's `save_pretrained` writes a folder with config.json and model.safetensors, which know no classes, bands or
statistics. Ours has these beside them in rs_biformer.json.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rs_biformer import __version__
from rs_biformer.checkpoint import META_KEY, CheckpointMeta, TrainedModel, write_safetensors
from rs_biformer.documents import build, parse_json, read_bytes, read_yaml
from rs_biformer.errors import CheckpointError, ConfigError
from rs_biformer.files import publish as put
from rs_biformer.files import scratch_folder, write_text
from rs_biformer.nn.encoders.library import is_library_name
from rs_biformer.nn.smp_models import ARCHITECTURES, PREFIX, SmpModel, create_smp_model
from rs_biformer.nn.tensor_files import SUFFIX, read_tensors
from rs_biformer.raster.overwriting import refuse_overwriting
from rs_biformer.raster.paths import PathLike
from rs_biformer.schema import ClassSchema

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "rs_biformer.json"
"""Files of a folder that smp saved, and what we put beside them."""

FACTS = ("schema", "bands", "dtype", "mean", "std", "window", "gsd")
"""What smp's files do not tell of a model."""

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

_CLOSE = 1e-5
"""Largest difference between logits of ours and of smp's model, relative to the largest: the same sums in one order."""


def convert(folder: PathLike, out: PathLike, card: PathLike | None = None, **facts: Any) -> list[Path]:
    """Write the model that smp saved in a folder as one of ours; see `from_smp`. card: a file that has facts too.

    Raises what `from_smp` raises, and ConfigError for a name that would not be read again.
    """
    path = Path(out)
    if path.suffix.lower() != SUFFIX:
        raise ConfigError(f"{path} would not be known again for what it is; let it end in {SUFFIX}")
    read = [Path(folder) / name for name in (CONFIG, WEIGHTS, CARD)]
    refuse_overwriting([*read, card], [path])
    told = read_facts(Path(card)) if card is not None else {}
    model = from_smp(Path(folder), told | {name: value for name, value in facts.items() if value is not None})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(model, path)
    return [path]


def from_smp(folder: Path, facts: Mapping[str, Any]) -> TrainedModel:
    """The model in a folder that smp's `save_pretrained` wrote.

    facts: any of FACTS, as a checkpoint has them; they go before those of a rs_biformer.json in the folder. Statistics
        are in raw units, or `mean="imagenet"` for those that smp's encoders expect of bytes.

    Nothing in the folder is executed, and no other file of it is read. An activation of the config is left out, so that
    the model gives logits, and so is a classification head.

    Raises CheckpointError for files that are damaged or do not fit each other, ConfigError for facts that are missing.
    """
    config = _config(folder)
    known = _own_card(folder) | {name: value for name, value in facts.items() if value is not None}
    if known.get("mean") == "imagenet":
        known |= imagenet_statistics(known.get("dtype", "uint8"))
    known = {"dtype": "uint8", "window": 256, **known}
    if missing := [name for name in ("schema", "bands", "mean", "std") if name not in known]:
        raise ConfigError(
            f"{folder} does not tell {', '.join(missing)} of its model; give them by options, or all of them in a file "
            "with --card"
        )
    meta = _meta(config, known, str(folder))
    model = create_smp_model(
        config["_model_class"], meta.encoder, len(meta.schema), len(meta.bands), **meta.model_arguments
    )
    tensors, _ = read_tensors(folder / WEIGHTS, META_KEY)
    tensors = {name: value for name, value in tensors.items() if not name.startswith("classification_head.")}
    try:
        model.network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{folder}: the weights do not fit the config ({reason})") from None
    return TrainedModel(model, meta)


def imagenet_statistics(dtype: str) -> dict[str, list[float]]:
    """Mean and deviation of red, green and blue, in bytes, that most published encoders expect.

    Raises ConfigError for rasters that hold something else than bytes.
    """
    if dtype != "uint8":
        raise ConfigError(
            f"the statistics of ImageNet are of bytes and the rasters hold {dtype}; give --mean and --std"
        )
    return {name: [round(255 * value, 3) for value in values] for name, values in _IMAGENET.items()}


def read_facts(path: Path) -> dict[str, Any]:
    """FACTS from a YAML or JSON file: a card of ours, or written by hand. Raises ConfigError for other keys' values."""
    found: dict[str, Any] = build(dict[str, Any], read_yaml(path), str(path))
    return {name: value for name, value in found.items() if name in FACTS}


def _config(folder: Path) -> dict[str, Any]:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}; give a folder that smp's save_pretrained wrote")
    config: dict[str, Any] = build(
        dict[str, Any], parse_json(read_bytes(folder / CONFIG, 1 << 20), f"{folder / CONFIG}"), f"{folder / CONFIG}"
    )
    kind, encoder = config.get("_model_class"), config.get("encoder_name")
    if kind not in ARCHITECTURES or not isinstance(encoder, str):
        raise CheckpointError(
            f"{folder / CONFIG} is of no model of smp: its _model_class is {kind!r}, its encoder_name {encoder!r}"
        )
    if not is_library_name(encoder):
        raise CheckpointError(f"{folder / CONFIG} has the encoder {encoder!r}, which neither smp nor timm has")
    return config


def _own_card(folder: Path) -> dict[str, Any]:
    return read_facts(folder / CARD) if (folder / CARD).is_file() else {}


def _meta(config: Mapping[str, Any], known: Mapping[str, Any], where: str) -> CheckpointMeta:
    ours = ("_model_class", "encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params")
    arguments = {name: value for name, value in config.items() if name not in ours and value is not None}
    schema, bands = known["schema"], known["bands"]
    classes = len(schema) if isinstance(schema, ClassSchema) else len(ClassSchema.from_dict(schema))
    if config.get("classes", 1) != classes:
        arguments["logits"] = config.get("classes", 1)
    if config.get("in_channels", 3) != len(bands):
        raise ConfigError(f"{where}: its model takes {config.get('in_channels', 3)} bands, got {', '.join(bands)}")
    plain = {name: value.to_dict() if isinstance(value, ClassSchema) else value for name, value in known.items()}
    return CheckpointMeta.from_dict(
        {
            "encoder": config["encoder_name"],
            "decoder": f"{PREFIX}{config['_model_class']}",
            "model_arguments": arguments,
            "version": __version__,
            **plain,
        },
        where,
    )


def write_smp(model: TrainedModel, folder: Path) -> list[Path]:
    """Write a folder for smp's `from_pretrained`; the paths of its files.

    smp's model takes standardised values, (raw - mean) / std, where ours takes raw ones: README.md says so, and
    rs_biformer.json has the numbers. It is checked that smp's model gives the same logits.

    Raises ConfigError where the architecture is none of smp's, or the folder exists.
    """
    if folder.exists():
        raise ConfigError(f"{folder} is there already; name a folder that is not")
    twin = _as_smp(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder) as scratch:
        made = scratch / folder.name
        twin.save_pretrained(made)
        write_text(made / CARD, json.dumps(model.meta.to_json(), indent=2) + "\n")
        write_text(made / "README.md", _readme(model.meta))  # smp's own names a licence that nobody chose
        put(made, folder, sync=False)
    return sorted(folder.iterdir())


def _as_smp(model: TrainedModel) -> Any:
    """The model of smp with the same weights, seen to give the same logits."""
    meta, network = model.meta, model.network
    if isinstance(network, SmpModel):
        return network.network
    if meta.decoder != "unet" or not is_library_name(meta.encoder):
        raise ConfigError(
            f"{meta.encoder} + {meta.decoder} is no architecture of smp: of ours the decoder unet with an encoder of "
            "smp or timm is; the others have heads of their own. Take --format safetensors or onnx"
        )
    twin = create_smp_model("Unet", meta.encoder, len(meta.schema), len(meta.bands), **meta.model_arguments).network
    names = {name: name.replace("head.", "segmentation_head.0.", 1) for name in network.state_dict()}
    own = {names[name]: value for name, value in network.state_dict().items() if not name.startswith("auxiliary.")}
    try:
        twin.load_state_dict(own)
    except RuntimeError as error:
        raise ConfigError(
            f"smp's Unet of {meta.encoder} has other parts ({' '.join(str(error).split())[:120]})"
        ) from None
    twin.eval()
    image = torch.randn(1, len(meta.bands), 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted, found = network(image), twin(image)
    if not (wanted - found).abs().max() <= _CLOSE * wanted.abs().max():
        raise ConfigError(f"smp's Unet of {meta.encoder} gives other logits, so nothing was written")
    return twin


def _readme(meta: CheckpointMeta) -> str:
    """What whoever loads the folder with smp must know."""
    rows = zip(meta.bands, meta.mean, meta.std, strict=True)
    bands = "\n".join(f"| {markdown(band)} | {mean:.6g} | {std:.6g} |" for band, mean, std in rows)
    classes = ", ".join(f"{index} {markdown(name)}" for index, name in enumerate(meta.schema.classes))
    size = f" of {meta.gsd:g} m" if meta.gsd else ""
    return f"""# {markdown(meta.encoder)}

`segmentation_models_pytorch.from_pretrained(FOLDER)` loads this model. It takes **standardised** values of these bands,
`(raw - mean) / std`, with 0 where there is no data, and gives logits.

| band | mean | std |
|---|---|---|
{bands}

Classes: {classes}. Rasters held {meta.dtype}; windows of {meta.window} pixels{size}.
The same for programs is in {CARD}. Written by rs_biformer {meta.version}.
"""


def markdown(text: str) -> str:
    """Words from outside in one line, such that they begin no markup."""
    return "".join("\\" + sign if sign in "|<>`*_[]\\&~#" else sign for sign in " ".join(text.split()))
