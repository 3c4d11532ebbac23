"""An output is never an input: every command, each of its inputs against each of its outputs, however it is spelt."""

import argparse
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from pyogrio.raw import write
from tiny_checkpoint import tiny_meta, write_checkpoint

from rs_biformer.checkpoint import load_checkpoint
from rs_biformer.cli import build_parser, main
from rs_biformer.errors import ConfigError
from rs_biformer.export import export_onnx
from rs_biformer.raster.height import write_ndsm
from rs_biformer.raster.overwriting import refuse_overwriting
from rs_biformer.raster.vector import vectorize
from rs_biformer.schema import IGNORE, PRESETS

READS = {
    "ndsm": {"dsm", "terrain"},
    "tile": {"scenes", "labels", "corrections", "area", "extra", "classes", "split"},
    "train": {"config"},
    "evaluate": {
        *("prediction", "checkpoint", "compare", "scene", "extra", "label", "classes", "confidence", "protocol"),
        *("curves", "area"),
    },
    "predict": {"scenes", "checkpoint", "extra", "area"},
    "view": {"map", "scene", "label", "other", "confidence", "probabilities", "classes"},
    "vectorize": {"map", "confidence"},
    "summarise": {"map", "zones", "change", "confidence"},
    "suggest": {"inputs", "score", "labelled", "checkpoint", "extra", "area"},
    "export": {"checkpoint", "scene", "label", "area"},
    "convert": {"folder", "card", "classes"},
    "explain": {"scene", "checkpoint"},
    "push": {"model"},
    "info": {"paths"},
}
"""Options that name what is read, by command."""

WRITES = {
    "demo": {"out", "scene"},
    "ndsm": {"out"},
    "tile": {"out"},
    "evaluate": {"out", "report", "card", "find_label_errors", "maps"},
    "predict": {"out"},
    "vectorize": {"out"},
    "summarise": {"out", "change_map"},
    "suggest": {"out", "maps"},
    "export": {"out"},
    "convert": {"out"},
    "explain": {"out"},
}
"""Options that name what is written."""

NEITHER = set(
    "count measure min_distance parts stac "
    "repository private revision zones_layer fractional regrid license max_changed dtype mean std "
    "help seed quality size gsd largest slope unit name window overlap bands nodata scale allow_dtype_mismatch "
    "allow_shared_ground allow_huge block_size buffer tolerance max_unknown min_valid image eroded height "
    "chips workers label_as label_band label_nodata regrid_labels label_field label_layer label_crs "
    "buffer_labels label_order print_config fast find options pair map_numbers boundary samples title "
    "rescale_gsd allow_gsd_mismatch blend tta scales batch_size device precision compile max_memory cluster "
    "exclude skip_existing probabilities confidence margin entropy disagreement probability_dtype json "
    "restart open port host layer min_area simplify format at pixels only all decoder classes csv shell "
    "passes regularise".split()
)
"""Options that name no file; some names do in other commands."""


def options() -> dict[str, set[str]]:
    parsers = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    return {name: {action.dest for action in parser._actions} for name, parser in parsers.items()}


def test_every_option_is_known_to_read_to_write_or_to_name_no_file():
    for command, found in options().items():
        known = READS.get(command, set()) | WRITES.get(command, set())
        assert found - known - NEITHER == set(), f"{command}: sort its new options into READS, WRITES or NEITHER"
        assert known - found == set(), f"{command} has no such option any more"


