"""The demo: the main job from end to end on synthetic scenes, with what it would take to do the same on one's own.

Five scenes are made, of which three train the network, one chooses the best epoch and one is kept for the end. Each
step calls what the command of its name calls, and says that command. Beside the network stands a table that gives each
colour its most frequent class: what can be done pixel by pixel, and what the network has to beat.
"""

import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from rs_biformer.checkpoint import load_checkpoint
from rs_biformer.data.augment import Augmentation
from rs_biformer.data.layouts import pattern_scenes
from rs_biformer.data.splits import assign_scenes
from rs_biformer.data.tiling import TileOptions, tile_scenes
from rs_biformer.errors import ConfigError
from rs_biformer.evaluation import Metrics, SceneView, evaluate, write_confusion_png, write_json, write_page
from rs_biformer.evaluation.confusion import Confusion, count, empty
from rs_biformer.evaluation.maps import ClassMap
from rs_biformer.files import replacing, write_text
from rs_biformer.geometry import Window, cover, grid
from rs_biformer.predict import predict_scene
from rs_biformer.predict.forward import good_at_bf16
from rs_biformer.raster.labels import LabelRaster
from rs_biformer.raster.scene import Scene
from rs_biformer.schema import IGNORE, ClassSchema
from rs_biformer.synthetic import SCHEMA, make_scene
from rs_biformer.train.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from rs_biformer.train.folder import BEST_NAME, METRICS_NAME
from rs_biformer.train.run import train

SCENES = ("train_1", "train_2", "train_3", "val_1", "test_1")
SPLITS = ("train=train_*", "val=val_*", "test=test_*")
LABELS = "{dir}/{stem}_label.tif"

# Coarser than Vaihingen's 9 cm: a house then fits a window, and the scenes show some thirty blocks.
GSD, SIZE, WINDOW = 0.2, 1280, 192
BATCH, STEPS, EPOCHS = 8, 280, 4

CLAIM = "Made by `rs-biformer demo`, which replaces what lies here when it runs again."

Say = Callable[[str], None]
Announce = Callable[..., None]
Progress = Callable[[str, str], AbstractContextManager[Callable[[int, int], None] | None]]
"""(label, unit) -> a context that gives a callback (done, total)."""


@dataclass(frozen=True)
class DemoResult:
    """What came out: the figures on the test scene, the same of colours alone, and where everything lies."""

    metrics: Metrics
    colours: Confusion
    report: Path
    checkpoint: Path


def run_demo(
    out: str | PathLike[str],
    *,
    seed: int = 0,
    size: int = SIZE,
    steps: int = STEPS,
    say: Say = lambda line: None,
    progress: Progress = lambda label, unit: nullcontext(None),
) -> DemoResult:
    """Make scenes in the folder `out`, tile them, train on them, map and measure the one kept back.

    seed: of the scenes and the training. size: pixels on a side of a scene. steps: of training, about.
    say: gets what is done and the command line that does the same. progress: see Progress.

    A folder that an earlier demo made is emptied of what it holds from then. Raises ConfigError for a folder that
    holds anything else, and for sizes and steps that cannot be meant.
    """
    if size < 2 * WINDOW or steps < EPOCHS:
        raise ConfigError(f"size {size}, steps {steps}: the demo needs {2 * WINDOW} pixels and {EPOCHS} steps or more")
    if not 0 <= seed < 2**32 // len(SCENES):
        raise ConfigError(f"seed is {seed}; it must be a whole number from 0 to {2**32 // len(SCENES) - 1}")
    files = _Files(Path(out))
    _claim(files)
    commands: list[str] = []

    def announce(*command: str | Path) -> None:
        commands.append(shlex.join(["rs-biformer", *map(str, command)]))
        say(f"$ {commands[-1]}")

    for number, name in enumerate(SCENES):
        own_seed = len(SCENES) * seed + number
        scene = files.scene(name)
        announce("demo", "--scene", scene, "--size", str(size), "--gsd", str(GSD), "--seed", str(own_seed))
        make_pair(scene, size=size, seed=own_seed, gsd=GSD)
    _tile(files, announce)
    _train(files, announce, steps=steps, seed=seed, say=say)
    _predict(files, announce, progress)
    metrics, colours = _evaluate(files, announce)
    _report(files, metrics, commands)
    return DemoResult(metrics, colours, files.report, files.checkpoint)


