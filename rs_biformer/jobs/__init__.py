"""What a command does, as functions: load a model, name the maps, map many scenes, measure.

The rooms below know one scene, one map, one figure; here is what it takes to do many. A job says nothing and asks
nothing: it tells whoever calls it, by events and results, and the command line shows them.
"""

from rs_biformer.jobs.evaluating import (
    Evaluation,
    MapSet,
    Rules,
    compare_results,
    evaluate_maps,
    evaluate_models,
)
from rs_biformer.jobs.events import Advanced, Checked, Event, Failed, Mapped, Planned, Remarked, Skipped
from rs_biformer.jobs.fitting import Fitting
from rs_biformer.jobs.inputs import map_sets, named, named_models
from rs_biformer.jobs.mapping import MappingReport, ScenesFailed, map_scenes
from rs_biformer.jobs.models import Loaded, load_model
from rs_biformer.jobs.outputs import Outputs, command_line, write_outputs
from rs_biformer.jobs.truths import Truths, find_truths

__all__ = [
    "Advanced",
    "Checked",
    "Evaluation",
    "Event",
    "Failed",
    "Fitting",
    "Loaded",
    "MapSet",
    "Mapped",
    "MappingReport",
    "Outputs",
    "Planned",
    "Remarked",
    "Rules",
    "ScenesFailed",
    "Skipped",
    "Truths",
    "command_line",
    "compare_results",
    "evaluate_maps",
    "evaluate_models",
    "find_truths",
    "load_model",
    "map_scenes",
    "map_sets",
    "named",
    "named_models",
    "write_outputs",
]
