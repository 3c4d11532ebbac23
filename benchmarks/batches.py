"""Forward passes of prediction by the number of windows in one: speed, memory, and whether neighbours change bits.

    python benchmarks/batches.py [--device cuda] [--encoders resnet50_biformer] [--batches 4 8 16 32 64] [--window 256]

Random weights and pixels; normalised and turned into probabilities as `predict` does, in its default precision. GB at
the height are a GPU's. The last column counts windows of a batch whose probabilities are not, bit by bit, those of a
pass over the window alone.
"""

import argparse
import time

import torch

from rs_biformer import create_model
from rs_biformer.predict.forward import pick_device, prepare
from rs_biformer.predict.recipe import Recipe

CLASSES, WARM_UP, WINDOWS = 6, 3, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--encoders", nargs="+", default=["resnet50_biformer"])
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--windows", type=int, default=WINDOWS, help="that are inferred for each row (256)")
    args = parser.parse_args()
    device = pick_device(args.device)
    print("| encoder | windows per pass | windows per second | CPU ms per window | GB | other bits than alone |")
    print("|---|---|---|---|---|---|")
    for encoder in args.encoders:
        model = create_model(encoder, classes=CLASSES).eval()
        predict = prepare(Recipe(CLASSES), model, device).predict
        for batch in args.batches:
            speed, busy, memory = measured(predict, batch, args.window, device, args.windows)
            changed = f"{other_bits(predict, batch, args.window, device)} of {batch}"
            print(f"| {encoder} | {batch} | {speed:.3g} | {busy * 1e3:.3g} | {memory} | {changed} |", flush=True)


def noise(batch: int, window: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.randint(1, 255, (batch, 3, window, window), dtype=torch.uint8, device=device)
    return image, torch.ones(batch, window, window, dtype=torch.bool, device=device)


def other_bits(predict, batch: int, window: int, device: torch.device) -> int:
    image, valid = noise(batch, window, device)
    with torch.inference_mode():
        together = list(predict(image, valid))
        alone = [list(predict(image[place : place + 1], valid[place : place + 1]))[0] for place in range(batch)]
    return sum(not torch.equal(one, other) for one, other in zip(together, alone, strict=True))


def measured(predict, batch: int, window: int, device: torch.device, windows: int) -> tuple[float, float, str]:
    image, valid = noise(batch, window, device)
    passes, on_gpu = max(4, windows // batch), device.type == "cuda"
    with torch.inference_mode():
        for number in range(WARM_UP + passes):
            if number == WARM_UP:
                if on_gpu:
                    torch.cuda.synchronize()
                    torch.cuda.reset_peak_memory_stats()
                started, worked = time.perf_counter(), time.process_time()
            for _ in predict(image, valid):  # on a CPU they come one by one
                pass
    if on_gpu:
        torch.cuda.synchronize()
    seconds, busy = time.perf_counter() - started, time.process_time() - worked
    return (
        passes * batch / seconds,
        busy / passes / batch,
        f"{torch.cuda.max_memory_allocated() / 1e9:.2f}" if on_gpu else "-",
    )


if __name__ == "__main__":
    main()
