"""Forward passes of prediction by the number of windows in one: windows per second, and GB at the height on a GPU.

    python benchmarks/batches.py [--device cuda] [--encoders resnet50_biformer] [--batches 4 8 16 32 64] [--window 256]

Random weights and pixels; normalised and turned into probabilities as `predict` does, in its default precision.
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
    args = parser.parse_args()
    device = pick_device(args.device)
    print("| encoder | windows per pass | windows per second | GB |\n|---|---|---|---|")
    for encoder in args.encoders:
        model = create_model(encoder, classes=CLASSES).eval()
        predict = prepare(Recipe(CLASSES), model, device).predict
        for batch in args.batches:
            speed, memory = measured(predict, batch, args.window, device)
            print(f"| {encoder} | {batch} | {speed:.3g} | {memory} |", flush=True)


def measured(predict, batch: int, window: int, device: torch.device) -> tuple[float, str]:
    image = torch.randint(1, 255, (batch, 3, window, window), dtype=torch.uint8, device=device)
    valid = torch.ones(batch, window, window, dtype=torch.bool, device=device)
    passes, on_gpu = max(4, WINDOWS // batch), device.type == "cuda"
    with torch.inference_mode():
        for number in range(WARM_UP + passes):
            if number == WARM_UP:
                if on_gpu:
                    torch.cuda.synchronize()
                    torch.cuda.reset_peak_memory_stats()
                started = time.perf_counter()
            for _ in predict(image, valid):  # on a CPU they come one by one
                pass
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return passes * batch / seconds, f"{torch.cuda.max_memory_allocated() / 1e9:.2f}" if on_gpu else "-"


if __name__ == "__main__":
    main()
