"""Commands killed at any moment by any signal, and the same command again: what it would have made undisturbed.

Training and `predict` have tests of their own with more to look at (train/test_run.py, predict/test_resume.py). A
moment is a share of the CPU time of the undisturbed command, so that a busy machine does not move them all to its
beginning. `make kills` kills each command twelve times; the slow suite once.
"""

import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import torch
from rasterio.transform import from_origin
from tiny_checkpoint import tiny_meta, write_checkpoint
from tiny_index import write_tiny_index

from rs_biformer.schema import PRESETS

KILLS = int(os.environ.get("RS_BIFORMER_KILLS", "1"))
SIGNALS = {signal.SIGTERM: 143, signal.SIGKILL: -9, signal.SIGINT: 130}
FORK = multiprocessing.get_context("forkserver")
PRELOADED = [
    *("rs_biformer.cli.predict", "rs_biformer.predict", "rs_biformer.checkpoint", "rs_biformer.jobs.tiling"),
    *("rs_biformer.jobs.evaluating", "rs_biformer.evaluation.page", "rs_biformer.raster.vector", "scipy.stats"),
    *("rs_biformer.raster.height", "rs_biformer.synthetic", "rs_biformer.train.run"),
    *("matplotlib.pyplot", "pyogrio.raw"),
]
COMMANDS = {
    "tile": "tile {in}/scene.tif --labels {in}/label.tif --classes {in}/classes.yaml --out {out} --window 64 "
    "--split train --workers 2 --chips",
    "tile corrections": "tile {in}/scene.tif --labels {in}/label.tif --corrections {in}/zones.gpkg --label-field class "
    "--classes {in}/classes.yaml --out {out} --window 64 --split train --workers 1",
    "train": "train --data.index {in}/index/tiles --out {out}/run --model.encoder lcnet_035 --model.decoder unet "
    "--data.batch_size 2 --data.workers 0 --trainer.max_epochs 2 --trainer.accelerator cpu --loggers [] "
    "--trainer.enable_progress_bar false --optimizer.ema 0.9",
    "predict": "predict {in}/scene.tif --checkpoint {in}/model.ckpt --out {out} --device cpu --batch-size 2 --stac "
    "--confidence --quality best",
    "vectorize": "vectorize {in}/map.tif --out {out}/polygons.gpkg --min-area 2",
    "evaluate": "evaluate --prediction {in}/map.tif --label {in}/label.tif --classes {in}/classes.yaml "
    "--out {out}/result.json --report {out}/page.html --card {out}/card.md --samples 200",
    "ndsm": "ndsm {in}/dsm.tif --out {out}/ndsm.tif",
    "suggest": "suggest {in}/map.tif --score {in}/entropy.tif --window 64 --count 4 --out {out}/next.gpkg",
    "summarise": "summarise {in}/map.tif --zones {in}/zones.gpkg --out {out}/table.gpkg",
    "demo": "demo --scene {out}/scene.tif --size 512",
}
TAKEN_UP = {"train": {"run/.unfinished", "run/.lock"}}
"""Files under a leading dot that stay, or may be there after a kill, by design."""
MEANWHILE = {"train"}
"""Commands whose files change while they run: a checkpoint of the first epoch is no half-written one of the last."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """All that COMMANDS read."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 5, (20, 20)).repeat(15, 0).repeat(15, 1).astype(np.uint8)
    colours = np.moveaxis(np.array(PRESETS["vaihingen"].colours, np.uint8)[classes], -1, 0)
    rasters = {"scene": colours, "label": colours, "map": classes[None], "old": classes[None, ::-1]}
    rasters |= {"entropy": 9 * classes[None], "dsm": rng.normal(300, 1, (1, 300, 300)).astype(np.float32)}
    place = {"crs": "EPSG:25832", "transform": from_origin(500_000, 5_400_000, 0.5, 0.5), "width": 300, "height": 300}
    for name, pixels in rasters.items():
        kind = {"count": len(pixels), "dtype": pixels.dtype} | ({"photometric": "rgb"} if len(pixels) == 3 else {})
        with rasterio.open(folder / f"{name}.tif", "w", driver="GTiff", **kind, **place) as sink:
            sink.write(pixels)
            if name in ("map", "old"):
                sink.update_tags(CLASS_NAMES=json.dumps(PRESETS["vaihingen"].classes))
    zones = [shapely.box(500_000 + 30 * k, 5_399_860, 500_020 + 30 * k, 5_399_990) for k in range(4)]
    shapes = np.array([shapely.to_wkb(zone) for zone in zones], object)
    kind = {"crs": "EPSG:25832", "geometry_type": "Polygon", "driver": "GPKG"}
    named = np.array(PRESETS["vaihingen"].classes[:4], object)
    pyogrio.raw.write(str(folder / "zones.gpkg"), shapes, [np.arange(4), named], ["number", "class"], **kind)
    (folder / "classes.yaml").write_text(json.dumps(PRESETS["vaihingen"].to_dict()))
    write_checkpoint(folder / "model.ckpt", tiny_meta("lcnet_035", decoder="unet"))
    write_tiny_index(folder / "index", {"a": "train", "b": "val"})
    return folder


def command_line(argv: list[str], log: str) -> None:
    """What the shell would run, in a process group and with temporary files of its own."""
    os.setsid()
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    tempfile.tempdir = f"{log}.tmp"
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from rs_biformer.cli import main

    note(Path(f"{log}.begun"), cpu(os.getpid()))
    code = main(argv)
    if code == 0:
        note(Path(f"{log}.ended"), cpu(os.getpid()))
    sys.exit(code)


