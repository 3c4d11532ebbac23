"""What the tutorials tell people to type, one line after the other, on small scenes; only trainings are cut short."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from documentation import ROOT, blocks, command_lines, words
from pyogrio.raw import write
from tiny_checkpoint import tiny_meta, write_checkpoint

from rs_biformer.cli import main
from rs_biformer.synthetic import make_scene

SHORTER = "--trainer.max_epochs 1 --data.samples_per_epoch 4 --data.batch_size 2 --trainer.limit_val_batches 1"
SMALLER = "--model.encoder resnet18 --model.decoder unet --trainer.precision 32-true"
HERE = "--data.workers 0 --trainer.accelerator cpu"
MAIN = "ISPRS_Vaihingen/ISPRS_semantic_labeling_Vaihingen"

pytestmark = pytest.mark.slow


def page(name: str) -> str:
    return (ROOT / f"docs/tutorials/{name}.md").read_text(encoding="utf-8")


def follow(lines: list[str], capsys: pytest.CaptureFixture) -> str:
    """Type the commands here, but for the viewer, which does not end; what they print."""
    for line in lines:
        command, *rest = words(line)[1:]
        if command != "view":
            more = f"{SHORTER} {SMALLER} {HERE}".split() if command == "train" else []
            assert main([command, *rest, *more]) == 0, line
    return capsys.readouterr().out


def scene(name: str, label: str, seed: int, **options) -> None:
    for path in (Path(name), Path(label)):
        path.parent.mkdir(parents=True, exist_ok=True)
    place = (496_000.0 + 1000 * seed, 5_420_000.0)
    make_scene(name, label, **{"height": 384, "width": 400, "gsd": 0.25, "origin": place} | options, seed=seed)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


def test_vaihingen_from_the_official_download_to_a_map(here, capsys):
    for seed, area in enumerate((1, 11, 2)):
        name = f"top_mosaic_09cm_area{area}.tif"
        scene(f"{MAIN}/top/{name}", f"{MAIN}_ground_truth_COMPLETE/{name}", seed, gsd=0.09)
    printed = follow(list(command_lines(page("vaihingen"))), capsys)
    assert "isprs-official" in (here / "metrics.json").read_text(encoding="utf-8")
    assert (here / "report.html").stat().st_size > 0 and (here / "area2.gpkg").stat().st_size > 0
    assert "polygon(s) written to area2.gpkg" in printed


def test_an_orthophoto_and_polygons_become_a_map(here, capsys):
    scene("ortho.tif", "truth.tif", 0, height=1024, width=1536)
    with rasterio.open("ortho.tif") as ortho:
        place, crs = ortho.transform, str(ortho.crs)
    for name, first in (("drawn", 0), ("kept", 1)):
        corners = [(row, col) for row in range(0, 1024, 128) for col in range(128 * first, 1536, 256)]
        squares = [
            shapely.box(*(place * (col + 14, row + 114)), *(place * (col + 114, row + 14))) for row, col in corners
        ]
        kinds = np.array(["roof", "green"] * (len(squares) // 2), object)
        write(f"{name}.gpkg", shapely.to_wkb(squares), [kinds], ["kind"], geometry_type="Polygon", crs=crs)
    text = page("orthophoto")
    Path("drawn.yaml").write_text(blocks(text, "yaml")[0], encoding="utf-8")
    follow(list(command_lines(text)), capsys)
    with rasterio.open("maps/ortho_classes.tif") as mapped:
        assert mapped.shape == (1024, 1536) and set(np.unique(mapped.read(1))) <= {0, 1}
    assert (here / "ortho.gpkg").stat().st_size > 0


def test_image_and_surface_model(here, capsys):
    for seed, name in enumerate("abc"):
        scene(f"{name}.tif", f"{name}_label.tif", seed)
        with rasterio.open(f"{name}.tif") as image:
            profile = {**image.profile, "driver": "GTiff", "count": 1, "dtype": "float32", "nodata": None}
        with rasterio.open(f"{name}_dsm.tif", "w", **profile) as file:
            file.write(np.linspace(200, 210, 384 * 400, dtype=np.float32).reshape(1, 384, 400))
    follow(list(command_lines(page("heights"))), capsys)
    with rasterio.open("maps/c_classes.tif") as mapped:
        assert mapped.shape == (384, 400)


def test_a_cluster_gives_the_bytes_of_one_process_and_qgis_takes_the_exported_model(here, capsys):
    pytest.importorskip("distributed")
    pytest.importorskip("onnxscript")
    scene("scene.tif", "label.tif", 0)
    Path("ortho.tif").write_bytes(Path("scene.tif").read_bytes())
    write_checkpoint(here / "best.ckpt", tiny_meta(gsd=0.25))
    text = page("cluster")
    lines = list(command_lines(text))
    assert lines[2].endswith("tcp://127.0.0.1:8786") and "cmp maps/scene_classes.tif again/scene_classes.tif" in text
    follow(lines[:2], capsys)
    assert Path("maps/scene_classes.tif").read_bytes() == Path("again/scene_classes.tif").read_bytes()
    follow(list(command_lines(page("qgis"))), capsys)
    assert Path("maps/ortho_classes.tif").stat().st_size > 0
