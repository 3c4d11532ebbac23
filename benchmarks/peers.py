"""One network over one scene by other packages and by `predict`: time, memory, what is written, what windows cost.

    python benchmarks/peers.py --side 8192 --folder /tmp/peers --deepness FOLDER --packages FOLDER
        --peer toolbelt=ENV/bin/python torchgeo=ENV/bin/python terratorch=ENV/bin/python geoai=ENV/bin/python

The network is smp's U-Net over ResNet-18 with random weights of seed 0, whose batch norm has seen eight windows and
whose last layer is levelled so that every class is found; values go in divided by 255, as all packages can. The scene
is synthetic, SIDE x SIDE, tiled, with a corner that is nodata. All map it by windows of 512 every 384 pixels, 4 at a
time, in float32: whole processes, from the start of the interpreter to the written map. Each peer has an interpreter
of its own, in which smp is installed too, and a script in beside/. Deepness runs in QGIS' Python on the exported
model; --deepness is the `src` of its repository, --packages what it imports, see beside/by_deepness.py. `predict` is
run on the checkpoint by the same windows, as it comes (windows, overlap and precision that it chooses), and on the
exported model.

With --pointwise a 1x1 convolution is the model: what is left is reading, putting windows together and writing, which
shows the memory of large scenes in a minute. Deepness is left out.

Memory is the most that a process and its children held at a time: the sum of their proportional shares, sampled.
The reference is one pass over the middle 2048 x 2048 pixels; pixels of another class are counted in its middle 1024 x
1024, so that the reference has 512 pixels of context on every side. 8192 and 4352 are sides that windows fill exactly.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
import torch

from rs_biformer.checkpoint import META_KEY, NETWORK_PREFIX, CheckpointMeta
from rs_biformer.schema import PRESETS
from rs_biformer.synthetic import make_scene

HERE = Path(__file__).parent / "beside"
WINDOW, STRIDE, BATCH = 512, 384, 4
PASS, MIDDLE = 2048, 1024
PEERS = ("toolbelt", "torchgeo", "terratorch", "geoai")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--side", type=int, default=8192, help="rows and columns of the scene (8192)")
    add("--folder", type=Path, default=Path("/tmp/peers"), help="where all goes, and stays (%(default)s)")
    add("--peer", nargs="+", default=[], metavar="NAME=PYTHON", help=f"any of {', '.join(PEERS)}")
    add("--deepness", type=Path, help="the src of Deepness' repository")
    add("--packages", type=Path, nargs="+", default=[], help="what Deepness imports in QGIS' Python")
    add("--qgis", default="/usr/bin/python3", help="QGIS' Python (%(default)s)")
    add("--pointwise", action="store_true", help="a 1x1 convolution is the model: merge and I/O alone")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    scene = (noise if args.pointwise else prepare_scene)(args.folder, args.side)
    files = {} if args.pointwise else prepare_network(args.folder, scene)
    reference = None if args.pointwise else one_pass(files["weights"], scene)
    print("| | seconds | CPU seconds | peak memory | other class than one pass | what is written |")
    print("|---|---|---|---|---|---|", flush=True)
    for name, command, out, environment in runs(args, scene, files):
        out.unlink(missing_ok=True)
        try:
            seconds, busy, peak = measure(command, environment)
        except subprocess.CalledProcessError as error:
            print(f"| {name} | failed with {error.returncode} | | | | {str(error.stderr)[-300:]} |", flush=True)
            continue
        print(
            f"| {name} | {seconds:.1f} | {busy:.1f} | {peak / 1e9:.2f} GB | "
            f"{'' if reference is None else differing(out, reference)} | {written(name, out, scene)} |",
            flush=True,
        )


def runs(args: argparse.Namespace, scene: Path, files: dict[str, Path]) -> list[tuple[str, list[str], Path, dict]]:
    """Name, command, map and environment of each run."""
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found: list[tuple] = []
    weights = [] if args.pointwise else [files["weights"]]
    for name, python in (item.split("=", 1) for item in args.peer):
        out = args.folder / f"{name}.tif"
        found.append((name, [python, HERE / f"by_{name}.py", scene, out, *weights], out, plain))
    if args.pointwise:
        out = args.folder / "ours.tif"
        found.append(("ours", [sys.executable, HERE / "by_ours.py", scene, out], out, dict(os.environ)))
        return as_text(found)
    if args.deepness:
        out = args.folder / "deepness.npy"
        paths = os.pathsep.join(map(str, [args.deepness, *args.packages]))
        environment = {**plain, "PYTHONPATH": paths, "QT_QPA_PLATFORM": "offscreen"}
        command = [args.qgis, HERE / "by_deepness.py", "--inside", files["onnx"], scene, out]
        found.append(("Deepness", command, out, environment))
    same = ["--window", str(WINDOW), "--overlap", str(1 - STRIDE / WINDOW), "--batch-size", str(BATCH)]
    for name, model, options in (
        ("ours, the same windows", "checkpoint", [*same, "--precision", "32"]),
        ("ours, exported model", "onnx", same),
        ("ours, as it comes", "checkpoint", []),
    ):
        out = args.folder / name.rsplit(" ", 1)[1] / f"{scene.stem}_classes.tif"
        command = [sys.executable, "-m", "rs_biformer", "predict", scene, "--checkpoint", files[model]]
        found.append((name, [*command, "--out", out.parent, "--restart", *options], out, dict(os.environ)))
    return as_text(found)


def as_text(found: list[tuple]) -> list[tuple[str, list[str], Path, dict]]:
    return [(name, list(map(str, command)), out, environment) for name, command, out, environment in found]


# What is measured.


def prepare_scene(folder: Path, side: int) -> Path:
    """A synthetic town as a tiled GeoTIFF whose lower right corner, an eighth of it, is nodata (0). Made once."""
    path = folder / f"scene_{side}" / f"scene_{side}.tif"  # alone in its folder, which torchgeo takes whole
    if path.exists():
        return path
    path.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        drawn = Path(scratch) / "drawn.tif"
        make_scene(drawn, Path(scratch) / "label.tif", height=side, width=side, seed=0)
        with rasterio.open(drawn) as source:
            pixels, place = np.maximum(source.read(), 1), {"crs": source.crs, "transform": source.transform}
    rows, cols = np.ogrid[:side, :side]
    pixels[:, rows + cols >= 1.5 * side] = 0
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "photometric": "rgb"}
    with rasterio.open(
        path, "w", driver="GTiff", height=side, width=side, count=3, dtype="uint8", nodata=0, **layout, **place
    ) as sink:
        sink.write(pixels)
    return path


def noise(folder: Path, side: int) -> Path:
    """The scene of inference.py, made in seconds. Made once."""
    from inference import make_scene as make_noise

    path = folder / f"noise_{side}" / f"in_{side}.tif"
    path.parent.mkdir(exist_ok=True)
    make_noise(path)
    return path


def prepare_network(folder: Path, scene: Path) -> dict[str, Path]:
    """The network's weights, as a checkpoint of ours and as ONNX. Made once."""
    paths = {
        name: folder / f"unet.{end}" for name, end in (("weights", "pt"), ("checkpoint", "ckpt"), ("onnx", "onnx"))
    }
    if all(path.exists() for path in paths.values()):
        return paths
    schema = PRESETS["vaihingen"]
    with rasterio.open(scene) as source:
        gsd = source.res[0]
    meta = CheckpointMeta(
        encoder="resnet18",
        decoder="smp:Unet",
        model_arguments={},
        schema=schema,
        bands=("red", "green", "blue"),
        dtype="uint8",
        mean=(0.0,) * 3,
        std=(255.0,) * 3,
        window=WINDOW,
        gsd=gsd,
        version="0.1.0",
    )
    torch.manual_seed(0)
    network = meta.create_network()
    settle(network, scene)
    state = network.state_dict()
    torch.save({name.removeprefix("network."): value for name, value in state.items()}, paths["weights"])
    named = {NETWORK_PREFIX + name: value for name, value in state.items()}
    torch.save({META_KEY: meta.to_dict(), "state_dict": named}, paths["checkpoint"])
    command = [
        sys.executable,
        "-m",
        "rs_biformer",
        "export",
        "--checkpoint",
        paths["checkpoint"],
        "--out",
        paths["onnx"],
    ]
    options = ["--window", WINDOW, "--overlap", 1 - STRIDE / WINDOW, "--scene", scene]
    subprocess.run([str(part) for part in command + options], check=True, stdout=subprocess.DEVNULL)
    return paths


