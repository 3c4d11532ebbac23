"""Class maps against labels: counts, figures, protocols, reports."""

from rs_biformer.evaluation.card import write_card
from rs_biformer.evaluation.compare import Comparison, compare
from rs_biformer.evaluation.confusion import Confusion
from rs_biformer.evaluation.labelcheck import find_label_errors
from rs_biformer.evaluation.metrics import Metrics, Options, SceneResult, Scores
from rs_biformer.evaluation.page import write_page
from rs_biformer.evaluation.pictures import SceneView
from rs_biformer.evaluation.protocols import PROTOCOLS, Protocol, load_protocol
from rs_biformer.evaluation.report import write_confusion_png, write_json, write_results
from rs_biformer.evaluation.resampling import Resampling
from rs_biformer.evaluation.results import merge, metrics_to_dict, read_results
from rs_biformer.evaluation.stream import evaluate, evaluate_protocols

__all__ = [
    "PROTOCOLS",
    "Comparison",
    "Confusion",
    "Metrics",
    "Options",
    "Protocol",
    "Resampling",
    "SceneResult",
    "SceneView",
    "Scores",
    "compare",
    "evaluate",
    "evaluate_protocols",
    "find_label_errors",
    "load_protocol",
    "merge",
    "metrics_to_dict",
    "read_results",
    "write_card",
    "write_confusion_png",
    "write_json",
    "write_page",
    "write_results",
]
