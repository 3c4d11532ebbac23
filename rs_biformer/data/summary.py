"""What a tile index holds, for people and scripts: summary.json."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS

from rs_biformer.data.counting import Tally, TilePlan, nearest_class
from rs_biformer.data.footprints import off_the_globe
from rs_biformer.data.index import SPLITS, Manifest, TileIndex, TileTable
from rs_biformer.errors import RasterError
from rs_biformer.files import write_text
from rs_biformer.raster.labels import Key, shifted_by_one
from rs_biformer.raster.paths import without_access
from rs_biformer.schema import ClassSchema

SUMMARY_NAME = "summary.json"
_NAMED_UNKNOWNS = 5
_GSD_TOLERANCE = 0.05


def summarise(
    index: TileIndex,
    plans: Sequence[TilePlan],
    tallies: Sequence[Tally],
    unlabelled: Sequence[str],
    remarked: Sequence[str] = (),
) -> dict[str, Any]:
    """The summary for people and scripts. Pixels are counted once, however many windows cover them."""
    manifest, table = index.manifest, index.table
    pixels = {split: np.zeros(len(manifest.schema), np.int64) for split in SPLITS}
    scenes = []
    for number, (plan, tally) in enumerate(zip(plans, tallies, strict=True)):
        kept = table.take(table.scene == number)
        for split in np.unique(kept.split).tolist():
            windows = kept.windows.take(kept.split == split)
            pixels[split] += tally.cells[windows.covered(tally.row_edges, tally.col_edges)].sum(axis=0)
        scenes.append(
            {
                "name": plan.record.name,
                "height": plan.record.height,
                "width": plan.record.width,
                "windows": {split: int((kept.split == split).sum()) for split in np.unique(kept.split).tolist()},
                "labelled_share": float(tally.cells.sum() / (plan.record.height * plan.record.width)),
                "unknown_pixels": tally.unknown.total(),
            }
        )
    unknown: Counter[Key] = sum((tally.unknown for tally in tallies), Counter())
    planned = sum(len(plan.windows) for plan in plans)
    between = sum(int((plan.splits == "").sum()) for plan in plans)
    return {
        "schema": manifest.schema.name,
        "window": manifest.window,
        "overlap": manifest.overlap,
        "gsd": manifest.gsd,
        "windows": len(table),
        "dropped_windows": {"without_valid_pixels": planned - between - len(table), "between_splits": between},
        "splits": {
            split: _summarise_split(split, table, pixels[split], manifest.schema)
            for split in SPLITS
            if (table.split == split).any()
        },
        "bands": [
            {"name": name, "mean": mean, "std": std}
            for name, mean, std in zip(manifest.bands, manifest.mean, manifest.std, strict=True)
        ],
        "statistics_of": manifest.statistics_of,
        "unknown": [_summarise_unknown(key, n, manifest.schema) for key, n in unknown.most_common(_NAMED_UNKNOWNS)],
        "scenes": scenes,
        "scenes_without_label": list(unlabelled),
        "notes": [
            *map(without_access, remarked),
            *_notes(manifest, plans, unlabelled, unknown),
            *_absent_classes(tallies, unknown, manifest),
            *_nodata_notes(manifest, tallies),
        ],
    }


def _summarise_split(split: str, table: TileTable, pixels: NDArray[np.int64], schema: ClassSchema) -> dict[str, Any]:
    own = table.take(table.split == split)
    return {
        "scenes": len(np.unique(own.scene)),
        "windows": len(own),
        "labelled_pixels": int(pixels.sum()),
        "classes": {
            name: {"pixels": int(count), "share": float(count / pixels.sum())}
            for name, count in zip(schema.classes, pixels, strict=True)
        },
    }


def _summarise_unknown(key: Key, pixels: int, schema: ClassSchema) -> dict[str, Any]:
    if not isinstance(key, tuple):
        return {"value": key, "pixels": pixels}
    name, distance = nearest_class(key, schema)
    return {"colour": list(key), "pixels": pixels, "nearest_class": name, "tolerance_needed": distance}


def _notes(
    manifest: Manifest, plans: Sequence[TilePlan], unlabelled: Sequence[str], unknown: Counter[Key]
) -> Iterator[str]:
    """What a careful colleague would mention."""
    if manifest.statistics_of == "all":
        yield "there is no train split: mean and standard deviation are of all scenes"
    if unlabelled:
        yield f"{len(unlabelled)} scenes have no label and were left out: {', '.join(unlabelled[:5])}"
    if unknown:
        yield f"{unknown.total()} pixels have a colour or value that the schema lacks; they are ignored"
    known = [plan.gsd for plan in plans if plan.gsd is not None]
    if known and max(known) > min(known) * (1 + _GSD_TOLERANCE):
        yield f"pixel sizes differ, from {min(known):.3g} to {max(known):.3g} m; resample the scenes to one size"
    if lost := [plan.record for plan in plans if off_the_globe(plan.record)]:
        x, y = lost[0].transform[2], lost[0].transform[5]
        yield (
            f"{len(lost)} scenes lie nowhere on the globe ({lost[0].name} at {x:.9g}, {y:.9g} in "
            f"{CRS.from_wkt(lost[0].crs or '').to_string()[:60]}); their windows have no footprint: check the CRS"
        )
    if any(plan.record.crs is None for plan in plans):
        yield "some scenes have no CRS; their windows have no footprint"


def _absent_classes(tallies: Sequence[Tally], unknown: Counter[Key], manifest: Manifest) -> Iterator[str]:
    pixels = sum((tally.cells.sum(axis=(0, 1)) for tally in tallies), np.zeros(len(manifest.schema), np.int64))
    if said := shifted_by_one(manifest.schema, pixels, unknown):
        yield said


def _nodata_notes(manifest: Manifest, tallies: Sequence[Tally]) -> Iterator[str]:
    """Values that may mean no data and count as measurements."""
    extremes = tallies[0].extremes
    for tally in tallies[1:]:
        extremes = extremes.merged(tally.extremes)
    for number, value, share in extremes.outliers():
        yield (
            f"band {manifest.bands[number]} has a mean of {manifest.mean[number]:.2g} and a deviation of "
            f"{manifest.std[number]:.2g}: {share:.1%} of its pixels hold exactly {value:.9g}, far from all others; if "
            f"that means no data, say --nodata {value:.9g}"
        )
    for white, share, rim in extremes.frames():
        value = np.iinfo(manifest.dtype).max if white else 0
        yield (
            f"{share:.0%} of all pixels are exactly {value} in all bands, and {rim:.0%} of those along the frames of "
            f"the scenes: if that means no data, say --nodata {value}"
        )


def write_summary(summary: dict[str, Any], out: Path) -> None:
    """Write it as JSON. Raises RasterError where that fails; what was there before stays then."""
    path = out / SUMMARY_NAME
    try:
        write_text(path, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise RasterError(f"cannot write {path}: {error.strerror or error}") from error
