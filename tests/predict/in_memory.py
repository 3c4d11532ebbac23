"""Scenes and maps in memory, so that many plans can be tried in little time."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from rs_biformer.geometry import Window
from rs_biformer.predict.engine import infer_runs
from rs_biformer.predict.forward import prepare
from rs_biformer.predict.outputs import Layers
from rs_biformer.predict.plan import Plan, make_plan
from rs_biformer.predict.recipe import Recipe

CLASSES = 4
CPU = torch.device("cpu")


def pixels(height: int, width: int, seed: int = 0, dtype: str = "uint8") -> np.ndarray:
    """(3, height, width) in which no two bands are equal at a pixel."""
    rng = np.random.default_rng(seed)
    image = rng.integers(1, 80, (3, height, width)) * 3 + np.arange(3)[:, None, None]
    return image.astype(dtype)


def brightest_band(batch: Tensor) -> Tensor:
    """Pointwise and without ties: class k wins where band k holds the largest value."""
    return torch.cat([batch, batch.sum(1, keepdim=True) - 300.5], 1)


def whole(image: np.ndarray) -> np.ndarray:
    """The class map of `brightest_band` by one pass over all pixels."""
    return brightest_band(torch.from_numpy(image.astype("float32"))[None])[0].argmax(0).numpy()


def looking_around(classes: int = CLASSES) -> nn.Module:
    """A network whose answer at a pixel depends on the pixels around it, and so on the window."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, classes, 3, padding=1)).eval()


class MemoryScene:
    def __init__(self, image: np.ndarray, valid: np.ndarray | None = None) -> None:
        self.image = image
        self.valid = np.ones(image.shape[1:], bool) if valid is None else valid
        self.height, self.width = image.shape[1:]

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        return self.image[:, *window.slices], self.valid[window.slices]

    def plan(self, **options: object) -> Plan:
        return make_plan(self.height, self.width, planes=CLASSES, bands=3, itemsize=1, **options)


def all_strips(plan: Plan) -> list[tuple[int, int]]:
    return [(lane, index) for lane in range(len(plan.columns)) for index in range(plan.strip_count)]


def infer(
    scene: MemoryScene,
    plan: Plan,
    model: Callable[[Tensor], Tensor] = brightest_band,
    *,
    names: tuple[str, ...] = ("classes",),
    longest: int | None = None,
    workers: int = 1,
    recipe: Recipe | None = None,
) -> dict[str, np.ndarray]:
    """The maps, worked out in runs of at most `longest` strips by so many workers."""
    layers = Layers(names, CLASSES, "float16")
    recipe = recipe or Recipe(CLASSES, disagreement="disagreement" in names)
    made = [prepare(recipe, model, CPU, copy=number > 0) for number in range(workers)]
    maps: dict[str, np.ndarray] = {}
    covered = np.zeros((scene.height, scene.width), int)
    for strip, found in infer_runs(scene, plan, made, plan.runs(all_strips(plan), longest), layers):
        covered[strip.output.slices] += 1
        for name, layer in found.items():
            whole_map = maps.setdefault(name, np.empty((*layer.shape[:-2], *covered.shape), layer.dtype))
            whole_map[..., *strip.output.slices] = layer
    assert (covered == 1).all(), "a pixel is made never or twice"
    return maps
