"""Bi-level routing attention: beside the published code, its own methods beside each other, and its growth.

    python benchmarks/attention.py compare [--published CHECKOUT] [--device cuda] [--markdown]
    python benchmarks/attention.py methods     all ways of computing it, and the one that the rule takes
    python benchmarks/attention.py growth      time against map size, with the exponent
    python benchmarks/attention.py depthwise   the local convolution beside torch's own

CHECKOUT is a clone of https://github.com/rayleizhu/BiFormer: ops/bra_legacy.py and ops/bra_nchw.py are timed with our
weights after their outputs were compared with ours; a missing einops is replaced by a few lines. Ways are timed in
turn, `--rounds` times after one round that does not count; what is shown are medians in ms. Peak memory is what one
forward and backward pass adds: on a GPU as counted by its allocator, on a CPU the growth of the resident set of a
process of its own.
"""

import argparse
import importlib
import json
import math
import re
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from rs_biformer.nn.attention.bra import METHODS, BiLevelRoutingAttention, choose_method, route, use_method
from rs_biformer.nn.attention.regions import region_size
from rs_biformer.nn.attention.softmax import attend_everywhere
from rs_biformer.nn.depthwise import DepthwiseConv2d

HEAD_WIDTH, LOCAL_KERNEL, REGIONS = 32, 5, 8
SHAPES = {  # batch, then (side of the map, channels, topk): the stages of a 256 px and of a 512 px input
    "cpu": (8, [(64, 64, 1), (32, 128, 4), (16, 256, 16)]),
    "cuda": (16, [(128, 64, 1), (64, 128, 4), (32, 256, 16), (16, 512, 64)]),
}
METHOD_SHAPES = [  # batch, side, channels, topk: about the border between dense and gathering on a CPU, then larger
    *((8, 16, 256, topk) for topk in (4, 8, 16)),
    *((8, 24, 256, topk) for topk in (8, 16)),
    *((4, 32, 256, topk) for topk in (4, 8, 16)),
    *((2, 48, 128, topk) for topk in (4, 16)),
    *((2, 64, 64, topk) for topk in (1, 4)),
    *((16, 32, 256, topk) for topk in (4, 16)),
    *((16, 64, 128, topk) for topk in (4, 16)),
    *((16, 128, 64, topk) for topk in (1, 4)),
]
SIDES = (16, 32, 64, 128, 256)
DENSE_LIMIT = 128
TOLERANCE = {"cpu": 1e-4, "cuda": 0.02}
"""How far outputs may be apart, of the largest: Triton multiplies float32 in TensorFloat-32."""


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.what == "peak":
        return print(resident_growth(args))
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{args.threads} threads"
    print(f"torch {torch.__version__}, {where}, {args.dtype}, {args.rounds} rounds\n")
    {"compare": compare, "methods": methods, "growth": growth, "depthwise": depthwise}[args.what](args)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["compare", "methods", "growth", "depthwise", "peak"], metavar="WHAT")
    parser.add_argument("--published", type=Path, help="a clone of the published code")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="bfloat16 is autocast; cuda: always")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--markdown", action="store_true", help="print tables as Markdown")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; leave --device out")
    args.dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    return args


def compare(args: argparse.Namespace) -> None:
    batch, shapes = SHAPES[args.device]
    rows = []
    for side, channels, topk in shapes:
        ways = make_ways(args, channels, topk)
        x = torch.randn(batch, side, side, channels, device=args.device)
        check_agreement(ways, x)
        shown = {name: cell(way, x, args) for name, way in ways.items()}
        times = [in_turn({k: v[mode] for k, v in shown.items()}, args) for mode in ("forward", "both")]
        peaks = {name: peak(name, (batch, side, channels, topk), way, x, args) for name, way in ways.items()}
        rows += [[f"{side}² x {channels}, {topk}", *line] for line in compared(times, peaks)]
    table(["map x channels, topk", "", "forward", "forward + backward", "times ours", "peak MB", "of ours"], rows, args)


def compared(times: list[dict[str, float]], peaks: dict[str, float]) -> list[list[str]]:
    forward, both = times
    return [
        [
            name,
            f"{forward[name]:.1f}",
            f"{both[name]:.1f}",
            f"{both[name] / both['ours']:.2f}",
            f"{peaks[name]:.0f}",
            f"{peaks[name] / peaks['ours']:.2f}",
        ]
        for name in forward
    ]


