"""What a command does, as functions: load a model, name the maps, map many scenes, measure.

The rooms below know one scene, one map, one figure; here is what it takes to do many. A job says nothing and asks
nothing: it tells whoever calls it, by events and results, and the command line shows them.
"""

from rs_biformer.jobs.events import Advanced, Checked, Event, Failed, Mapped, Planned, Remarked, Skipped
from rs_biformer.jobs.fitting import Fitting
from rs_biformer.jobs.mapping import MappingReport, ScenesFailed, map_scenes
from rs_biformer.jobs.models import Loaded, load_model

__all__ = [
    "Advanced",
    "Checked",
    "Event",
    "Failed",
    "Fitting",
    "Loaded",
    "Mapped",
    "MappingReport",
    "Planned",
    "Remarked",
    "ScenesFailed",
    "Skipped",
    "load_model",
    "map_scenes",
]
