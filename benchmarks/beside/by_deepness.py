"""Deepness' own processing of an exported model in QGIS, beside `predict`: how many classes are the same.

    python benchmarks/beside/by_deepness.py model.onnx scene.tif --deepness FOLDER --packages FOLDER... [--python FILE]

FOLDER of --deepness is the `src` of its repository (PUTvision/qgis-plugin-deepness), which is not part of this project;
--packages hold what it imports: onnxruntime 1.17.0, numpy below 2, opencv-python-headless. --python is QGIS' own
(/usr/bin/python3), in which Deepness maps the whole layer, no window open, as its form would be filled by the
file's metadata. The scene's pixels must have the size told there. `predict` maps it with the same windows and --blend
center, which cuts windows where Deepness does; at the right and bottom edge Deepness' windows reach beyond the scene
where ours are shifted in, so figures are of the whole scene and of what lies a window away from its edges.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np


def inside_qgis(model: str, scene: str, out: str) -> None:
    """Map the scene by Deepness, in QGIS' Python: a class per pixel, written by numpy."""
    from unittest.mock import MagicMock

    from deepness.common.channels_mapping import ChannelsMapping, ImageChannelStandaloneBand
    from deepness.common.processing_overlap import ProcessingOverlap, ProcessingOverlapOptions
    from deepness.common.processing_parameters.map_processing_parameters import ProcessedAreaType
    from deepness.common.processing_parameters.segmentation_parameters import SegmentationParameters
    from deepness.processing.map_processor.map_processor_segmentation import MapProcessorSegmentation
    from deepness.processing.models.segmentor import Segmentor
    from qgis.core import QgsApplication, QgsProject, QgsRasterLayer

    application = QgsApplication([b""], False)
    application.initQgis()
    network = Segmentor(model)
    layer = QgsRasterLayer(scene, "scene")
    QgsProject.instance().addMapLayer(layer)
    channels = ChannelsMapping()
    channels.set_image_channels(
        [
            ImageChannelStandaloneBand(band_number=band, name=f"band {band}")
            for band in range(1, network.get_number_of_channels() + 1)
        ]
    )
    channels.set_number_of_model_inputs_same_as_image_channels()
    overlap = ProcessingOverlap(
        ProcessingOverlapOptions.OVERLAP_IN_PERCENT, percentage=network.get_metadata_tiles_overlap()
    )
    processor = MapProcessorSegmentation(
        rlayer=layer,
        vlayer_mask=None,
        map_canvas=MagicMock(),
        params=SegmentationParameters(
            resolution_cm_per_px=network.get_metadata_resolution(),
            tile_size_px=network.get_metadata_tile_size(),
            batch_size=4,
            local_cache=False,
            processed_area_type=ProcessedAreaType.ENTIRE_LAYER,
            mask_layer_id=None,
            input_layer_id=layer.id(),
            input_channels_mapping=channels,
            postprocessing_dilate_erode_size=network.get_metadata_segmentation_small_segment(),
            processing_overlap=overlap,
            pixel_classification__probability_threshold=network.get_metadata_segmentation_threshold(),
            model=network,
        ),
    )
    processor.run()
    np.save(out, processor.get_result_img()[0] - 1)
    os._exit(0)  # QGIS crashes while it leaves an application without windows


def by_deepness(args: argparse.Namespace, folder: Path) -> np.ndarray:
    """Run this file in QGIS' Python."""
    out = folder / "deepness.npy"
    paths = os.pathsep.join([str(args.deepness), *map(str, args.packages)])
    environment = {**os.environ, "PYTHONPATH": paths, "QT_QPA_PLATFORM": "offscreen"}
    command = [args.python, __file__, "--inside", str(args.model.resolve()), str(args.scene.resolve()), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if not out.exists():
        sys.exit(f"Deepness made no map:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return np.load(out)


def by_us(args: argparse.Namespace, folder: Path) -> np.ndarray:
    """The map of `predict`, by the same windows."""
    import onnxruntime
    import rasterio

    about = onnxruntime.InferenceSession(args.model).get_modelmeta().custom_metadata_map
    overlap = json.loads(about["tiles_overlap"]) / 100
    command = [sys.executable, "-m", "rs_biformer", "predict", str(args.scene), "--checkpoint", str(args.model)]
    subprocess.run(
        [*command, "--blend", "center", "--overlap", str(overlap), "--out", str(folder / "ours")], check=True
    )
    (path,) = (folder / "ours").glob("*_classes.tif")
    with rasterio.open(path) as source:
        return source.read(1)


def main() -> None:
    """Compare the maps."""
    if sys.argv[1:2] == ["--inside"]:
        return inside_qgis(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--deepness", type=Path, required=True)
    parser.add_argument("--packages", type=Path, nargs="+", required=True)
    parser.add_argument("--python", default="/usr/bin/python3")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = by_deepness(args, Path(folder)), by_us(args, Path(folder))
        import onnxruntime

        about = onnxruntime.InferenceSession(args.model).get_modelmeta().custom_metadata_map
    window = json.loads(about["tile_size"])
    if theirs.shape != ours.shape:
        sys.exit(f"Deepness gives {theirs.shape}, predict {ours.shape}")
    same = (theirs == ours)[ours != 255].mean()
    away = (slice(window, -window),) * 2
    inner = (theirs[away] == ours[away])[ours[away] != 255].mean()
    print(f"{args.scene.name}: {same:.4%} of {ours.size} pixels are of the same class; away from the edges {inner:.4%}")
    return None


if __name__ == "__main__":
    main()
