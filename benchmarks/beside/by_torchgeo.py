"""A scene mapped with torchgeo's dataset and grid sampler (pip install torchgeo): SCENE OUT [WEIGHTS].

torchgeo has no function that puts predicted windows together: here each goes where its bounds say, the later over the
earlier, which is the least that a user has to write.
"""

import sys
from pathlib import Path

import numpy as np
import rasterio
import torch
from network import BATCH, STRIDE, WINDOW, load
from torch.utils.data import DataLoader
from torchgeo.datasets import RasterDataset, stack_samples
from torchgeo.samplers import GridGeoSampler


def main(scene: str, out: str, weights: str | None = None) -> None:
    model = load(weights)

    class Scene(RasterDataset):
        filename_glob = Path(scene).name

    dataset = Scene(str(Path(scene).parent))
    loader = DataLoader(
        dataset, batch_size=BATCH, sampler=GridGeoSampler(dataset, WINDOW, STRIDE), collate_fn=stack_samples
    )
    with rasterio.open(scene) as source:
        profile, place = source.profile, ~source.transform
    classes = np.zeros((profile["height"], profile["width"]), np.uint8)
    with torch.inference_mode():
        for batch in loader:
            found = model(batch["image"]).argmax(1).numpy().astype(np.uint8)
            for window, bounds in zip(found, batch["bounds"], strict=True):
                col, row = (round(value) for value in place * (bounds[0].start, bounds[1].stop))
                above, left = max(0, -row), max(0, -col)  # its windows begin at the lower left and may reach beyond
                part = classes[row + above : row + WINDOW, col + left : col + WINDOW]
                part[...] = window[above : above + part.shape[0], left : left + part.shape[1]]
    with rasterio.open(out, "w", **profile | {"count": 1, "photometric": None, "BIGTIFF": "IF_SAFER"}) as sink:
        sink.write(classes, 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
