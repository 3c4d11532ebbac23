"""Images and labels -> a tile index: by names, a list of pairs or an official download, and a rule for the splits."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rs_biformer.data.chips import FOLDER_NAME, STATE_NAME
from rs_biformer.data.counting import Progress
from rs_biformer.data.index import FILE_NAME, TileIndex
from rs_biformer.data.layouts import (
    OFFICIAL,
    Height,
    Image,
    SceneFiles,
    official_scenes,
    pattern_scenes,
    with_corrections,
)
from rs_biformer.data.pairs import is_pair_list, paired_scenes
from rs_biformer.data.splits import assign_scenes, parse_blocks
from rs_biformer.data.summary import SUMMARY_NAME
from rs_biformer.data.tiling import TileOptions, tile_scenes
from rs_biformer.errors import ConfigError
from rs_biformer.raster.overwriting import refuse_overwriting
from rs_biformer.raster.paths import PathLike
from rs_biformer.schema import load_schema


@dataclass(frozen=True)
class Variant:
    """What to take of an official download, see `data.layouts.official_scenes`."""

    image: Image | None = None
    eroded: bool = False
    height: Height | None = None


def create_tile_index(
    scenes: PathLike | Sequence[PathLike],
    classes: str | Path,
    out: PathLike,
    *,
    labels: str | None = None,
    corrections: Sequence[str] = (),
    extra: Sequence[str] = (),
    name: str | None = None,
    variant: Variant | None = None,
    split: Sequence[str] = (),
    block_size: int | None = None,
    buffer: int | None = None,
    seed: int = 0,
    options: TileOptions | None = None,
    workers: int = 1,
    cluster: Any = None,
    progress: Progress | None = None,
) -> tuple[TileIndex, dict[str, Any]]:
    """Cut labelled scenes into windows and index them in the folder `out`; `rs-biformer tile` calls this.

    scenes: images, glob patterns, folders and lists; or one list of pairs; or the folder of one official download.
    classes: a preset or a YAML file, see `schema.load_schema`.
    labels: a pattern for the label of each scene. corrections: patterns for later labels, each of which replaces what
    those before it say where it has a class, see `raster.correcting`.
    extra: patterns of further rasters of each scene, as bands.
    name: a pattern for what scenes are called. variant: what to take of an official download.
    split: the rule by which scenes train, validate and test, as `--split` takes it: `["blocks:0.7,0.15,0.15"]`; lists
        of pairs and official downloads bring theirs along.
    block_size, buffer: of spatial blocks, in pixels (4 windows and half a window). seed: which blocks go where.
    options: what the windows are. workers: processes. cluster: `dask` or the address of a Dask scheduler,
        whose workers read the scenes instead, see docs/cluster.md. progress: told slabs of rows done and in all.

    Returns the index and its summary, plain lists and numbers. Raises ConfigError and RasterError.
    """
    options = options or TileOptions()
    schema = load_schema(classes)
    inputs = [os.fspath(item) for item in ([scenes] if isinstance(scenes, str | os.PathLike) else scenes)]
    _require_outside(Path(out), inputs)
    files, rule = _find(inputs, str(classes), labels, extra, name, variant or Variant())
    files = with_corrections(files, corrections)
    rule = list(split) or rule
    files_of = (path for scene in files for path in (*scene.images, scene.label, *scene.corrections))
    read = [*inputs, classes, options.area, *files_of]
    lists = [text.partition("@")[2] for text in split if "@" in text]
    chips = Path(out) / FOLDER_NAME
    refuse_overwriting(
        [*read, *lists],
        [Path(out) / FILE_NAME, Path(out) / SUMMARY_NAME, chips / FILE_NAME, chips / STATE_NAME],
        emptied=[chips / "images", chips / "labels"],
    )
    blocks = parse_blocks(
        rule,
        size=4 * options.window if block_size is None else block_size,
        buffer=options.window // 2 if buffer is None else buffer,
        seed=seed,
    )
    return tile_scenes(
        files if blocks else assign_scenes(files, rule),
        schema,
        Path(out),
        options=options,
        blocks=blocks,
        workers=workers,
        cluster=cluster,
        progress=progress,
    )


def _require_outside(out: Path, inputs: Sequence[str]) -> None:
    for folder in map(Path, inputs):
        if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"--out {out} lies in the input {folder}; choose a folder outside")


def _find(
    inputs: Sequence[str], classes: str, labels: str | None, extra: Sequence[str], name: str | None, variant: Variant
) -> tuple[Sequence[SceneFiles], list[str]]:
    """The scenes, and the split rule that they bring along: none where only names are known."""
    if any(is_pair_list(item) for item in inputs):
        if len(inputs) > 1 or labels or extra or name:
            raise ConfigError(
                f"a list of pairs ({inputs[0]}) names its scenes, labels and further rasters itself; give it alone, "
                "without --labels, --extra and --name"
            )
        pairs = paired_scenes(inputs[0])
        return pairs, ["listed"] if any(scene.split for scene in pairs) else []
    if labels is None and classes in OFFICIAL and len(inputs) == 1:
        folder = Path(inputs[0])
        found = official_scenes(classes, folder, image=variant.image, eroded=variant.eroded, height=variant.height)
        return found, ["official"]
    if variant != Variant():
        raise ConfigError("--image, --eroded and --with-dsm are for one official folder without --labels; see --extra")
    if labels is None:
        raise ConfigError(
            "--labels PATTERN is missing, such as 'labels/{stem}.tif' or '{dir}/{name}_label.tif'; or give a list of "
            "pairs, a .csv file with the columns image and label"
        )
    return pattern_scenes(inputs, labels, extra, name=name), []
