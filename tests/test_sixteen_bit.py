"""A 16-bit scene of four bands with nodata and a surface model on another grid, through the whole of the commands.

The class of a pixel can only be told from its height: three levels of ground under the same noise.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from rasterio.transform import Affine

from rs_biformer import load_checkpoint
from rs_biformer.cli import main

SIDE, GSD, COARSER = 192, 0.5, 2
NODATA, NO_HEIGHT = 0, -9999.0
EAST, NORTH = 500_000.0, 5_400_000.0


def write(path: Path, pixels: np.ndarray, transform: Affine, nodata: float | None, names: list[str]) -> None:
    profile = dict(driver="GTiff", count=len(pixels), height=pixels.shape[1], width=pixels.shape[2], dtype=pixels.dtype)
    extra = {"photometric": "minisblack", "alpha": "no"} if len(pixels) == 4 else {}
    with rasterio.open(path, "w", crs="EPSG:25832", transform=transform, nodata=nodata, **profile, **extra) as sink:
        sink.write(pixels)
        sink.descriptions = names


def write_scene(folder: Path, name: str, seed: int) -> None:
    """NAME.tif, NAME_dsm.tif (coarser, shifted, larger than the scene, with a hole) and NAME_label.tif."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(3, size=(SIDE // 16 + 4, SIDE // 16 + 4))  # 16 pixels each, two beyond the scene's edges
    image = rng.normal(9000, 900, (4, SIDE, SIDE)).clip(1, 65535).astype(np.uint16)
    image[:, :20, -30:] = NODATA
    inner = levels[2:-2, 2:-2].repeat(16, 0).repeat(16, 1)
    fine = levels.repeat(16 // COARSER, 0).repeat(16 // COARSER, 1)
    dsm = (300 + 8.0 * fine + rng.normal(0, 0.2, fine.shape)).astype(np.float32)
    dsm[30:36, 40:46] = NO_HEIGHT
    corner = 2 * 16 * GSD
    grid = Affine(GSD, 0, EAST, 0, -GSD, NORTH)
    coarse = Affine(GSD * COARSER, 0, EAST - corner, 0, -GSD * COARSER, NORTH + corner)
    write(folder / f"{name}.tif", image, grid, NODATA, ["nir", "red", "green", "blue"])
    write(folder / f"{name}_dsm.tif", dsm[None], coarse, NO_HEIGHT, ["height"])
    write(folder / f"{name}_label.tif", inner[None].astype(np.uint8), grid, None, ["class"])


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sixteen")
    for number, name in enumerate(("a", "b", "c")):
        write_scene(folder, name, number)
    classes = [{"name": name, "colour": [80 * n, 200 - 80 * n, 40]} for n, name in enumerate(("low", "middle", "high"))]
    (folder / "classes.yaml").write_text(yaml.safe_dump({"name": "levels", "classes": classes}))
    pairs = ["--labels", "{dir}/{name}_label.tif", "--extra", "{dir}/{name}_dsm.tif"]
    scenes = [str(folder / f"{name}.tif") for name in "abc"]
    splits = ["--split", "train=a,b", "val=c"]
    sizes = ["--window", "64", "--overlap", "0.5", "--classes", str(folder / "classes.yaml")]
    assert main(["tile", *scenes, *pairs, *sizes, *splits, "--out", str(folder / "tiles")]) == 0
    options = {
        "data.index": folder / "tiles",
        "data.batch_size": 8,
        "data.workers": 0,
        "data.cache": "true",
        "data.augment.d4": "true",
        "data.augment.brightness": 0.1,
        "model.encoder": "resnet18_biformer",
        "optimizer.learning_rate": 0.003,
        "schedule.name": "onecycle",
        "trainer.max_epochs": 6,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "out": folder / "run",
    }
    arguments = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    assert main(["train", *arguments]) == 0
    return folder


def test_each_band_keeps_its_own_statistics(work):
    meta = load_checkpoint(work / "run" / "best.ckpt").meta
    assert meta.bands == ("nir", "red", "green", "blue", "height") and meta.dtype == "float32"
    np.testing.assert_allclose(meta.mean[:4], 9000, atol=60)
    np.testing.assert_allclose(meta.std[:4], 900, atol=60)
    assert 300 < meta.mean[4] < 316 and 4 < meta.std[4] < 9


def test_the_height_is_learned_and_the_map_is_whole(work):
    out, extra = work / "maps", ["--extra", "{dir}/{name}_dsm.tif"]
    command = ["predict", str(work / "c.tif"), *extra, "--checkpoint", str(work / "run/best.ckpt"), "--out", str(out)]
    assert main([*command, "--device", "cpu"]) == 0
    (path,) = out.glob("*.tif")
    with (
        rasterio.open(path) as result,
        rasterio.open(work / "c.tif") as scene,
        rasterio.open(work / "c_dsm.tif") as dsm,
    ):
        classes, image, holes = result.read(1), scene.read(), dsm.read(1) == NO_HEIGHT
        assert result.transform == scene.transform and result.shape == scene.shape
    assert (classes[(image == NODATA).all(0)] == 255).all()
    hole = np.zeros_like(classes, bool)  # what the coarser grid has no height for
    for row, col in np.argwhere(holes):
        top, left = (row * COARSER - 32, col * COARSER - 32)
        hole[max(0, top) : top + COARSER, max(0, left) : left + COARSER] = True
    np.testing.assert_array_equal(classes == 255, hole | (image == NODATA).all(0))


def test_evaluate_reads_the_same_rasters(work, capsys):
    result = work / "result.json"
    command = ["evaluate", "--checkpoint", str(work / "run/best.ckpt"), "--scene", str(work / "c.tif")]
    command += ["--extra", "{dir}/{name}_dsm.tif", "--label", str(work / "c_label.tif"), "--out", str(result)]
    assert main([*command, "--device", "cpu"]) == 0
    capsys.readouterr()
    found = json.loads(result.read_text())
    text = json.dumps(found)
    assert '"overall_accuracy"' in text
    assert overall_accuracy(found) > 0.75  # a third by chance, and no more than that from the four bands


def overall_accuracy(found: dict) -> float:
    """The first overall accuracy in a result, wherever it stands."""
    if "overall_accuracy" in found:
        value = found["overall_accuracy"]
        return value["value"] if isinstance(value, dict) else value
    return next(
        overall_accuracy(part)
        for part in found.values()
        if isinstance(part, dict) and "overall_accuracy" in json.dumps(part)
    )


def test_a_scene_without_its_surface_model_is_refused(work, capsys):
    command = ["predict", str(work / "c.tif"), "--checkpoint", str(work / "run/best.ckpt"), "--out", str(work / "no")]
    assert main(command) == 2
    assert "height" in capsys.readouterr().err
    assert not list((work / "no").glob("*.tif")) if (work / "no").exists() else True
