"""From a scene of any size and any model to a class map: read | infer | blend | write, overlapped.

One thread reads strips ahead and cuts them into batches, the caller's thread runs the model and blends softmax
probabilities in float32, one thread compresses and writes finished strips. What is held at a time follows from the
plan (plan.py) and does not grow with the scene.

Shapes: B batch, C bands, K classes, S window, h w pixels of a window (S, or the scene's where that is smaller).
"""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rs_biformer.errors import ConfigError, RasterError, RsBiformerError
from rs_biformer.geometry import Blend, Window, reflect_pad
from rs_biformer.nn.normalise import Normalisation
from rs_biformer.predict.background import WriteBehind, read_ahead
from rs_biformer.predict.plan import (
    DEFAULT_MAX_MEMORY,
    READ_AHEAD,
    WRITE_BEHIND,
    Plan,
    Strip,
    chunks,
    make_plan,
    ring_pieces,
)
from rs_biformer.predict.tta import Views, average_views, views
from rs_biformer.raster.scene import Scene
from rs_biformer.raster.writer import MapWriter
from rs_biformer.schema import IGNORE, ClassSchema

Precision = Literal["auto", "32", "bf16"]
PathLike = str | os.PathLike[str]
Model = Callable[..., Tensor]

LEVELS = 250
"""Steps of a stored probability or confidence: the uint8 value v means v / 250, and 255 is nodata."""


class Source(Protocol):
    """What the stages ask of a scene, beyond its size in the plan: `raster.scene.Scene` is one."""

    def read(self, window: Window) -> tuple[NDArray, NDArray[np.bool_]]: ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows of one strip that hold a valid pixel: image (B, C, S, S) as in the raster, valid (B, S, S) bool."""

    windows: tuple[Window, ...]
    image: Tensor
    valid: Tensor


@dataclass(frozen=True, slots=True)
class Finished:
    """All windows of a strip have been handed out; valid (rows, columns) bool of its output."""

    strip: Strip
    valid: NDArray[np.bool_]


def predict_scene(
    model: Model,
    scene: PathLike | Sequence[PathLike] | Scene,
    out: PathLike,
    *,
    classes: int | ClassSchema,
    window: int = 256,
    overlap: float = 0.5,
    blend: Blend = "hann",
    batch_size: int = 8,
    device: str | torch.device = "auto",
    precision: Precision = "auto",
    normalisation: Normalisation | tuple[Sequence[float], Sequence[float]] | None = None,
    tta: Views = "none",
    probabilities: PathLike | None = None,
    confidence: PathLike | None = None,
    max_memory: int = DEFAULT_MAX_MEMORY,
    progress: Callable[[int, int], None] | None = None,
    tags: dict[str, str] | None = None,
) -> Path:
    """Map a scene of any size by a sliding window and return the path of the class map.

    model: gives logits (B, K, S, S). Any callable (B, C, S, S) -> logits will do; it gets float32 batches of the raw
        band values with 0 where the scene has no valid pixel, or, when `normalisation` is given, standardised ones. A
        model with an attribute `normalisation` (`load_checkpoint` gives one) is called as model(raw, valid) with raw
        in the raster's own type and valid (B, S, S) bool, and normalises by itself. Modules are moved to the device;
        `model.eval()` is the caller's.
    scene: a raster, several co-registered ones, or an open Scene.
    out: the class map: uint8 with nodata 255 where the scene is invalid. An existing file is replaced, and only once
        the new one is complete; after an error nothing is left behind.
    classes: the schema, which also colours and names the map, or only the number of classes.
    window, overlap, blend: windows of `window` pixels that share `overlap` of their side with their neighbours;
        `blend` is that of `geometry.axis_weights`. A scene smaller than a window is padded by reflection.
    device: `auto` is the first GPU for a module and the CPU for any other callable.
    precision: `bf16` runs the model under autocast. `auto` does so where the hardware is good at it and the model
        normalises by itself; other callables run as they are.
    normalisation: Normalisation, or (mean, std) per band in raw units.
    tta: `none`, `flips` (4 views) or `d4` (8 views), averaged.
    probabilities, confidence: more maps to write: a band per class, and the probability of the class that won, uint8
        in steps of 1/250 with nodata 255.
    max_memory: bytes that accumulators, batches and queues may take beside the model; see `make_plan`.
    progress: called as progress(windows done, windows in all).
    tags: more metadata for the maps.

    The result depends on the scene, the model and the options alone; running again gives the same bytes.

    Raises ConfigError for options that cannot be meant and a model that does not give logits of the stated shape,
    RasterError for a scene or map that cannot be read or written, RsBiformerError when the model gives NaN. What the
    model itself raises passes through.
    """
    count = classes if isinstance(classes, int) else len(classes)
    if not 1 <= count <= 254:
        raise ConfigError(f"got {count} classes; a class map holds 1 to 254")
    views(tta)  # refuse a misspelt name before anything is opened
    if normalisation is not None and not isinstance(normalisation, nn.Module):
        normalisation = Normalisation(*normalisation)
    place = pick_device(device, model)
    run = _runner(model, normalisation, place, count, _wants_bf16(precision, model, place))

    with ExitStack() as stack:
        source = scene if isinstance(scene, Scene) else stack.enter_context(Scene(scene))
        _refuse_overwriting(source, (out, probabilities, confidence))
        _require_bands(source, getattr(model, "normalisation", None) or normalisation)
        plan = make_plan(
            source.height,
            source.width,
            classes=count,
            bands=source.count,
            itemsize=source.dtype.itemsize,
            window=window,
            overlap=overlap,
            blend=blend,
            batch_size=batch_size,
            layers=1 + (confidence is not None) + count * (probabilities is not None),
            max_memory=max_memory,
        )
        schema = classes if isinstance(classes, ClassSchema) else None
        notes = _tags(plan, overlap, tta) | (tags or {})
        maps = _open_maps(stack, source, schema, count, out, probabilities, confidence, notes)
        stack.enter_context(torch.inference_mode())
        _predict(source, plan, lambda image, valid: average_views(run, image, valid, tta), maps, count, place, progress)
    return Path(out)


def _predict(
    source: Source,
    plan: Plan,
    probabilities: Callable[[Tensor, Tensor], Tensor],
    maps: dict[str, MapWriter],
    classes: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Run the three stages over the plan. The queues and threads end before this returns or raises."""
    done, total = 0, plan.window_count
    accumulator = Accumulator(plan, classes, device)
    items = read_ahead(read_plan(source, plan, pin=device.type == "cuda"), READ_AHEAD)
    with closing(items), WriteBehind(WRITE_BEHIND) as writer:
        settled = 0
        for item in items:
            if isinstance(item, Batch):
                image = item.image.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
                accumulator.add(item.windows, probabilities(image, item.valid.to(device, non_blocking=True)))
                done += len(item.windows)
            else:
                layers = accumulator.take(item.strip.output, tuple(maps))
                writer.submit(_write_strip, maps, item, layers)
                settled += len(item.strip.windows)
                done = settled  # windows without a valid pixel were never handed out
            if progress is not None:
                progress(done, total)


