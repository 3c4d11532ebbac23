"""A scene mapped with terratorch (pip install terratorch): SCENE OUT [WEIGHTS].

Without its rims and reflected edges (delta 0, no padding), which would move windows by 8 pixels against the others'.
"""

import sys

import numpy as np
import rasterio
import torch
from network import BATCH, STRIDE, WINDOW, load
from terratorch.tasks.tiled_inference import tiled_inference


def main(scene: str, out: str, weights: str | None = None) -> None:
    model = load(weights)
    with rasterio.open(scene) as source:
        image, profile = torch.from_numpy(source.read()).float(), source.profile
    with torch.inference_mode():
        scores = tiled_inference(
            model, image[None], crop=WINDOW, stride=STRIDE, delta=0, padding=False, batch_size=BATCH
        )
    with rasterio.open(out, "w", **profile | {"count": 1, "photometric": None, "BIGTIFF": "IF_SAFER"}) as sink:
        sink.write(scores[0].argmax(0).numpy().astype(np.uint8), 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
