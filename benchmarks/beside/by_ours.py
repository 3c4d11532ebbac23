"""A scene mapped by `predict_scene` with the same windows: SCENE OUT [WEIGHTS]."""

import sys

from network import BATCH, CLASSES, STRIDE, WINDOW, load

from rs_biformer.predict import predict_scene


def main(scene: str, out: str, weights: str | None = None) -> None:
    predict_scene(
        load(weights),
        scene,
        out,
        classes=CLASSES,
        window=WINDOW,
        overlap=1 - STRIDE / WINDOW,
        batch_size=BATCH,
        device="cpu",
        precision="32",
        restart=True,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
