"""What a command does, as functions: load a model, name the maps, map many scenes, measure.

The rooms below know one scene, one map, one figure; here is what it takes to do many. A job says nothing and asks
nothing: it tells whoever calls it, by events and results, and the command line shows them. The names below are imported
on first use: who describes a raster needs no torch.
"""

from typing import TYPE_CHECKING

from rs_biformer.lazy import names_from

if TYPE_CHECKING:
    from rs_biformer.jobs.architectures import count_architectures, library_encoders
    from rs_biformer.jobs.converting import convert
    from rs_biformer.jobs.describing import describe
    from rs_biformer.jobs.evaluating import Evaluation, MapSet, Rules, compare_results, evaluate_maps, evaluate_models
    from rs_biformer.jobs.events import Advanced, Checked, Event, Failed, Mapped, Planned, Remarked, Skipped
    from rs_biformer.jobs.fitting import Fitting
    from rs_biformer.jobs.inputs import map_sets, named, named_files, named_models
    from rs_biformer.jobs.mapping import MappingReport, ScenesFailed, map_scenes
    from rs_biformer.jobs.models import Loaded, load_model
    from rs_biformer.jobs.outputs import Outputs, command_line, write_outputs
    from rs_biformer.jobs.publishing import publish, push_model
    from rs_biformer.jobs.suggesting import SuggestOptions, suggest_from_maps, suggest_from_model
    from rs_biformer.jobs.tiling import Variant, create_tile_index
    from rs_biformer.jobs.truths import Truths, find_truths

_HOMES = {
    "Advanced": "events",
    "Checked": "events",
    "Evaluation": "evaluating",
    "Event": "events",
    "Failed": "events",
    "Fitting": "fitting",
    "Loaded": "models",
    "MapSet": "evaluating",
    "Mapped": "events",
    "MappingReport": "mapping",
    "Outputs": "outputs",
    "Planned": "events",
    "Remarked": "events",
    "Rules": "evaluating",
    "ScenesFailed": "mapping",
    "Skipped": "events",
    "SuggestOptions": "suggesting",
    "Truths": "truths",
    "Variant": "tiling",
    "command_line": "outputs",
    "compare_results": "evaluating",
    "convert": "converting",
    "count_architectures": "architectures",
    "create_tile_index": "tiling",
    "describe": "describing",
    "evaluate_maps": "evaluating",
    "evaluate_models": "evaluating",
    "find_truths": "truths",
    "library_encoders": "architectures",
    "load_model": "models",
    "map_scenes": "mapping",
    "map_sets": "inputs",
    "named": "inputs",
    "named_files": "inputs",
    "named_models": "inputs",
    "publish": "publishing",
    "push_model": "publishing",
    "suggest_from_maps": "suggesting",
    "suggest_from_model": "suggesting",
    "write_outputs": "outputs",
}

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
    "SuggestOptions",
    "Truths",
    "Variant",
    "command_line",
    "compare_results",
    "convert",
    "count_architectures",
    "create_tile_index",
    "describe",
    "evaluate_maps",
    "evaluate_models",
    "find_truths",
    "library_encoders",
    "load_model",
    "map_scenes",
    "map_sets",
    "named",
    "named_files",
    "named_models",
    "publish",
    "push_model",
    "suggest_from_maps",
    "suggest_from_model",
    "write_outputs",
]

__getattr__ = names_from(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