@dataclass(frozen=True)
class _Files:
    """Where in the demo's folder things lie."""

    out: Path

    def scene(self, name: str) -> Path:
        return self.out / "scenes" / f"{name}.tif"

    @property
    def test(self) -> Path:
        return self.scene("test_1")

    @property
    def tiles(self) -> Path:
        return self.out / "tiles"

    @property
    def config(self) -> Path:
        return self.out / "train.yaml"

    @property
    def checkpoint(self) -> Path:
        return self.out / "run" / BEST_NAME

    @property
    def curves(self) -> Path:
        return self.out / "run" / METRICS_NAME

    @property
    def mapped(self) -> Path:
        return self.out / "maps" / "test_1_classes.tif"

    @property
    def figures(self) -> Path:
        return self.out / "metrics.json"

    @property
    def confusion(self) -> Path:
        return self.out / "metrics_confusion.png"

    @property
    def report(self) -> Path:
        return self.out / "report.html"

    @property
    def overview(self) -> Path:
        return self.out / "overview.png"

    @property
    def about(self) -> Path:
        return self.out / "about.txt"

    @property
    def made(self) -> tuple[Path, ...]:
        """All that a demo leaves behind but `about`."""
        folders = (self.test.parent, self.tiles, self.checkpoint.parent, self.mapped.parent)
        return (*folders, self.config, self.figures, self.confusion, self.report, self.overview)


def _claim(files: _Files) -> None:
    """Make the folder ours: empty it of an earlier demo, refuse any other content."""
    out, about = files.out, files.about
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder")
    if about.is_file() and about.read_text(encoding="utf-8", errors="replace").startswith(CLAIM):
        for path in files.made:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    elif out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"--out {out} holds files that no demo made; give a new or empty folder")
    out.mkdir(parents=True, exist_ok=True)
    write_text(about, f"{CLAIM}\nThis run is not finished.\n")


def _tile(files: _Files, announce: Announce) -> None:
    options = ("--window", str(WINDOW), "--overlap", "0.5", "--split", *SPLITS)
    folder = files.test.parent
    announce("tile", folder, "--labels", LABELS, "--classes", SCHEMA.name, *options, "--out", files.tiles)
    scenes = assign_scenes(pattern_scenes([folder], LABELS), SPLITS)
    tile_scenes(scenes, SCHEMA, files.tiles, options=TileOptions(WINDOW, 0.5))


def _train(files: _Files, announce: Announce, *, steps: int, seed: int, say: Say) -> None:
    config = training(files.tiles, files.checkpoint.parent, steps=steps, seed=seed)
    write_text(files.config, config.to_yaml())
    announce("train", "--config", files.config)
    train(config, say=say)


def _predict(files: _Files, announce: Announce, progress: Progress) -> None:
    announce("predict", files.test, "--checkpoint", files.checkpoint, "--out", files.mapped.parent)
    model = load_checkpoint(files.checkpoint)
    with progress(files.test.stem, "window") as update:
        predict_scene(model, files.test, files.mapped, classes=SCHEMA, window=WINDOW, progress=update)


COLOURS_ALONE = "For comparison"
"""Under which name the page shows how far colours alone get."""


def _evaluate(files: _Files, announce: Announce) -> tuple[Metrics, Confusion]:
    rasters = ("--prediction", files.mapped, "--label", label_of(files.test), "--scene", files.test)
    outputs = ("--out", files.figures, "--report", files.report, "--curves", files.curves)
    announce("evaluate", *rasters, "--classes", SCHEMA.name, *outputs)
    metrics = evaluate([files.mapped], [label_of(files.test)], SCHEMA, scenes=[files.test])
    colours = score_colours([files.scene(name) for name in SCENES if name.startswith("train")], files.test)
    by_colour = metrics.scores_of(colours)
    note = (
        "a table of the most frequent class of each colour, made from the same training scenes, reaches a mean IoU of "
        f"{100 * by_colour.mean_iou:.1f} % and an overall accuracy of {100 * by_colour.overall_accuracy:.1f} %"
    )
    return replace(metrics, about={**metrics.about, COLOURS_ALONE: note}), colours


