"""What the maps of a scene are called: DIR/STEM_classes.tif, DIR/STEM_confidence.tif. Here and nowhere else."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from rs_biformer.errors import ConfigError
from rs_biformer.predict.outputs import SCORES
from rs_biformer.raster.paths import PathLike


def map_layers(wanted: Sequence[str]) -> tuple[str, ...]:
    """The layers that are written: the classes, and of the scores those that are wanted.

    Raises ConfigError for a layer that is none.
    """
    for name in wanted:
        if name != "classes" and name not in SCORES:
            near = get_close_matches(name, SCORES, n=1)
            raise ConfigError(
                f"there is no layer {name!r}; "
                + (f"did you mean {near[0]}?" if near else f"it must be one of {', '.join(SCORES)}")
            )
    return ("classes", *(name for name in SCORES if name in wanted))


def map_paths(folder: PathLike, name: str, layers: Sequence[str]) -> dict[str, Path]:
    """The maps of the scene `name` in a folder, by layer."""
    return {layer: Path(folder) / f"{name}_{layer}.tif" for layer in layers}


def map_patterns(folder: PathLike, name: str, layers: Sequence[str]) -> list[str]:
    """The maps as patterns that lead from a scene to them, `name` itself being one such as `{stem}`.

    Scenes may lie in the folder of their maps; these are no scenes.
    """
    literal = str(folder).replace("{", "{{").replace("}", "}}")
    return [f"{literal}/{name}_{layer}.tif" for layer in layers]
