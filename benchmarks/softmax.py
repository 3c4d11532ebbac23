"""Softmax attention over few keys on a CPU: PyTorch's fused kernel beside two matrix products and a softmax.

    python benchmarks/softmax.py

bfloat16, heads of 32 channels, forward alone and with the backward pass, both ways in turn; medians of 7. The rule that
`rs_biformer/nn/attention/softmax.py` follows, FEW_KEYS and FEW_KEYS_TO_LEARN, comes from this table.
"""

import time
from statistics import median

import torch

from rs_biformer.nn.attention import softmax

SHAPES = (
    *((512, 2, 64, 64), (512, 4, 16, 64), (128, 4, 64, 256), (256, 8, 16, 256), (128, 4, 36, 288)),
    *((128, 2, 64, 512), (32, 8, 576, 576), (64, 8, 64, 1024), (32, 8, 1024, 1024)),
)
WAYS = {"fused": 0, "explicit": 1 << 30}


def seconds(inputs: list[torch.Tensor], learn: bool) -> float:
    started = time.perf_counter()
    with torch.set_grad_enabled(learn):
        out = softmax.softmax_attention(*(t.detach().requires_grad_(learn) for t in inputs), scale=0.2)
    if learn:
        out.sum().backward()
    return time.perf_counter() - started


def main() -> None:
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; ms")
    for batch, heads, queries, keys in SHAPES:
        inputs = [torch.randn(batch, heads, n, 32, dtype=torch.bfloat16) for n in (queries, keys, keys)]
        for learn in (False, True):
            times: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(8):
                for way, few in WAYS.items():
                    softmax.FEW_KEYS = softmax.FEW_KEYS_TO_LEARN = few
                    times[way].append(seconds(inputs, learn))
            shown = "  ".join(f"{way} {1e3 * median(values[1:]):7.1f}" for way, values in times.items())
            passes = "forward + backward" if learn else "forward"
            print(f"{batch} x {heads} heads, {queries} queries, {keys} keys, {passes:18}: {shown}")


if __name__ == "__main__":
    main()
