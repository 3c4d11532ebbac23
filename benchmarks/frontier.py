"""What windows and what they share with their neighbours cost, and what they bring: the frontier of quality and cost.

    nice -n -10 python benchmarks/frontier.py measure best.ckpt --scenes 'val/*_image.tif' --out val.jsonl \
        [--labels '{dir}/{name}_label.tif'] [--name hybrid] [--grid 256:0,32,64 512:0,64] [--blends hann center] \
        [--regions number size share] [--threads 1] [--classes FILE]
    python benchmarks/frontier.py table val.jsonl ... [--plot frontier.png] [--loss 0.2]

measure: every window of the grid (WINDOW:OVERLAP,OVERLAP in pixels, or of the default one) maps the scenes, once for
all blends. A line of JSON for each: mIoU and F1 of boundaries within 3 pixels, by `evaluate`; how far the mIoU is from
that of the windows of training at an overlap of half, with its interval of 95 % from blocks of 512 pixels that both
share; pixels inferred per pixel mapped; processor seconds (user and system) and time of inferring, reading and blending
without the start of the process. Where several blends are made at once, their blending is in the seconds.

--regions: what routed attention does in windows that are larger than those of training. `number`: as many regions as
ever, which are larger. `size`: regions as large as in training, of which as many are attended as ever. `share`: such
regions, of which the same share is attended.

table: the lines as a table in Markdown, and for each network the cheapest settings whose loss is at most --loss points.
"""

import argparse
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

BLENDS = ("hann", "center")
WINDOWS = (1, 2, 3, 4, 6, 8)  # times that of training
OVERLAPS = (0, 16, 32, 64, 96, 128)  # pixels
BOUNDARY = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("measure")
    one.set_defaults(run=measure)
    add = one.add_argument
    add("checkpoint", type=Path)
    add("--scenes", nargs="+", required=True)
    add("--labels", default="{dir}/{name}_label.tif", help="pattern of the labels, as for rs-biformer evaluate")
    add("--out", type=Path, required=True)
    add("--name", help="of the network in the table")
    add("--grid", nargs="+", help="WINDOW:OVERLAP,OVERLAP,... in pixels")
    add("--blends", nargs="+", default=BLENDS)
    add("--regions", nargs="+", default=["number"], choices=["number", "size", "share"])
    add("--precision", default="auto")
    add("--device", default="auto")
    add("--threads", type=int, default=1)
    two = commands.add_parser("table")
    two.set_defaults(run=table)
    two.add_argument("files", type=Path, nargs="+")
    two.add_argument("--plot", type=Path)
    two.add_argument("--loss", type=float, default=0.2, help="points of mIoU (%(default)s)")
    args = parser.parse_args()
    args.run(args)