# --- files of every kind, in a folder of their own --------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """a_image.tif, a_label.tif, a_classes.tif, a_confidence.tif, a_dsm.tif, a_dtm.tif, model.ckpt, area.gpkg, ..."""
    folder = tmp_path_factory.mktemp("made")
    classes = np.random.default_rng(0).integers(0, 5, (64, 64)).astype(np.uint8)
    colours = np.moveaxis(np.array(PRESETS["vaihingen"].colours, np.uint8)[classes], -1, 0)
    bands = {
        "image": colours // 2,
        "label": colours,
        "classes": classes[None],
        "confidence": classes[None] * 9,
        "dsm": classes[None].astype(np.float32),
        "dtm": classes[None].astype(np.float32),
    }
    place = rasterio.transform.from_origin(500_000.0, 5_400_000.0, 0.5, 0.5)
    for name, values in bands.items():
        size = {"height": 64, "width": 64, "count": len(values), "dtype": values.dtype}
        nodata = IGNORE if name in ("classes", "confidence") else None
        path = folder / f"a_{name}.tif"
        with rasterio.open(path, "w", driver="GTiff", crs="EPSG:25832", transform=place, nodata=nodata, **size) as file:
            file.write(values)
    write_checkpoint(folder / "model.ckpt", tiny_meta())
    box = np.array([shapely.to_wkb(shapely.box(500_000, 5_399_968, 500_032, 5_400_000))], object)
    kind = {"driver": "GPKG", "geometry_type": "Polygon", "crs": "EPSG:25832"}
    write(str(folder / "area.gpkg"), box, [np.array(["a"], object)], ["name"], layer="area", **kind)
    (folder / "classes.yaml").write_text(json.dumps(PRESETS["vaihingen"].to_dict()))
    (folder / "protocol.yaml").write_text("{id: mine, exclude: [clutter]}")
    (folder / "metrics.csv").write_text("epoch,step,val/mean_iou\n0,1,0.5\n1,2,0.6\n")
    (folder / "pairs.csv").write_text("image,label\na_image.tif,a_label.tif\n")
    (folder / "train.txt").write_text("a_image\n")
    assert main(["evaluate", *measured(folder), "--out", str(folder / "result.json")]) == 0
    return folder


def measured(folder: Path) -> list[str]:
    return [
        *("--prediction", f"{folder}/a_classes.tif", "--label", f"{folder}/a_label.tif"),
        *("--classes", f"{folder}/classes.yaml"),
    ]