def _report(files: _Files, metrics: Metrics, commands: Sequence[str]) -> None:
    write_json(files.figures, metrics)
    write_confusion_png(files.confusion, metrics)
    draw_overview(files.overview, files.test, label_of(files.test), files.mapped, SCHEMA)
    write_page(
        files.report,
        metrics=metrics,
        title="Demo: a synthetic scene that the network did not train on",
        scenes=[SceneView(metrics.scenes[0].name, files.test, label_of(files.test), files.mapped)],
        curves=files.curves,
        commands=commands,
        files={
            "Class map (GeoTIFF)": files.mapped,
            "Figures (JSON)": files.figures,
            "Confusion matrix (PNG)": files.confusion,
            "Checkpoint": files.checkpoint,
            "Training config (YAML)": files.config,
        },
    )
    lines = (
        CLAIM,
        "",
        f"Mean IoU {100 * metrics.mean_iou:.1f} % on a scene that the network did not train on, scenes/test_1.tif;",
        f"{metrics.about[COLOURS_ALONE]}.",
        "",
        "report.html      figures, confusion matrix, training curves, image | truth | prediction",
        "overview.png     a part of the scene: image, truth and prediction in one picture",
        "maps/            the class map, a GeoTIFF: drop it into QGIS",
        "run/             checkpoints, metrics.csv, TensorBoard events where it is installed",
        "train.yaml       the training, to be changed and run again",
        "tiles/           the tile index and its summary",
        "scenes/          synthetic scenes and their labels",
        "",
        "The same by hand:",
        *commands,
    )
    write_text(files.about, "\n".join(lines) + "\n")


def training(index: Path, out: Path, *, steps: int = STEPS, seed: int = 0) -> TrainConfig:
    """The recipe: what a small network learns in three minutes on two cores.

    Cars and clutter are two per cent of the pixels: windows that hold them are drawn more often, and Dice counts every
    class alike. The rate goes up to 2e-3 and down to nothing once; bfloat16 is used where it is the faster.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return TrainConfig(
        model=ModelConfig(encoder="resnet18_biformer"),
        data=DataConfig(
            index=str(index),
            batch_size=BATCH,
            workers=0,
            samples_per_epoch=BATCH * (steps // EPOCHS),
            balance=0.5,
            jitter=0.5,
            cache=True,
            augment=Augmentation(d4=True, brightness=0.2, contrast=0.15, band=0.1, probability=0.5),
        ),
        loss=LossConfig({"cross_entropy": 1.0, "dice": 1.0}),
        optimizer=OptimizerConfig(learning_rate=2e-3),
        schedule=ScheduleConfig("onecycle", warmup=0.2),
        trainer={
            "max_epochs": EPOCHS,
            "accelerator": device.type,
            "devices": 1,
            "precision": "bf16-mixed" if good_at_bf16(device) else "32-true",
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 10,
        },
        out=str(out),
        seed=seed,
        images_every=1,
    )


def label_of(scene: Path) -> Path:
    """Where the label of a synthetic scene lies: beside it."""
    return scene.with_name(f"{scene.stem}_label.tif")


def make_pair(
    path: Path, *, size: int, seed: int, gsd: float, progress: Callable[[int, int], None] | None = None
) -> tuple[Path, Path]:
    """Write a square synthetic scene and, beside it, its label. Returns both paths; raises as `make_scene` does.

    Raises ConfigError for a path without a name as well.
    """
    if not path.name:
        raise ConfigError(f"--scene is {path}, a folder; give the name of a file, such as scene.tif")
    make_scene(path, label_of(path), height=size, width=size, seed=seed, gsd=gsd, progress=progress)
    return path, label_of(path)


# --- what colours alone can tell --------------------------------------------------------------------------------------

_BITS = 5
"""Bits of each band that count: 32 levels, so that a table entry has seen enough pixels."""


def score_colours(training: Sequence[Path], test: Path) -> Confusion:
    """How well the most frequent class of each colour in the training scenes tells the classes of a test scene.

    On the training scenes no classifier of single pixels does better, but for the rounding of colours. Colours that
    these scenes lack go to the most frequent class of all. Scenes are read by strips; their labels lie beside
    them.
    """
    classes = len(SCHEMA)
    seen = np.zeros((1 << 3 * _BITS, classes), np.int64)
    for path in training:
        for colour, label in _pixels(path):
            known = label != IGNORE
            pairs = colour[known] * classes + label[known]
            seen += np.bincount(pairs, minlength=seen.size).reshape(seen.shape)
    table = np.where(seen.any(axis=1), seen.argmax(axis=1), seen.sum(axis=0).argmax()).astype(np.uint8)
    total = empty(classes)
    for colour, label in _pixels(test):
        total += count(label, table[colour], classes)
    return total


def _pixels(path: Path, rows: int = 512) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Colour numbers and class indices (h, w) of a scene of three 8-bit bands, strip by strip."""
    with Scene(path) as scene, LabelRaster(label_of(path), SCHEMA) as labels:
        for window in cover(Window(0, 0, scene.height, scene.width), rows):
            levels = scene.read(window)[0].astype(np.int64) >> (8 - _BITS)
            yield (levels[0] << 2 * _BITS) | (levels[1] << _BITS) | levels[2], labels.read(window)[0]


