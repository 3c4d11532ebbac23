"""The scene of benchmarks/inference.py mapped with pytorch-toolbelt (pip install pytorch-toolbelt): SIDE FOLDER."""

import sys

import numpy as np
import rasterio
import torch
from pytorch_toolbelt.inference.tiles import ImageSlicer, TileMerger

CLASSES, WINDOW, STRIDE, BATCH = 6, 512, 384, 4


def main(side: int, folder: str) -> None:
    torch.set_num_threads(2)
    model = torch.nn.Conv2d(3, CLASSES, 1).eval()
    with rasterio.open(f"{folder}/in_{side}.tif") as source:
        image, profile = np.moveaxis(source.read(), 0, -1), source.profile
    slicer = ImageSlicer(image.shape, WINDOW, STRIDE, weight="pyramid")
    merger = TileMerger(slicer.target_shape, CLASSES, slicer.weight)
    with torch.inference_mode():
        for first in range(0, len(slicer.crops), BATCH):
            places = range(first, min(first + BATCH, len(slicer.crops)))
            tiles = np.stack([slicer.cut_patch(image, place) for place in places])
            scores = model(torch.from_numpy(tiles).permute(0, 3, 1, 2).float()).softmax(1)
            merger.integrate_batch(scores, [slicer.crops[place] for place in places])
    classes = slicer.crop_to_orignal_size(np.moveaxis(merger.merge_().numpy(), 0, -1)).argmax(-1).astype(np.uint8)
    with rasterio.open(f"{folder}/toolbelt_{side}.tif", "w", **profile | {"count": 1, "BIGTIFF": "IF_SAFER"}) as sink:
        sink.write(classes, 1)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