def read_plan(source: Source, plan: Plan, pin: bool = False) -> Generator[Batch | Finished]:
    """Batches and finished strips in the plan's order. Each pixel of a block is read once."""
    for block in plan.columns:
        held: _Held | None = None
        for strip in plan.strips(block):
            held = _read_strip(source, strip.source, held)
            yield from _batches(strip, held, plan, pin)
            yield Finished(strip, held.valid[_within(strip.output, held.window)].copy())


@dataclass(frozen=True, slots=True)
class _Held:
    """The part of the scene under a strip's windows: image (C, rows, columns), valid (rows, columns)."""

    window: Window
    image: NDArray
    valid: NDArray[np.bool_]


def _read_strip(source: Source, wanted: Window, held: _Held | None) -> _Held:
    """Read what the strip before, `held`, does not have."""
    if held is None:
        return _Held(wanted, *source.read(wanted))
    last = held.window
    image, valid = source.read(Window(last.row_stop, wanted.col, wanted.row_stop - last.row_stop, wanted.width))
    kept = slice(wanted.row - last.row, None)
    return _Held(
        wanted, np.concatenate([held.image[:, kept], image], axis=1), np.concatenate([held.valid[kept], valid])
    )


def _batches(strip: Strip, held: _Held, plan: Plan, pin: bool) -> Iterator[Batch]:
    """The windows of a strip in batches; those without a valid pixel are left out."""
    places = [(window, _within(window, held.window)) for window in strip.windows]
    wanted = [(window, place) for window, place in places if held.valid[place].any()]
    for chosen in chunks(wanted, plan.batch_size):
        # Padding takes the validity of the pixels it mirrors: it is context for the model and never reaches the map.
        image, valid = (
            torch.from_numpy(np.stack([reflect_pad(array[..., *place], plan.size, plan.size) for _, place in chosen]))
            for array in (held.image, held.valid)
        )
        if pin:
            image, valid = image.pin_memory(), valid.pin_memory()
        yield Batch(tuple(window for window, _ in chosen), image, valid)


