"""The real commands, as a shell runs them: the main job from files to a map, and one line for every bad input."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from tiny_checkpoint import tiny_meta, write_checkpoint

from rs_biformer.cli import COMMANDS, build_parser, main
from rs_biformer.raster.labels import encode_colours
from rs_biformer.schema import PRESETS
from rs_biformer.synthetic import make_scene

SCHEMA = PRESETS["vaihingen"]


def refused(capsys, *argv: object) -> str:
    """Run a command that must be refused; its one line on standard error."""
    capsys.readouterr()
    assert main([str(part) for part in argv]) == 2
    error = capsys.readouterr().err.strip()
    line = error.splitlines()[-1]  # what stands before it is progress
    assert line.startswith(f"rs-biformer {argv[0]}: ")
    assert "Traceback" not in error
    return line


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args([name, "--help"])
    assert stop.value.code == 0
    assert f"rs-biformer {name}" in capsys.readouterr().out.split("example:")[1]


@pytest.mark.parametrize(
    "argv", [["tyle"], ["tile"], ["models", "--no-such-option"], ["predict", "a.tif", "--checkpoint", "b.ckpt"], []]
)
def test_a_command_line_that_cannot_be_meant_ends_with_code_2_and_one_line(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--help" in error


def test_the_checkout_the_package_and_the_command_are_one_program():
    root = Path(__file__).parents[1]
    for start in ([str(root / "cli.py")], ["-m", "rs_biformer"]):
        done = subprocess.run(
            [sys.executable, *start, "--version"], capture_output=True, text=True, cwd=root, check=True
        )
        assert done.stdout.startswith("rs-biformer ")


@pytest.fixture
def town(tmp_path: Path) -> Path:
    """A folder of two labelled scenes of 160 x 192 pixels."""
    for seed, name in enumerate(("north", "south")):
        make_scene(
            tmp_path / f"{name}_image.tif",
            tmp_path / f"{name}_label.tif",
            height=160,
            width=192,
            seed=seed,
            gsd=0.4,
        )
    return tmp_path


def tile(town: Path, out: Path, *more: str) -> list[str]:
    labels = "{dir}/{name}_label.tif"
    scenes = [str(path) for path in sorted(town.glob("*_image.tif"))]
    rule = ["--split", "train=north*", "val=south*"]
    window = ["--window", "64", "--workers", "1"]
    return ["tile", *scenes, "--labels", labels, "--classes", "vaihingen", "--out", str(out), *window, *rule, *more]


def test_the_main_job_from_scenes_to_a_measured_map(town, tmp_path, capsys):
    tiles, run, maps = tmp_path / "out/tiles", tmp_path / "out/run", tmp_path / "out/maps"
    assert main(tile(town, tiles, "--chips")) == 0
    summary = json.loads((tiles / "summary.json").read_text())
    assert summary["splits"]["train"]["windows"] == 4 * 5
    config = f"""
