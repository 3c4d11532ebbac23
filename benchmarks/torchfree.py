"""An environment without torch beside one with it: what is installed, how fast it starts, how fast it maps.

    python benchmarks/torchfree.py --light ENV/bin/python --full ENV/bin/python --checkpoint best.ckpt \
        --onnx model.onnx SCENE.tif [--runs 3] [--threads 1 2]

Each line is one environment and one way of running the model: the exported file by the light environment
(rs_biformer_predict) and by the full one (rs_biformer with the extra `onnx`), and the checkpoint by torch, in float32
and in its default precision. Packages are those that pip lists, MB those of all files below site-packages. Each time is
of a whole process, the best of --runs; the speed of predict leaves out its start: it follows from the seconds that
the command tells. Maps of the exported file must have the same classes by both.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import rasterio

COMMAND = "import sys; from rs_biformer.cli import main; sys.exit(main(sys.argv[1:]))"
INSTALLED = """
import json, os, sysconfig
from importlib.metadata import distributions
roots = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
files = {os.path.join(folder, name) for root in roots for folder, _, names in os.walk(root) for name in names}
print(json.dumps([len({one.name.lower() for one in distributions()}), sum(os.lstat(path).st_size for path in files)]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--light", type=Path, required=True, help="python of the environment without torch")
    parser.add_argument("--full", type=Path, required=True, help="python of the environment with torch and onnxruntime")
    parser.add_argument("--onnx", type=Path, required=True, help="the exported model")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the model that it was exported from")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    environments = {"without torch": args.light, "with torch": args.full}
    print("| environment | packages | MB | --help, s | info, s | info MODEL.onnx, s |\n|---|---|---|---|---|---|")
    for name, python in environments.items():
        packages, size = json.loads(run(python, ["-c", INSTALLED], threads=1).stdout)
        starts = [best(python, argv, args.runs) for argv in (["--help"], ["info"], ["info", str(args.onnx)])]
        print(f"| {name} | {packages} | {size / 1e6:.0f} | {' | '.join(f'{one:.2f}' for one in starts)} |", flush=True)
    ways = [
        ("without torch", "ONNX", args.light, [str(args.onnx)]),
        ("with torch", "ONNX", args.full, [str(args.onnx)]),
        ("with torch", "checkpoint, float32", args.full, [str(args.checkpoint), "--precision", "32"]),
        ("with torch", "checkpoint, default", args.full, [str(args.checkpoint)]),
    ]
    print("\n| environment | model | threads | Mpx/s | whole command, s |\n|---|---|---|---|---|")
    digests = set()
    for threads in args.threads:
        for name, model, python, arguments in ways:
            speed, seconds, digest = predict(python, args.scene, arguments, threads, args.runs)
            digests |= {digest} if model == "ONNX" else set()
            print(f"| {name} | {model} | {threads} | {speed:.3f} | {seconds:.1f} |", flush=True)
        if len(digests) != 1:
            sys.exit(f"the maps of the exported model differ with {threads} threads")
        digests.clear()
    print("\nthe maps of the exported model have the same classes by both environments")


def run(python: Path, argv: list[str], threads: int) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([python, *argv], capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{python} {' '.join(argv)} failed with {done.returncode}: {done.stderr[-500:]}")
    return done


def best(python: Path, argv: list[str], runs: int) -> float:
    """Seconds of `rs-biformer` with these arguments; --help ends with an exit code of 0 as the others do."""
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        run(python, ["-c", COMMAND, *argv], threads=1)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def predict(python: Path, scene: Path, model: list[str], threads: int, runs: int) -> tuple[float, float, str]:
    """(Mpx/s, seconds of the whole command, digest of the classes), of the fastest run."""
    found = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            argv = ["predict", str(scene), "--out", folder, "--device", "cpu", "--json", "--checkpoint", *model]
            started = time.perf_counter()
            told = json.loads(run(python, ["-c", COMMAND, *argv], threads).stdout)
            seconds = time.perf_counter() - started
            (one,) = told["scenes"]
            with rasterio.open(one["maps"]["classes"]) as source:
                digest = hashlib.sha256(source.read().tobytes()).hexdigest()
            found.append((one["pixels"] / one["seconds"] / 1e6, seconds, digest))
    return max(found)


if __name__ == "__main__":
    main()
