"""A scene mapped with pytorch-toolbelt (pip install pytorch-toolbelt): SCENE OUT [WEIGHTS]."""

import sys

import numpy as np
import rasterio
import torch
from network import BATCH, CLASSES, STRIDE, WINDOW, load
from pytorch_toolbelt.inference.tiles import ImageSlicer, TileMerger


def main(scene: str, out: str, weights: str | None = None) -> None:
    model = load(weights)
    with rasterio.open(scene) as source:
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
    with rasterio.open(out, "w", **profile | {"count": 1, "photometric": None, "BIGTIFF": "IF_SAFER"}) as sink:
        sink.write(classes, 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
