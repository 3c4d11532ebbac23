"""A scene mapped by geoai's own function for large GeoTIFFs (pip install geoai-py): SCENE OUT [WEIGHTS]."""

import sys

import torch
from geoai.train import semantic_inference_on_geotiff
from network import BATCH, CLASSES, STRIDE, WINDOW, load


def main(scene: str, out: str, weights: str | None = None) -> None:
    semantic_inference_on_geotiff(
        load(weights, scaled=False),  # it divides by 255 itself
        scene,
        out,
        window_size=WINDOW,
        overlap=WINDOW - STRIDE,
        batch_size=BATCH,
        num_channels=3,
        num_classes=CLASSES,
        device=torch.device("cpu"),
        quiet=True,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