model: {{encoder: resnet18_biformer}}
data: {{index: {tiles / "chips"}, batch_size: 4, workers: 0, samples_per_epoch: 8}}
trainer: {{max_epochs: 1, accelerator: cpu, enable_progress_bar: false}}
images_every: 1
out: {run}
"""
    (tmp_path / "train.yaml").write_text(config)
    assert main(["train", "--config", str(tmp_path / "train.yaml"), "--optimizer.learning_rate", "0.001"]) == 0
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "metrics.csv", "best.ckpt", "last.ckpt"}
    scene, label = town / "south_image.tif", town / "south_label.tif"
    assert main(["predict", str(scene), "--checkpoint", str(run / "best.ckpt"), "--out", str(maps)]) == 0
    with rasterio.open(maps / "south_image_classes.tif") as made, rasterio.open(scene) as given:
        assert (made.crs, made.transform, made.shape) == (given.crs, given.transform, given.shape)
        assert made.read(1).max() < len(SCHEMA)
        assert json.loads(made.tags()["CLASS_NAMES"]) == list(SCHEMA.classes)
    measured, direct = tmp_path / "map.json", tmp_path / "direct.json"
    given = ["--prediction", str(maps / "south_image_classes.tif"), "--label", str(label)]
    page = ["--report", str(tmp_path / "report.html")]
    assert main(["evaluate", *given, "--classes", "vaihingen", "--out", str(measured), *page]) == 0
    model = ["--checkpoint", str(run / "best.ckpt"), "--scene", str(scene), "--label", str(label)]
    assert main(["evaluate", *model, "--out", str(direct)]) == 0
    figures, again = json.loads(measured.read_text()), json.loads(direct.read_text())
    assert figures["confusion_matrix"] == again["confusion_matrix"]
    assert np.sum(figures["confusion_matrix"]) == 160 * 192
    assert set(figures["per_class"]) == set(SCHEMA.classes)
    assert figures["protocol"] == "all-classes"
    assert (tmp_path / "map_confusion.png").stat().st_size > 0
    polygons = tmp_path / "south.geojson"
    assert main(["vectorize", str(maps / "south_image_classes.tif"), "--out", str(polygons)]) == 0
    assert json.loads(polygons.read_text())["features"]
    capsys.readouterr()
    assert main(["info", str(run / "best.ckpt"), "--json"]) == 0
    assert "mean_iou" in capsys.readouterr().out


@pytest.mark.parametrize("light", [True, False])
def test_a_package_that_is_not_installed_is_one_line_that_says_what_to_install(light, tmp_path):
    """As in an environment of rs-biformer-predict, or one that lost a package."""
    code = f"""