def settle(network: torch.nn.Module, scene: Path) -> None:
    """Give batch norm the statistics of eight windows, and each class the same mean and spread of its logits."""
    with rasterio.open(scene) as source:
        places = [
            (number * (source.height - WINDOW) // 14, number * (source.width - WINDOW) // 14) for number in range(8)
        ]
        windows = [rasterio.windows.Window(col, row, WINDOW, WINDOW) for row, col in places]
        images = torch.from_numpy(np.stack([source.read(window=window) for window in windows])).float() / 255
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None  # a plain mean
    last = [part for part in network.modules() if isinstance(part, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        network.train()(images)
        logits = network.eval()(images)
        spread = logits.std(dim=(0, 2, 3))
        last.weight /= spread[:, None, None, None]
        last.bias -= logits.mean(dim=(0, 2, 3))
        last.bias /= spread


def one_pass(weights: Path, scene: Path) -> np.ndarray:
    """The classes of the middle of the scene, by one pass over it and 512 pixels around."""
    sys.path.insert(0, str(HERE))
    from network import load

    with rasterio.open(scene) as source:
        first = (source.height - PASS) // 2 // 32 * 32  # where windows begin in the network's stride
        image = torch.from_numpy(source.read(window=rasterio.windows.Window(first, first, PASS, PASS)))
    with torch.inference_mode():
        classes = load(weights)(image[None].float()).argmax(1)[0].numpy().astype(np.uint8)
    rim = (PASS - MIDDLE) // 2
    middle = classes[rim:-rim, rim:-rim]
    shares = np.bincount(middle.ravel(), minlength=len(PRESETS["vaihingen"])) / middle.size
    print(f"shares of the classes in the reference: {', '.join(f'{share:.1%}' for share in shares)}\n")
    return middle


# The measures.


def measure(command: Sequence[str], environment: dict) -> tuple[float, float, int]:
    """Seconds, processor seconds and the most bytes of a process and its children. Raises CalledProcessError."""
    peak, ended = [0], threading.Event()
    with tempfile.TemporaryFile() as heard:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=heard, stderr=subprocess.STDOUT)

        def watch() -> None:
            while not ended.wait(0.1):
                peak[0] = max(peak[0], held(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        ended.set()
        watcher.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            heard.seek(0)
            said = heard.read().decode(errors="replace").replace("\n", " ")
            raise subprocess.CalledProcessError(process.returncode, command, stderr=said)
    # Not what the kernel says of the child, which counts this process' own memory before the other program begins.
    return seconds, usage.ru_utime + usage.ru_stime, peak[0]


def held(pid: int) -> int:
    """Bytes of a process and all below it; what several share counts once between them. 0 for one that has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    own = next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
    return own + sum(held(int(child)) for child in children)


def differing(out: Path, reference: np.ndarray) -> str:
    if out.suffix == ".npy":
        classes = np.load(out)
    else:
        with rasterio.open(out) as source:
            classes = source.read(1)
    first = (classes.shape[0] - PASS) // 2 // 32 * 32 + (PASS - MIDDLE) // 2
    found = classes[first : first + MIDDLE, first : first + MIDDLE]
    return f"{(found != reference).mean():.3%}"


def written(name: str, out: Path, scene: Path) -> str:
    """What a map says of itself, and what it has where the scene has no pixel."""
    if name in ("toolbelt", "torchgeo", "terratorch"):
        return "an array: it has no writer"
    if out.suffix == ".npy":
        return "polygons in QGIS' memory; compared is the array that they are made from"
    with rasterio.open(out) as source, rasterio.open(scene) as image:
        layout = source.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") or ("tiled" if source.is_tiled else "strips")
        coloured = "colours" if source.colorinterp[0] == rasterio.enums.ColorInterp.palette else "no colours"
        nodata = "none" if source.nodata is None else f"{source.nodata:g}"
        blank, holes = image.dataset_mask() == 0, source.dataset_mask() == 0
        said = f"{layout}, {len(source.overviews(1))} overviews, {coloured}, nodata {nodata}"
        if blank.any():
            taken, lost = (blank & ~holes).sum() / blank.sum(), (holes & ~blank).sum() / (~blank).sum()
            said += f"; a class on {taken:.0%} of the pixels without data, {lost:.1%} of the others lost"
        return f"{said}; {out.stat().st_size / 1e6:.1f} MB"


if __name__ == "__main__":
    main()