@pytest.fixture
def files(made, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "in"
    shutil.copytree(made, folder)
    monkeypatch.chdir(tmp_path)
    return folder


def same(path: Path) -> Path:
    return path


def around(path: Path) -> Path:
    return Path(os.path.relpath(path.parent)) / ".." / path.parent.name / path.name


def symbolic(path: Path) -> Path:
    link = path.with_name(f"symbolic{path.suffix}")
    link.symlink_to(path)
    return link


def hard(path: Path) -> Path:
    link = path.with_name(f"hard{path.suffix}")
    link.hardlink_to(path)
    return link


EVALUATE = ("evaluate", "--scene", "{f}/a_image.tif", "--label", "{f}/a_label.tif")
OF_MAPS = (
    *("evaluate", "--prediction", "{f}/a_classes.tif", "--label", "{f}/a_label.tif", "--scene", "{f}/a_image.tif"),
    *("--classes", "{f}/classes.yaml", "--protocol", "{f}/protocol.yaml", "--confidence", "{f}/a_confidence.tif"),
    *("--area", "{f}/area.gpkg", "--curves", "{f}/metrics.csv"),
)
READ_BY_MAPS = (
    "a_classes.tif a_label.tif a_image.tif classes.yaml protocol.yaml a_confidence.tif area.gpkg metrics.csv".split()
)
OUTPUTS = {
    "--out": ("--report", "{f}/x.html", "--out"),
    "--report": ("--out", "{f}/x.json", "--report"),
    "--card": ("--out", "{f}/x.json", "--report", "{f}/x.html", "--card"),
    "--find-label-errors": ("--out", "{f}/x.json", "--report", "{f}/x.html", "--find-label-errors"),
}
MODEL = (*EVALUATE, "--checkpoint", "{f}/model.ckpt")
CASES: list[tuple[tuple[str, ...], str]] = [
    *(((*OF_MAPS, *rest), name) for rest in OUTPUTS.values() for name in READ_BY_MAPS),
    *(((*MODEL, *rest), name) for rest in OUTPUTS.values() for name in ("model.ckpt", "a_label.tif", "a_image.tif")),
    (("evaluate", "--compare", "{f}/result.json", "--out"), "result.json"),
    (("evaluate", "--compare", "{f}/result.json", "--out", "{f}/x.json", "--report"), "result.json"),
    (("evaluate", "--compare", "{f}/result.json", "--out", "{f}/x.json", "--card"), "result.json"),
    (("evaluate", "--checkpoint", "{f}/model.ckpt", "--scene", "{f}/pairs.csv", "--out"), "pairs.csv"),
    (("export", "--checkpoint", "{f}/model.ckpt", "--out"), "model.ckpt"),
    (
        ("explain", "{f}/a_image.tif", "--checkpoint", "{f}/model.ckpt", "--at", "9,9", "--pixels", "--out"),
        "model.ckpt",
    ),
    (
        ("explain", "{f}/a_image.tif", "--checkpoint", "{f}/model.ckpt", "--at", "9,9", "--pixels", "--out"),
        "a_image.tif",
    ),
    (("ndsm", "{f}/a_dsm.tif", "--terrain", "{f}/a_dtm.tif", "--out"), "a_dsm.tif"),
    (("ndsm", "{f}/a_dsm.tif", "--terrain", "{f}/a_dtm.tif", "--out"), "a_dtm.tif"),
    (("vectorize", "{f}/a_classes.tif", "--confidence", "{f}/a_confidence.tif", "--out"), "a_classes.tif"),
    (("vectorize", "{f}/a_classes.tif", "--confidence", "{f}/a_confidence.tif", "--out"), "a_confidence.tif"),
    (("demo", "--scene"), "a_image.tif"),
    (("summarise", "{f}/a_classes.tif", "--out"), "a_classes.tif"),
    (("summarise", "{f}/a_classes.tif", "--zones", "{f}/area.gpkg", "--out"), "area.gpkg"),
    (("summarise", "{f}/a_classes.tif", "--change", "{f}/a_confidence.tif", "--map"), "a_confidence.tif"),
    (("export", "--checkpoint", "{f}/model.ckpt", "--format", "safetensors", "--out"), "model.ckpt"),
    (("export", "--checkpoint", "{f}/model.ckpt", "--format", "stac", "--out"), "model.ckpt"),
]


@pytest.mark.parametrize("spelt", [same, around, symbolic, hard])
def test_no_command_writes_over_what_it_reads(spelt: Callable[[Path], Path], files, capsys):
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    for argv, name in CASES:
        target = spelt(files / name)
        code = main([*(word.replace("{f}", str(files)) for word in argv), str(target)])
        told = capsys.readouterr().err
        assert code == 2, (argv, name)
        assert len(told.splitlines()) == 1 and told.startswith("rs-biformer"), told
        if target.name.startswith(("symbolic", "hard")):
            target.unlink()
        assert {path.name: path.read_bytes() for path in files.iterdir()} == before, (argv, name, told)


@pytest.mark.parametrize("link", [None, "symbolic", "hard"])
def test_maps_do_not_take_the_place_of_scenes_labels_and_lists(link, files, capsys, monkeypatch):
    """The map of `b` would be called b_classes.tif, which here is another scene, a label, a further raster."""
    taken = files / "b_classes.tif"
    source = files / "a_image.tif"
    if link == "symbolic":
        taken.symlink_to(source)
    elif link == "hard":
        taken.hardlink_to(source)
    else:
        shutil.copy(source, taken)
    shutil.copy(source, files / "b.tif")
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    model = ("--checkpoint", f"{files}/model.ckpt")
    seen = str(source if link else taken)
    for argv in (
        ("predict", f"{files}/b.tif", seen, *model, "--out", str(files)),
        ("predict", f"{files}/b.tif", "--extra", seen, *model, "--bands", "1,2,3", "--out", str(files)),
        (
            "evaluate",
            *model,
            "--scene",
            f"{files}/b.tif",
            "--label",
            seen,
            "--maps",
            str(files),
            "--out",
            f"{files}/x.json",
        ),
    ):
        assert main([*argv]) == 2
        assert "which is read" in capsys.readouterr().err, argv
        assert {path.name: path.read_bytes() for path in files.iterdir()} == before, argv


def test_chips_are_not_tiled_into_the_folder_above_them(files, capsys):
    pattern = (
        "--labels",
        "{dir}/../../labels/train/{stem}.tif",
        "--classes",
        "vaihingen",
        "--split",
        "train",
        "--chips",
    )
    for kind, name in (("images", "image"), ("labels", "label")):
        folder = files / "tiles" / "chips" / kind / "train"
        folder.mkdir(parents=True)
        shutil.copy(files / f"a_{name}.tif", folder / "a_r0_c0.tif")
    argv = ["tile", f"{files}/tiles/chips/images/train/a_r0_c0.tif", *pattern, "--window", "32"]
    assert main([*argv, "--out", str(files / "tiles")]) == 2
    assert "which is emptied" in capsys.readouterr().err
    assert (files / "tiles/chips/images/train/a_r0_c0.tif").exists()


def test_functions_refuse_as_their_commands_do(files):
    model = load_checkpoint(files / "model.ckpt")
    with pytest.raises(ConfigError, match="which is read"):
        export_onnx(model, files / "model.ckpt")
    with pytest.raises(ConfigError, match="which is read"):
        write_ndsm(files / "a_dsm.tif", files / "a_dtm.tif", terrain=files / "a_dtm.tif")
    with pytest.raises(ConfigError, match="which is read"):
        vectorize(files / "a_classes.tif", files / "area.gpkg", confidence=[files / "area.gpkg"])


# --- the rule itself --------------------------------------------------------------------------------------------------


def test_what_belongs_to_a_raster_counts_with_it(tmp_path):
    scene = tmp_path / "a.tif"
    for name in ("a.tif", "a.tif.aux.xml", "a.tif.msk", "a.tfw", "a.qml", "b.shp", "b.dbf"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("a.tif.aux.xml", "a.tif.msk", "a.tfw", "a.qml"):
        with pytest.raises(ConfigError, match="belongs to"):
            refuse_overwriting([scene], [tmp_path / name])
    with pytest.raises(ConfigError, match="belongs to"):
        refuse_overwriting([tmp_path / "b.shp"], [tmp_path / "b.dbf"])
    refuse_overwriting([scene], [tmp_path / "b.dbf", tmp_path / "new.tif"])


def test_what_is_removed_beside_a_map_is_not_read(tmp_path):
    (tmp_path / "m.tif.ovr").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"would replace .*m\.tif\.ovr"):
        refuse_overwriting([tmp_path / "m.tif.ovr"], [tmp_path / "m.tif"])
    (tmp_path / ".m.tif.partial").mkdir()
    (tmp_path / ".m.tif.partial" / "a.tif").write_bytes(b"x")
    with pytest.raises(ConfigError, match="which is emptied"):
        refuse_overwriting([tmp_path / ".m.tif.partial" / "a.tif"], [tmp_path / "m.tif"])


@pytest.mark.parametrize(
    "name",
    ["{f}", "file://{f}", "vrt://{f}?bands=1", "GTIFF_DIR:2:{f}", 'NETCDF:"{f}":x', "NETCDF:{f}:x"]
    + ["HDF5:{f}://x", "/vsizip/{f}/in/a.tif", "/vsizip/{{{f}}}/a.tif", "/vsigzip/{f}", "/vsisubfile/8_99,{f}", "@{f}"],
)
def test_a_file_is_found_behind_what_gdal_calls_it(name, tmp_path):
    path = tmp_path / "a b.tif"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("in/a.tif", "x")
    with pytest.raises(ConfigError, match="which is read"):
        refuse_overwriting([name.format(f=path)], [path])


def test_the_sources_of_a_vrt_are_read(tmp_path):
    for name in ("a.tif", "b.tif"):
        (tmp_path / name).write_bytes(b"II*\0")
    text = (
        "<VRTDataset><VRTRasterBand><SimpleSource><SourceFilename relativeToVRT='1'>{}</SourceFilename></SimpleSource>"
    )
    (tmp_path / "in.vrt").write_text(text.format("a.tif") + "</VRTRasterBand></VRTDataset>")
    (tmp_path / "out.vrt").write_text(text.format("in.vrt") + "</VRTRasterBand></VRTDataset>")
    refuse_overwriting([tmp_path / "out.vrt"], [tmp_path / "b.tif"])
    with pytest.raises(ConfigError, match=r"out\.vrt"):
        refuse_overwriting([tmp_path / "out.vrt"], [tmp_path / "a.tif"])


def test_two_outputs_of_one_name_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="asked for twice"):
        refuse_overwriting([], [tmp_path / "a.tif", tmp_path / "x" / ".." / "a.tif"])
    refuse_overwriting(["https://host/a.tif", "images/*.tif", None], [tmp_path / "a.tif", None])