def note(path: Path, seconds: float) -> None:
    """Who waits for the file reads it as soon as it is there."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(str(seconds))
    os.replace(partial, path)


def cpu(pid: int) -> float:
    """Seconds of CPU that the main thread of a process has had; infinite for one that is gone."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except (OSError, IndexError):
        return float("inf")


class Command:
    """A command with a folder to write to."""

    def __init__(self, name: str, inputs: Path, out: Path) -> None:
        self.name, self.out, self.log = name, out, out.with_suffix(".log")
        self.begun, self.ended = Path(f"{self.log}.begun"), Path(f"{self.log}.ended")
        self.temporary = Path(f"{self.log}.tmp")
        self.argv = [word.format(**{"in": inputs, "out": out}) for word in COMMANDS[name].split()]
        out.mkdir()
        self.temporary.mkdir(exist_ok=True)

    def start(self) -> multiprocessing.Process:
        FORK.set_forkserver_preload(PRELOADED)
        self.begun.unlink(missing_ok=True)
        self.ended.unlink(missing_ok=True)
        process = FORK.Process(target=command_line, args=(self.argv, str(self.log)))
        process.start()
        while not self.begun.exists() and process.is_alive():
            time.sleep(0.001)
        return process

    def run(self) -> float:
        """Seconds of CPU that it took."""
        process = self.start()
        process.join()
        assert process.exitcode == 0, self.log.read_text()
        return float(self.ended.read_text()) - float(self.begun.read_text())

    def kill_after(self, seconds: float, number: int) -> bool:
        """Whether it was still at work; then it ended as that signal ends a command, and its children did too."""
        process = self.start()
        stop = float(self.begun.read_text()) + seconds
        while process.is_alive() and cpu(process.pid) < stop:
            time.sleep(0.001)
        if process.is_alive():
            os.kill(process.pid, number)
        process.join()
        deadline = time.monotonic() + 60
        while (left := members(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == [], f"children live on after {signal.Signals(number).name}"
        told = self.log.read_text()
        if self.ended.exists():  # with 0; while Python itself comes to its end a signal has other effects
            return False
        assert process.exitcode == SIGNALS[number], f"{process.exitcode}: {told}"
        assert "Traceback" not in told
        return True

    def made(self) -> dict[str, object]:
        """What lies in the folder under a name that is no hidden one."""
        found = {path.relative_to(self.out) for path in self.out.rglob("*") if path.is_file()}
        return {str(path): content(self.out / path) for path in found if not any(p[0] == "." for p in path.parts)}

    def hidden(self) -> set[str]:
        return {str(path.relative_to(self.out)) for path in self.out.rglob(".*")} - TAKEN_UP.get(self.name, set())


TIMES = re.compile(r'"(seconds|date|time|created|speed)[^,}]*|\d+(\.\d+)? (s|min|Mpx/s)\b|\d{4}-\d\d-\d\d|\(\d+ s\)')


def content(path: Path) -> object:
    """What has to be equal: of a GeoPackage its features, as its pages carry times, of a checkpoint its weights."""
    if path.suffix == ".gpkg":
        found = {}
        for name, kind in pyogrio.list_layers(path):
            _, ids, shapes, values = pyogrio.raw.read(str(path), layer=name, return_fids=True)
            if name == "layer_styles":  # when, and which of those that were replaced
                ids, values = [], values[:4]
            same = [value.tolist() for value in values]
            found[name] = kind, list(ids), shapes is None or shapes.tolist(), same
        return found
    if path.suffix == ".ckpt":
        state = torch.load(path, weights_only=True)["state_dict"]
        return {name: value.numpy().tobytes() for name, value in state.items()}
    if path.name == "metrics.csv":
        rows = [line.split(",") for line in path.read_text().splitlines()]
        kept = [place for place, name in enumerate(rows[0]) if not re.search("second|speed|time|wait", name)]
        return [[row[place] for place in kept] for row in rows]
    if path.suffix in (".json", ".html", ".md"):
        return TIMES.sub("", path.read_text())
    return path.read_bytes()


def members(group: int) -> list[int]:
    """Processes of a group that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(sys.platform != "linux", reason="looks for children and their time in /proc")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_leaves_nothing_wrong_and_the_same_command_ends_the_same(name, inputs, tmp_path):
    out = tmp_path / "out"  # one for all, as some files name where they lie
    undisturbed = Command(name, inputs, out)
    seconds = undisturbed.run()
    wanted, killed = undisturbed.made(), 0
    assert wanted and undisturbed.hidden() == set()
    for number in range(KILLS + 5):
        if number >= KILLS and killed:
            break  # the five are for a machine so busy that the command ended before it could be killed
        shutil.rmtree(out)
        command = Command(name, inputs, out)
        moment = seconds * (number % KILLS + 0.6) / (KILLS + 0.2)
        which = list(SIGNALS)[(number + len(name)) % len(SIGNALS)]
        killed += command.kill_after(moment, which)
        told = f"{which.name} after {moment:.2f} of {seconds:.2f} s"
        if name not in MEANWHILE:
            assert {key for key, value in command.made().items() if wanted.get(key) != value} == set(), told
        command.run()
        made = command.made()
        assert set(made) == set(wanted), told
        assert {key for key, value in made.items() if wanted[key] != value} == set(), told
        assert command.hidden() == set(), told
        assert list(command.temporary.iterdir()) == [], told
    print(f"{name}: {killed} of {KILLS} kills came before its end, which took {seconds:.2f} s of CPU")
    assert killed > 0