def methods(args: argparse.Namespace) -> None:
    names = [name for name in METHODS if name != "flex" or args.device == "cuda"]
    rows = []
    for batch, side, channels, topk in METHOD_SHAPES:
        q, k, v = qkv(batch, side, channels, args)
        region = region_size(side, side, REGIONS)
        routes = route(q, k, region, topk)
        count = routes.shape[1]

        def run(name: str, given=(q, k, v, routes, region, channels // HEAD_WIDTH, channels**-0.5)) -> Tensor:
            return METHODS[name](*given)

        times = in_turn({name: lambda n=name: backward(run(n)) for name in names}, args)
        chosen = choose_method(side * side, topk / count)
        best = min(times.values())
        rows.append(
            [
                f"{batch} x {side}² x {channels}",
                f"{topk} of {count}",
                *(f"{times[name]:.1f}" for name in names),
                chosen.__name__,
                f"{times[chosen.__name__.removeprefix('attend_')] / best:.2f}",
            ]
        )
    table(["maps", "routed", *names, "the rule takes", "of the best"], rows, args)


def growth(args: argparse.Namespace) -> None:
    """The attention alone, forward and backward, without the linear layers: that is what the paper's exponent counts.

    Its bound of (HW) ** (4/3) is for as many regions as cost least, (topk / 2 * (HW) ** 2) ** (1/6) per side.
    """
    channels, topk = 64, 4
    heads, scale = channels // HEAD_WIDTH, channels**-0.5

    def routed(tensors: list[Tensor], side: int, regions: int) -> Tensor:
        q, k, v = tensors
        region = region_size(side, side, regions)
        count = (-(-side // region[0])) ** 2
        attend = choose_method(side * side, topk / count)
        return attend(q, k, v, route(q, k, region, topk), region, heads, scale)

    times: dict[str, dict[int, float]] = {"dense": {}, "8 x 8 regions": {}, "best regions": {}}
    for side in SIDES:
        tensors = qkv(1, side, channels, args)
        best = round((topk / 2 * side**4) ** (1 / 6))
        ways = {
            "8 x 8 regions": lambda t=tensors, s=side: backward(routed(t, s, REGIONS)),
            "best regions": lambda t=tensors, s=side, r=best: backward(routed(t, s, r)),
        }
        if side <= DENSE_LIMIT:
            ways["dense"] = lambda t=tensors: backward(attend_everywhere(*t, heads, scale))
        for name, value in in_turn(ways, args).items():
            times[name][side] = value
    rows = [
        [name, *(f"{found[side]:.1f}" if side in found else "" for side in SIDES), f"{exponent(found):.2f}", of_paper]
        for (name, found), of_paper in zip(times.items(), ("2", "2 at last", "1.33"), strict=True)
    ]
    table(["1 x side² x 64, topk 4", *map(str, SIDES), "exponent from 64 on", "counted"], rows, args)


def exponent(times: dict[int, float]) -> float:
    """The slope of log time against log pixels; below 64 x 64, calls cost more than work."""
    sides = [side for side in times if side >= 64]
    return float(np.polyfit([2 * math.log(side) for side in sides], [math.log(times[side]) for side in sides], 1)[0])


def depthwise(args: argparse.Namespace) -> None:
    rows = []
    for batch, side, channels in [(8, 64, 64), (8, 32, 128), (8, 16, 256)]:
        for kernel in (3, 5, 7):
            ours = DepthwiseConv2d(channels, kernel).to(args.device)
            plain = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels).to(args.device)
            x = torch.randn(batch, side, side, channels, device=args.device).permute(0, 3, 1, 2)
            ways = {"nn.Conv2d": cell(plain, x, args)["both"], "ours": cell(ours, x, args)["both"]}
            times = in_turn(ways, args)
            shown = [f"{value:.1f}" for value in times.values()]
            ratio = f"{times['nn.Conv2d'] / times['ours']:.2f}"
            rows.append([f"{batch} x {side}² x {channels}", f"{kernel} x {kernel}", *shown, ratio])
    table(["maps", "kernel", "nn.Conv2d", "ours", "times ours"], rows, args)


def make_ways(args: argparse.Namespace, channels: int, topk: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Modules of (B, H, W, C) with the same weights: the published ones, if there are, and ours."""
    heads = channels // HEAD_WIDTH
    ours = BiLevelRoutingAttention(channels, heads, REGIONS, topk, LOCAL_KERNEL)
    ways: dict[str, nn.Module] = {}
    if args.published:
        legacy, nchw = published_modules(args.published)
        sizes = {"num_heads": heads, "n_win": REGIONS, "topk": topk, "side_dwconv": LOCAL_KERNEL}
        ways = {"legacy": legacy(channels, **sizes), "nchw": Nchw(nchw(channels, **sizes))}
        weights = ours.state_dict()
        for way, names in ((ways["legacy"], ("qkv.qkv", "lepe", "wo")), (ways["nchw"], NCHW_NAMES)):
            shapes = {key: value.shape for key, value in way.state_dict().items()}
            renamed = {
                f"{theirs}.{leaf}": weights[f"{mine}.{leaf}"]
                for mine, theirs in zip(("qkv", "local", "project"), names, strict=True)
                for leaf in ("weight", "bias")
            }
            way.load_state_dict({key: renamed[key].view(shape) for key, shape in shapes.items()})
    if args.device == "cuda":
        flex = BiLevelRoutingAttention(channels, heads, REGIONS, topk, LOCAL_KERNEL)
        flex.load_state_dict(ours.state_dict())
        use_method(flex, "flex")
        ways["ours, flex"] = flex
    ways["ours"] = ours
    return {name: way.to(args.device) for name, way in ways.items()}


NCHW_NAMES = ("inner.qkv_linear", "inner.lepe", "inner.output_linear")


class Nchw(nn.Module):
    """The published channels-first module on channels-last maps: both permutes are views."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def published_modules(checkout: Path) -> tuple[type[nn.Module], type[nn.Module]]:
    if not (checkout / "ops" / "bra_nchw.py").is_file():
        sys.exit(f"{checkout} has no ops/bra_nchw.py; --published is a clone of https://github.com/rayleizhu/BiFormer")
    try:
        importlib.import_module("einops")
    except ModuleNotFoundError:
        sys.modules["einops"] = types.ModuleType("einops")
        sys.modules["einops"].rearrange = rearrange  # type: ignore[attr-defined]
    sys.path.insert(0, str(checkout))
    legacy, nchw = (importlib.import_module(f"ops.{name}") for name in ("bra_legacy", "bra_nchw"))
    return legacy.BiLevelRoutingAttention, nchw.nchwBRA


def rearrange(x: Tensor, pattern: str, **sizes: int) -> Tensor:
    """What the published code needs of einops: split, permute and merge axes."""
    before, after = (
        [axis.strip("()").split() for axis in re.findall(r"\([^)]*\)|\S+", side)] for side in pattern.split("->")
    )
    for length, names in zip(x.shape, before, strict=True):
        unknown = [name for name in names if name not in sizes]
        if unknown:
            sizes[unknown[0]] = length // math.prod(sizes[name] for name in names if name in sizes)
    order = [name for names in before for name in names]
    x = x.reshape([sizes[name] for name in order]).permute([order.index(name) for names in after for name in names])
    return x.reshape([math.prod(sizes[name] for name in names) for names in after])


def check_agreement(ways: dict[str, Callable[[Tensor], Tensor]], x: Tensor) -> None:
    # the published channels-first code projects by a convolution: in TensorFloat-32 it would route otherwise
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        outputs = {name: way(x) for name, way in ways.items()}
    for name, output in outputs.items():
        off = (output - outputs["ours"]).abs().max().item()
        if off > TOLERANCE[x.device.type] * outputs["ours"].abs().max().item():
            sys.exit(f"{name} gives another output than ours, off by {off:.2g}: nothing is timed")


def cell(way: Callable[[Tensor], Tensor], x: Tensor, args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """The two things to time of one way on one input."""
    autocast = torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16")
    x = x.clone().requires_grad_()

    def forward() -> object:
        with torch.no_grad(), autocast:
            return way(x)

    def both() -> object:
        x.grad = None
        with autocast:
            out = way(x)
        return backward(out)

    return {"forward": forward, "both": both}


def backward(out: Tensor) -> None:
    out.backward(torch.ones_like(out))


def qkv(batch: int, side: int, channels: int, args: argparse.Namespace) -> list[Tensor]:
    """Queries, keys and values as a linear layer gives them: slices of one tensor."""
    whole = torch.randn(batch, side, side, 3 * channels, device=args.device, dtype=getattr(torch, args.dtype))
    return list(whole.requires_grad_().chunk(3, dim=-1))


def in_turn(ways: dict[str, Callable[[], object]], args: argparse.Namespace) -> dict[str, float]:
    """Median milliseconds of each, timed one after the other in every round."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.rounds + 1):
        for name, way in ways.items():
            started = now(args)
            way()
            if number:
                times[name].append(1e3 * (now(args) - started))
    return {name: median(values) for name, values in times.items()}


def now(args: argparse.Namespace) -> float:
    if args.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak(
    name: str, shape: tuple[int, ...], way: Callable[[Tensor], Tensor], x: Tensor, args: argparse.Namespace
) -> float:
    """Megabytes that one forward and backward pass adds at its height."""
    if args.device == "cuda":
        both = cell(way, x, args)["both"]
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        both()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    command = [sys.executable, __file__, "peak", "--case", json.dumps([name, *shape]), "--threads", str(args.threads)]
    command += ["--dtype", args.dtype, *(["--published", str(args.published)] if args.published else [])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def resident_growth(args: argparse.Namespace) -> float:
    name, batch, side, channels, topk = json.loads(args.case)
    way = make_ways(args, channels, topk)[name]
    cell(way, torch.randn(1, 16, 16, channels), args)["both"]()  # loads kernels
    both = cell(way, torch.randn(batch, side, side, channels), args)["both"]
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the height that importing reached
    before = resident("VmRSS")
    both()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """A field of /proc/self/status in megabytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, field
    return int(found[1]) * 1024 / 1e6


def table(head: list[str], rows: list[list[str]], args: argparse.Namespace) -> None:
    if args.markdown:
        lines = [head, ["---"] * len(head), *rows]
        return print("\n".join(f"| {' | '.join(line)} |" for line in lines))
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    print(
        "\n".join(
            "  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)) for line in [head, *rows]
        )
    )


if __name__ == "__main__":
    main()
