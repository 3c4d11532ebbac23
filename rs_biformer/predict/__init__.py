"""Class maps of scenes of any size, from any model that gives logits."""

from rs_biformer.predict.ensemble import Ensemble
from rs_biformer.predict.fit import open_scene
from rs_biformer.predict.mapping import predict_scene

__all__ = ["Ensemble", "open_scene", "predict_scene"]