# --- the picture ------------------------------------------------------------------------------------------------------

_PANEL, _GAP, _TITLE, _LEGEND = 396, 6, 24, 26
"""Pixels of the overview: a panel's side, between panels, and the lines above and below them."""


def draw_overview(path: Path, scene: Path, label: Path, prediction: Path, schema: ClassSchema) -> Path:
    """Draw image | truth | prediction of a part of a scene side by side, with a legend: 1200 pixels wide, a PNG.

    The part is the square that shows the classes most evenly, at half its size where the scene is large enough.
    """
    with Scene(scene) as image, LabelRaster(label, schema) as truth, ClassMap(prediction, schema) as mapped:
        side = min(2 * _PANEL, image.height, image.width)
        window = max(grid(image.height, image.width, side, side // 4), key=lambda part: _evenness(truth.read(part)[0]))
        photo = Image.fromarray(np.ascontiguousarray(np.moveaxis(image.read(window)[0][:3], 0, -1)))
        maps = [_coloured(index, schema) for index in (truth.read(window)[0], mapped.read(window))]
    size = (_PANEL, _PANEL)
    panels = [
        photo.resize(size, Image.Resampling.BOX),
        *(picture.resize(size, Image.Resampling.NEAREST) for picture in maps),
    ]
    canvas = Image.new("RGB", (3 * _PANEL + 2 * _GAP, _TITLE + _PANEL + _LEGEND), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    for number, (title, panel) in enumerate(zip(("image (IRRG)", "truth", "prediction"), panels, strict=True)):
        left = number * (_PANEL + _GAP)
        pen.text((left + 2, 4), title, "black", font)
        canvas.paste(panel, (left, _TITLE))
    left, top = 2, _TITLE + _PANEL + 7
    for name, colour in zip(schema.classes, schema.colours, strict=True):
        pen.rectangle((left, top, left + 20, top + 13), fill=colour, outline="grey")
        pen.text((left + 26, top - 1), name, "black", font)
        left += 54 + round(pen.textlength(name, font))
    with replacing(path) as partial:
        canvas.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(partial, "PNG", optimize=True)
    return path


def _evenness(index: NDArray[np.uint8]) -> float:
    """Entropy of the class shares of a label."""
    shares = np.bincount(index[index != IGNORE]) / max(1, (index != IGNORE).sum())
    return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())


def _coloured(index: NDArray[np.uint8], schema: ClassSchema) -> Image.Image:
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(schema)] = schema.colours
    return Image.fromarray(palette[index])
