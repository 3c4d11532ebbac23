"""Class maps against labels: counts, figures, protocols, reports."""

from rs_biformer.evaluation.confusion import Confusion
from rs_biformer.evaluation.metrics import Metrics, SceneResult, Scores
from rs_biformer.evaluation.page import SceneView, write_page
from rs_biformer.evaluation.protocols import PROTOCOLS, Protocol, load_protocol
from rs_biformer.evaluation.report import write_confusion_png, write_json
from rs_biformer.evaluation.stream import evaluate

__all__ = [
    "PROTOCOLS",
    "Confusion",
    "Metrics",
    "Protocol",
    "SceneResult",
    "SceneView",
    "Scores",
    "evaluate",
    "load_protocol",
    "write_confusion_png",
    "write_json",
    "write_page",
]
