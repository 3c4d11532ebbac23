"""Softmax attention over few keys on a CPU: PyTorch's fused kernel beside two matrix products and a softmax.

    python benchmarks/softmax.py

bfloat16, heads of 32 channels, forward and backward, both ways in turn; medians of 7. The rule that
`rs_biformer/nn/attention/softmax.py` follows, FEW_KEYS, comes from this table.
"""

import time
from statistics import median

import torch

from rs_biformer.nn.attention import softmax

SHAPES = ((512, 2, 64, 64), (512, 4, 16, 64), (128, 4, 64, 256), (64, 8, 64, 1024))
WAYS = {"fused": 0, "explicit": 1 << 30}


def seconds(inputs: list[torch.Tensor]) -> float:
    started = time.perf_counter()
    softmax.softmax_attention(*inputs, scale=inputs[0].shape[-1] ** -0.5).sum().backward()
    return time.perf_counter() - started


def main() -> None:
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; ms, forward + backward")
    for batch, heads, queries, keys in SHAPES:
        lengths = (queries, keys, keys)
        inputs = [torch.randn(batch, heads, n, 32, dtype=torch.bfloat16, requires_grad=True) for n in lengths]
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(8):
            for way, few in WAYS.items():
                softmax.FEW_KEYS = few
                times[way].append(seconds(inputs))
        shown = "  ".join(f"{way} {1e3 * median(values[1:]):7.1f}" for way, values in times.items())
        print(f"{batch} x {heads} heads, {queries} queries, {keys} keys: {shown}")


if __name__ == "__main__":
    main()
