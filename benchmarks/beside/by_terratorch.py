"""The scene of benchmarks/inference.py mapped with terratorch (pip install terratorch): SIDE FOLDER."""

import sys

import numpy as np
import rasterio
import torch
from terratorch.tasks.tiled_inference import tiled_inference

CLASSES, WINDOW, STRIDE, BATCH = 6, 512, 384, 4


def main(side: int, folder: str) -> None:
    torch.set_num_threads(2)
    model = torch.nn.Conv2d(3, CLASSES, 1).eval()
    with rasterio.open(f"{folder}/in_{side}.tif") as source:
        image, profile = torch.from_numpy(source.read()).float(), source.profile
    with torch.inference_mode():
        scores = tiled_inference(model, image[None], crop=WINDOW, stride=STRIDE, delta=0, batch_size=BATCH)
    with rasterio.open(f"{folder}/terratorch_{side}.tif", "w", **profile | {"count": 1, "BIGTIFF": "IF_SAFER"}) as sink:
        sink.write(scores[0].argmax(0).numpy().astype(np.uint8), 1)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
