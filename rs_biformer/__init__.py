"""rs_biformer: semantic segmentation of large aerial and satellite rasters.

The public names below are imported on first use, so that `import rs_biformer` and the command line's `--help` load
neither torch nor rasterio.
"""

from typing import TYPE_CHECKING

from rs_biformer.lazy import names_from

if TYPE_CHECKING:
    from rs_biformer.checkpoint import load_checkpoint
    from rs_biformer.data.tiling import TileOptions
    from rs_biformer.distribution import __version__
    from rs_biformer.errors import CheckpointError, ConfigError, RasterError, RsBiformerError
    from rs_biformer.evaluation import evaluate
    from rs_biformer.jobs import create_tile_index, map_scenes
    from rs_biformer.nn.attention import BiLevelRoutingAttention, MultiScaleDilatedAttention
    from rs_biformer.nn.blocks import IRFFN
    from rs_biformer.nn.model import create_encoder, create_model, list_encoders
    from rs_biformer.nn.weights import load_published_weights
    from rs_biformer.predict import predict_scene
    from rs_biformer.schema import ClassSchema, load_schema
    from rs_biformer.viewer.view import View

_HOMES = {
    "BiLevelRoutingAttention": "nn.attention",
    "CheckpointError": "errors",
    "ClassSchema": "schema",
    "ConfigError": "errors",
    "IRFFN": "nn.blocks",
    "MultiScaleDilatedAttention": "nn.attention",
    "RasterError": "errors",
    "RsBiformerError": "errors",
    "TileOptions": "data.tiling",
    "View": "viewer.view",
    "__version__": "distribution",
    "create_encoder": "nn.model",
    "create_model": "nn.model",
    "create_tile_index": "jobs",
    "evaluate": "evaluation",
    "list_encoders": "nn.model",
    "load_checkpoint": "checkpoint",
    "load_published_weights": "nn.weights",
    "load_schema": "schema",
    "map_scenes": "jobs",
    "predict_scene": "predict",
}

__all__ = [
    "BiLevelRoutingAttention",
    "CheckpointError",
    "ClassSchema",
    "ConfigError",
    "IRFFN",
    "MultiScaleDilatedAttention",
    "RasterError",
    "RsBiformerError",
    "TileOptions",
    "View",
    "__version__",
    "create_encoder",
    "create_model",
    "create_tile_index",
    "evaluate",
    "list_encoders",
    "load_checkpoint",
    "load_published_weights",
    "load_schema",
    "map_scenes",
    "predict_scene",
]

__getattr__ = names_from(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