def _within(window: Window, frame: Window) -> tuple[slice, slice]:
    """Slices of `window` in an array whose origin is that of `frame`."""
    return (
        slice(window.row - frame.row, window.row_stop - frame.row),
        slice(window.col - frame.col, window.col_stop - frame.col),
    )


class Accumulator:
    """Blended probabilities of the rows that are still in work: a ring of rows, (K, reach, columns) float32.

    It holds the widest block; strips must be taken in the plan's order, and a taken strip leaves zeros behind.
    """

    def __init__(self, plan: Plan, classes: int, device: torch.device) -> None:
        widest = max(stop - start for start, stop in plan.columns)
        self._plan = plan
        self._total = torch.zeros((classes, plan.reach, widest), device=device)
        self._blocks = plan.columns
        self._block = 0
        self._broken: list[tuple[tuple[Window, ...], Tensor]] = []

    def add(self, windows: Sequence[Window], probabilities: Tensor) -> None:
        """Blend in a batch (B, K, S, S) of the block in work."""
        # Softmax spreads a NaN or an infinity over all classes of its pixel, so one class tells.
        self._broken.append((tuple(windows), probabilities[:, 0].isnan().flatten(1).any(1)))
        first, stop = self._blocks[self._block]
        for window, scores in zip(windows, probabilities, strict=True):
            low, high = max(first, window.col), min(stop, window.col_stop)
            down, along = (torch.from_numpy(part).to(scores.device) for part in self._plan.weights(window))
            weight = torch.outer(down, along[low - window.col : high - window.col])
            scores = scores[:, : window.height, low - window.col : high - window.col]
            for ring, rows in ring_pieces(window.row, window.row_stop, self._plan.reach):
                self._total[:, ring, low - first : high - first].addcmul_(scores[:, rows], weight[rows])

    def take(self, output: Window, names: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
        """The layers `names` of a finished strip, whose rows then make room for later ones.

        Raises RsBiformerError when a window that was added held NaN.
        """
        self._raise_if_broken()
        pieces = []
        for ring, _ in ring_pieces(output.row, output.row_stop, self._plan.reach):
            scores = self._total[:, ring, : output.width]
            pieces.append(_layers(scores, names))
            scores.zero_()
        if output.row_stop == self._plan.height:
            self._block = min(self._block + 1, len(self._blocks) - 1)
        return {name: np.concatenate([piece[name] for piece in pieces], axis=-2) for name in names}

    def _raise_if_broken(self) -> None:
        broken, self._broken = self._broken, []
        for windows, flags in broken:
            if flags.any():
                window = windows[int(flags.nonzero()[0])]
                raise RsBiformerError(
                    f"the model gave NaN for the window at row {window.row}, column {window.col}; no map was written: "
                    "check its weights, or try --precision 32 if it was trained without autocast"
                )


def _layers(scores: Tensor, names: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
    """uint8 arrays on the host from blended probabilities (K, rows, columns)."""
    best, index = scores.max(0)  # the first of equals; argmax takes many times as long over a strided axis
    made: dict[str, Tensor] = {"classes": index.to(torch.uint8)}
    if "confidence" in names:
        made["confidence"] = _levels(best)
    if "probabilities" in names:
        made["probabilities"] = torch.stack([_levels(one) for one in scores])
    return {name: made[name].cpu().numpy() for name in names}


def _levels(probability: Tensor) -> Tensor:
    return (probability * LEVELS).round_().clamp_(0, LEVELS).to(torch.uint8)


def _write_strip(maps: dict[str, MapWriter], finished: Finished, layers: dict[str, NDArray[np.uint8]]) -> None:
    for name, layer in layers.items():
        layer[..., ~finished.valid] = IGNORE
        maps[name].write(finished.strip.output, layer)


def _open_maps(
    stack: ExitStack,
    source: Scene,
    schema: ClassSchema | None,
    classes: int,
    out: PathLike,
    probabilities: PathLike | None,
    confidence: PathLike | None,
    tags: dict[str, str],
) -> dict[str, MapWriter]:
    """A writer per map that was asked for, by the name of its layer. They close when the stack does."""
    scaled = {"SCALE": f"value / {LEVELS}"}
    wanted: list[tuple[str, PathLike | None, dict[str, Any]]] = [
        ("classes", out, {"schema": schema, "tags": tags}),
        ("probabilities", probabilities, {"schema": schema, "count": classes, "tags": tags | scaled}),
        ("confidence", confidence, {"tags": tags | scaled}),
    ]
    return {
        name: stack.enter_context(
            MapWriter(
                path,
                height=source.height,
                width=source.width,
                **source.georeference,
                **options,
            )
        )
        for name, path, options in wanted
        if path is not None
    }


def pick_device(name: str | torch.device, model: Model | None = None) -> torch.device:
    """The device that `name` means; `auto` is the first GPU, but the CPU for a callable that is no module.

    Raises ConfigError for a device that this machine or this torch does not have.
    """
    if str(name) == "auto":
        movable = model is None or isinstance(model, nn.Module)
        return torch.device("cuda" if movable and torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ConfigError(f"device {str(name)!r} cannot be used ({_first_line(error)}); try auto or cpu") from None
    return device


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _wants_bf16(precision: Precision, model: Model, device: torch.device) -> bool:
    if precision not in get_args(Precision):
        raise ConfigError(f"precision is {precision!r}; it must be one of {', '.join(get_args(Precision))}")
    if precision != "auto":
        return precision == "bf16"
    return hasattr(model, "normalisation") and good_at_bf16(device)


def good_at_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 here: tensor cores, or a CPU with AVX-512 BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def _runner(
    model: Model, normalisation: nn.Module | None, device: torch.device, classes: int, bf16: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    """(image (B, C, S, S) raw, valid (B, S, S)) -> probabilities (B, K, S, S) float32, contiguous."""
    own = getattr(model, "normalisation", None) is not None
    if own and normalisation is not None:
        raise ConfigError("the model normalises by itself (it has .normalisation); leave out normalisation=")
    if isinstance(model, nn.Module):
        model.to(device).to(memory_format=torch.channels_last)
    if normalisation is not None:
        normalisation = normalisation.to(device)

    def run(image: Tensor, valid: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            if own:
                logits = model(image, valid)
            elif normalisation is not None:
                logits = model(normalisation(image, valid))
            else:
                logits = model(torch.where(valid[:, None], image.to(torch.float32), 0.0))
        _require_logits(logits, image, classes)
        # softmax over a channels-last tensor takes several times as long
        return logits.to(torch.float32).contiguous().softmax(1)

    return run


def _require_logits(logits: Any, image: Tensor, classes: int) -> None:
    wanted = (image.shape[0], classes, *image.shape[-2:])
    if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"the model returned {got} for a batch {tuple(image.shape)}; it must return logits {wanted}: "
            f"{classes} classes at the size of its input"
        )


def _require_bands(scene: Scene, normalisation: Any) -> None:
    wanted = getattr(normalisation, "bands", scene.count)
    if wanted != scene.count:
        raise RasterError(
            f"{scene.paths[0]} has {scene.count} bands ({', '.join(scene.band_names)}); the model takes {wanted}"
        )


def _refuse_overwriting(scene: Scene, outputs: Sequence[PathLike | None]) -> None:
    """Raise ConfigError when a map would replace its own source, or two maps are given one name."""
    wanted = [Path(path).resolve() for path in outputs if path is not None]
    sources = {Path(path).resolve() for path in scene.paths}
    for number, path in enumerate(wanted):
        if path in sources:
            raise ConfigError(f"{path} is the scene itself; write the map under another name")
        if path in wanted[:number]:
            raise ConfigError(f"{path} is asked for twice; give each map its own name")


def _tags(plan: Plan, overlap: float, tta: Views) -> dict[str, str]:
    """How a map was made, as metadata. No date and no machine: the same run gives the same bytes."""
    return {
        "PREDICTION_WINDOW": str(plan.size),
        "PREDICTION_OVERLAP": f"{overlap:g}",
        "PREDICTION_BLEND": plan.blend,
        "PREDICTION_TTA": tta,
    }
