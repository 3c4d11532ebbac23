"""A trained model as a file that other programs run: raw band values in, probabilities out."""

from rs_biformer.export.deployed import metadata
from rs_biformer.export.onnx import export_onnx
from rs_biformer.export.program import export_program
from rs_biformer.export.samples import Trial, find_trial
from rs_biformer.export.writing import Exported

__all__ = ["Exported", "Trial", "export_onnx", "export_program", "find_trial", "metadata"]