import sys
from rs_biformer import distribution
from rs_biformer.cli import main
distribution.NAME = {"rs_biformer_predict" if light else "rs_biformer"!r}
sys.modules.update(dict.fromkeys(["torch", "pytorch_lightning", "albumentations"]))  # importing them raises
for argv in (["demo"], ["models"], ["train", "--config", "configs/none.yaml"]):
    print(main(argv), flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.split() == ["2", "2", "2"]
    lines = done.stderr.splitlines()
    assert len(lines) == 3 and not (tmp_path / "demo").exists()
    for command, line in zip(("demo", "models", "train"), lines, strict=True):
        assert line.startswith(f"rs-biformer {command}: ") and line.endswith(": pip install rs_biformer")
        assert ("rs-biformer-predict leaves out" in line) == light


def test_a_missing_label_is_refused_by_name(town, capsys):
    (town / "south_label.tif").unlink()
    line = refused(capsys, *tile(town, town / "tiles"))
    assert "south_label.tif does not exist" in line
    assert not (town / "tiles").exists()


def test_a_label_of_another_size_is_refused(town, write_raster, capsys):
    write_raster("south_label.tif", np.zeros((3, 150, 192), np.uint8))
    line = refused(capsys, *tile(town, town / "tiles"))
    assert "south_label.tif" in line and "150" in line and "160" in line
    assert not list((town / "tiles").glob("*.parquet"))


def test_unknown_colours_are_refused_with_their_counts(town, write_raster, capsys):
    colours = np.broadcast_to(np.array([1, 2, 3], np.uint8)[:, None, None], (3, 160, 192))
    with rasterio.open(town / "south_label.tif") as label:
        place = {"crs": label.crs.to_string(), "transform": label.transform}
    write_raster("south_label.tif", colours, **place)
    line = refused(capsys, *tile(town, town / "tiles"))
    assert "south_label.tif" in line and "100.0%" in line and "building, 252 away" in line
    assert not list((town / "tiles").glob("*.parquet"))


def test_an_empty_directory_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    options = ["--labels", "{stem}.png", "--classes", "vaihingen", "--out", tmp_path / "tiles", "--split", "train"]
    assert "holds no scenes" in refused(capsys, "tile", tmp_path / "empty", *options)


def test_a_file_that_is_no_raster_is_refused_by_every_command_that_reads_one(town, tmp_path, capsys):
    text = tmp_path / "notes.tif"
    text.write_text("no raster")
    labels = ["--labels", town / "north_label.tif", "--classes", "vaihingen", "--split", "train"]
    checkpoint = write_checkpoint(tmp_path / "best.ckpt", tiny_meta())
    for argv in (
        ["tile", text, *labels, "--out", tmp_path / "tiles", "--workers", 1],
        ["predict", text, "--checkpoint", checkpoint, "--out", tmp_path / "maps"],
        ["vectorize", text, "--out", tmp_path / "map.gpkg"],
        ["info", text],
        ["evaluate", "--prediction", text, "--label", town / "north_label.tif", "--classes", "vaihingen"]
        + ["--out", tmp_path / "metrics.json"],
    ):
        assert "notes.tif" in refused(capsys, *argv)
    assert not (tmp_path / "metrics.json").exists() and not list((tmp_path / "maps").glob("*"))


def test_a_band_count_that_the_checkpoint_does_not_know_is_refused(write_raster, tmp_path, capsys):
    checkpoint = write_checkpoint(tmp_path / "best.ckpt", tiny_meta())
    scene = write_raster("five.tif", np.ones((5, 40, 40), np.uint8))
    line = refused(capsys, "predict", scene, "--checkpoint", checkpoint, "--out", tmp_path / "maps")
    assert "5 bands" in line and "3 bands" in line
    assert not (tmp_path / "maps").exists()


def test_a_misspelt_config_key_is_refused_with_the_nearest_one(tmp_path, capsys):
    (tmp_path / "train.yaml").write_text("optimizer: {learning_rat: 0.1}")
    line = refused(capsys, "train", "--config", tmp_path / "train.yaml")
    assert "did you mean optimizer.learning_rate" in line
    assert "trainer.max_epochs" in refused(capsys, "train", "--trainer.max_epoch", "3")


def test_a_pair_that_lies_elsewhere_is_refused(town, write_raster, tmp_path, capsys):
    index = np.zeros((160, 192), np.uint8)
    elsewhere = write_raster("map.tif", encode_colours(index, SCHEMA)[:1])
    out = tmp_path / "metrics.json"
    pair = ["--prediction", elsewhere, "--label", town / "north_label.tif", "--classes", "vaihingen", "--out", out]
    line = refused(capsys, "evaluate", *pair)
    assert "map.tif" in line and "north_label.tif" in line
    assert not out.exists()


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from rs_biformer.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_ends_with_one_line_and_nothing_half_written(town, tmp_path):
    """A bound on the size of files stands in for the end of the disk: writing beyond it fails in the same way."""
    argv = tile(town, tmp_path / "tiles", "--chips")
    argv[argv.index("64")] = "160"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("rs-biformer tile: ")
    for path in (tmp_path / "tiles").rglob("*.tif"):
        with rasterio.open(path) as chip:
            chip.read()


def test_a_reader_that_has_had_enough_is_no_error():
    command = f"{sys.executable} -m rs_biformer info | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_a_connection_that_breaks_is_told(monkeypatch, capsys):
    def broken(_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("rs_biformer.cli.info.run", broken)
    assert main(["info"]) == 2
    assert capsys.readouterr().err == "rs-biformer info: Broken pipe\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["predict", "a.tif", "--out", "maps", "--checkpoint"],
        ["info"],
        ["train", "--config"],
        ["train", "--data.index"],
        ["tile", "a.tif", "--labels", "{stem}.png", "--out", "tiles", "--classes"],
        ["evaluate", "--out", "m.json", "--compare"],
        ["vectorize", "a.tif", "--out", "a.gpkg", "--confidence"],
    ],
)
def test_a_url_where_only_a_file_will_do_is_refused_without_its_key(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*argv, "http://me:KEY@127.0.0.1:9/model.ckpt?x=KEY"]) == 2
    shown = capsys.readouterr()
    assert "KEY" not in shown.out + shown.err and len(shown.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