def grid(args: argparse.Namespace, trained: int) -> list[tuple[int, int]]:
    """Windows and overlaps in pixels; first the reference, the window of training at an overlap of half."""
    found = [(trained, trained // 2)]
    if args.grid:
        for text in args.grid:
            window, _, overlaps = text.partition(":")
            found += [(int(window), int(overlap)) for overlap in overlaps.split(",")]
    else:
        windows = [times * trained for times in WINDOWS]
        found += [(window, overlap) for window in windows for overlap in OVERLAPS if overlap <= window // 2]
    return list(dict.fromkeys(found))


def measure(args: argparse.Namespace) -> None:
    import torch

    from rs_biformer.checkpoint import load_checkpoint
    from rs_biformer.data.layouts import pattern_scenes
    from rs_biformer.evaluation import evaluate

    torch.set_num_threads(args.threads)
    model = load_checkpoint(args.checkpoint)
    files = pattern_scenes(args.scenes, args.labels, [])
    labels = [one.label for one in files]
    counted = {"boundary": (BOUNDARY,), "scenes": [one.images for one in files]}
    reference = None
    for window, overlap in grid(args, model.meta.window):
        for way in args.regions if window != model.meta.window else args.regions[:1]:
            runs = with_regions(model, way, window / model.meta.window)
            blends = args.blends if overlap else args.blends[:1]  # without overlap all are the same
            with tempfile.TemporaryDirectory() as folder:
                maps = {blend: [Path(folder) / f"{one.name}_{blend}.tif" for one in files] for blend in blends}
                cost = {"windows": 0, "inferred": 0, "mapped": 0, "cpu": 0.0, "wall": 0.0}
                for number, one in enumerate(files):
                    paths = {blend: maps[blend][number] for blend in blends}
                    for name, value in infer(runs, one.images, paths, window, overlap, args).items():
                        cost[name] += value
                for blend in blends:
                    metrics = evaluate(maps[blend], labels, model.schema, **counted)
                    reference = reference or metrics
                    line = {
                        "network": args.name or args.checkpoint.stem,
                        "device": args.device,
                        "regions": way,
                        "window": window,
                        "overlap": overlap,
                        "blend": blend,
                        **cost,
                        **figures(metrics, reference),
                    }
                    print(json.dumps(line), flush=True)
                    with args.out.open("a") as out:
                        out.write(json.dumps(line) + "\n")


def figures(metrics: Any, reference: Any) -> dict[str, Any]:
    """Per cent: mIoU, OA, boundary F1; and the loss of mIoU against the reference, with its interval."""
    from rs_biformer.evaluation.resampling import differences

    averaged = metrics.protocol.averaged(metrics.schema)
    apart = differences(metrics.units, reference.units, averaged, metrics.resampling)["mean_iou"]
    return {
        "miou": 100 * float(metrics.scores.mean_iou),
        "oa": 100 * float(metrics.scores.overall_accuracy),
        "boundary": 100 * float(metrics.boundary_f1[0]),
        "gain": [100 * float(part) for part in (apart.value, apart.low, apart.high)],
        "iou": [100 * float(part) for part in metrics.scores.iou],
    }


def with_regions(model: Any, way: str, ratio: float) -> Any:
    """The model as --regions wants it for windows `ratio` times as large as in training."""
    from rs_biformer.nn.attention.bra import BiLevelRoutingAttention

    if way == "number":
        return model
    kept = model.with_regions_of_training()
    for part in kept.modules():
        if isinstance(part, BiLevelRoutingAttention) and way == "share" and part.topk < part.regions**2:
            part.topk = max(1, round(part.topk * ratio**2))
    return kept


def infer(
    model: Any, images: Any, maps: dict[str, Path], window: int, overlap: int, args: argparse.Namespace
) -> dict[str, float]:
    """Map a scene once for several blends; what it cost."""
    import torch

    from rs_biformer.predict.blending import Sweep
    from rs_biformer.predict.fit import open_scene
    from rs_biformer.predict.forward import pick_device, prepare
    from rs_biformer.predict.outputs import Layers
    from rs_biformer.predict.plan import Run, make_plan
    from rs_biformer.predict.reading import Batch, read_run
    from rs_biformer.predict.recipe import Recipe
    from rs_biformer.raster.writer import MapWriter

    meta = model.meta
    layers = Layers(("classes",), len(meta.schema))
    worker = prepare(Recipe(layers.classes, precision=args.precision), model, pick_device(args.device))
    arrays = worker.arrays
    with ExitStack() as stack, torch.inference_mode():
        scene = stack.enter_context(open_scene(images, bands=meta.bands, dtype=meta.dtype, gsd=meta.gsd))
        shape = {"planes": layers.planes, "bands": scene.count, "itemsize": scene.dtype.itemsize}
        shape |= {"batch_size": max(1, min(8, 8 * 256**2 // window**2)), "window": window, "overlap": overlap / window}
        plans = {blend: make_plan(scene.height, scene.width, **shape, blend=blend) for blend in maps}
        size = {"height": scene.height, "width": scene.width, **scene.georeference}
        writers = {
            blend: stack.enter_context(MapWriter(path, **size, schema=meta.schema)) for blend, path in maps.items()
        }
        plan = next(iter(plans.values()))
        processor, started = time.process_time(), time.perf_counter()
        for lane in range(len(plan.columns)):
            sweeps = {blend: Sweep(plans[blend], lane, layers, arrays) for blend in maps}
            strip = None
            for item in read_run(scene, plan, Run(lane, 0, plan.strip_count)):
                if item.strip is not strip:
                    strip = item.strip
                    for sweep in sweeps.values():
                        sweep.begin(strip)
                if isinstance(item, Batch):
                    values = list(worker.predict(arrays.placed(item.image), arrays.placed(item.valid)))
                    for sweep in sweeps.values():
                        sweep.add(item.windows, values)
                    continue
                for blend, sweep in sweeps.items():
                    made = {name: arrays.on_host(layer) for name, layer in sweep.finish().items()}
                    layers.mask(made, item.valid)
                    writers[blend].write(strip.output, made["classes"])
        return {
            "windows": plan.window_count,
            "inferred": plan.window_count * window**2,
            "mapped": scene.height * scene.width,
            "cpu": time.process_time() - processor,
            "wall": time.perf_counter() - started,
        }


# The table and the plot.


def table(args: argparse.Namespace) -> None:
    lines = [json.loads(text) for path in args.files for text in path.read_text().splitlines()]
    print(
        "| network | window | overlap, px | blend | regions | px inferred per px | s per Mpx | mIoU | against the "
        "first (95 %) | boundary F1 |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for line in lines:
        value, low, high = line["gain"]
        print(
            f"| {line['network']} | {line['window']} | {line['overlap']} | {line['blend']} | {line['regions']} "
            f"| {cost_of(line):.2f} | {1e6 * line['cpu'] / line['mapped']:.2f} | {line['miou']:.2f} "
            f"| {value:+.2f} ({low:+.2f} to {high:+.2f}) | {line['boundary']:.2f} |"
        )
    for name in dict.fromkeys(line["network"] for line in lines):
        kept = [line for line in lines if line["network"] == name and line["gain"][0] >= -args.loss]
        best = min(kept, key=lambda line: line["cpu"])
        print(
            f"{name}: the cheapest that loses at most {args.loss:g}: windows of {best['window']}, overlap "
            f"{best['overlap']}, {best['blend']}, {best['regions']}: {cost_of(best):.2f} px per px",
            file=sys.stderr,
        )
    if args.plot:
        plot(lines, args.plot)


def cost_of(line: dict[str, Any]) -> float:
    return line["inferred"] / line["mapped"]


def least_cost(line: dict[str, Any]) -> float:
    """Pixels inferred per pixel of a scene so large that its edges cost nothing."""
    return (line["window"] / (line["window"] - line["overlap"])) ** 2


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """The mIoU against pixels inferred, a panel for each network, a colour for each window."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(line["network"] for line in lines))
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3.4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        own = [line for line in lines if line["network"] == name and line["regions"] == "number"]
        hann = [line for line in own if line["blend"] == "hann"]
        for window in sorted({line["window"] for line in hann}):
            points = sorted((least_cost(line), line["miou"]) for line in hann if line["window"] == window)
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=0.8, label=f"{window}")
        axis.axhline(own[0]["miou"] - 0.2, color="grey", linewidth=0.6, linestyle="dashed")
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("pixels inferred per pixel of a large scene", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.legend(title="window", fontsize=6, title_fontsize=7)
    axes[0][0].set_ylabel("mIoU, per cent", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    main()
