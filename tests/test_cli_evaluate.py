import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely
import yaml
from affine import Affine
from pyogrio.raw import write
from range_server import serving

from rs_biformer.cli import evaluate as command
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.schema import IGNORE, PRESETS, ClassSchema


def run(*argv: object) -> None:
    """The command as the shell's, without the frame that turns errors into exit codes."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(part) for part in argv]))


@pytest.fixture
def files(write_raster):
    """Two scenes whose prediction is wrong in every tenth row, and their images."""
    rng = np.random.default_rng(3)
    made: dict[str, list] = {"image": [], "label": [], "map": []}
    for name in ("a", "b"):
        label = rng.integers(0, 5, (5, 1)).astype(np.uint8).repeat(10, 0).repeat(40, 1)
        prediction = label.copy()
        prediction[::10] = 5
        colours = np.moveaxis(np.array(PRESETS["potsdam"].colours, np.uint8)[label], -1, 0)
        made["label"].append(write_raster(f"{name}_label.tif", colours))
        made["map"].append(write_raster(f"{name}_classes.tif", prediction, nodata=IGNORE))
        made["image"].append(write_raster(f"{name}_image.tif", colours // 2))
    return made


def test_maps_and_labels_become_a_table_json_a_picture_and_a_page(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rs-biformer", "evaluate", "--the", "options given"])
    out, page = tmp_path / "result" / "metrics.json", tmp_path / "result" / "page.html"
    run(
        *("--prediction", *files["map"], "--label", *files["label"], "--scene", *files["image"]),
        *("--classes", "potsdam", "--out", out, "--report", page, "--title", "Two towns"),
    )
    result = json.loads(out.read_text())
    assert result["overall_accuracy"] == 0.9 and result["protocol"] == "all-classes"
    assert [scene["name"] for scene in result["per_scene"]] == ["a", "b"]
    shown = capsys.readouterr().out
    assert "impervious surface" in shown and "overall accuracy 90.00" in shown
    assert shown.splitlines()[-3:] == [str(out), str(out.with_name("metrics_confusion.png")), str(page)]
    assert out.with_name("metrics_confusion.png").read_bytes().startswith(b"\x89PNG")
    text = page.read_text(encoding="utf-8")
    assert "<h1>Two towns</h1>" in text and "rs-biformer evaluate --the &#39;options given&#39;" in text
    assert text.count('class="scene card"') == 2 and 'alt="Image of a"' in text


def test_a_protocol_file_and_a_tolerance_are_obeyed(files, tmp_path):
    protocol = tmp_path / "mine.yaml"
    protocol.write_text(yaml.safe_dump({"id": "mine", "exclude": ["clutter"], "ignore_boundary": 1}))
    out = tmp_path / "metrics.json"
    run(
        *("--prediction", *files["map"], "--label", *files["label"], "--classes", "potsdam", "--out", out),
        *("--protocol", protocol, "--tolerance", 5),
    )
    result = json.loads(out.read_text())
    assert result["protocol"] == "mine" and "clutter" not in result["mean_over"]
    assert result["options"]["tolerance"] == 5
    assert result["eroded_pixels"] > 0 == result["full_labels"]["eroded_pixels"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--prediction", "m.tif"], "--prediction needs --classes"),
        (["--checkpoint", "c.ckpt"], "--checkpoint needs --scene"),
        (["--prediction", "m.tif", "--classes", "potsdam", "--maps", "d"], "--maps has no effect on maps that exist"),
        (["--prediction", "m.tif", "--classes", "potsdam", "--tta", "d4"], "--tta has no effect"),
        (["--prediction", "m.tif", "--classes", "potsdam", "--curves", "c.csv"], "give --report"),
        (["--prediction", "m.tif", "--classes", "postdam"], "did you mean potsdam"),
        (
            ["--prediction", "m.tif", "--classes", "potsdam", "--protocol", "isprs-offical"],
            "did you mean isprs-official",
        ),
        (["--prediction", "m.tif", "n.tif", "--classes", "potsdam"], "2 maps and 1 labels"),
        (["--compare", "a.json", "--classes", "potsdam"], "--label has no effect on --compare"),
        (["--prediction", "m.tif", "--prediction", "n.tif", "--classes", "potsdam"], "several sets of maps need names"),
        (
            ["--prediction", "a=m.tif", "--prediction", "a=n.tif", "--classes", "potsdam"],
            "called a, a; give each a name",
        ),
        (["--prediction", "m.tif", "--classes", "potsdam", "--confidence"], "1 sets of --prediction and 0 of --conf"),
        (["--checkpoint", "c.ckpt", "--scene", "s.tif", "--confidence", "x.tif"], "takes no rasters with --checkpoint"),
        (["--prediction", "m.tif", "--classes", "potsdam", "--find-label-errors", "e.gpkg"], "give --confidence"),
        (["--prediction", "m.tif", "--classes", "potsdam", "--resample", "pixels"], "use blocks or scenes"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(argv, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run(*argv, "--label", "l.tif", "--out", tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()


def test_a_missing_label_is_refused_and_nothing_is_written(files, tmp_path):
    labels = [files["label"][0], tmp_path / "nowhere.tif"]
    with pytest.raises(RasterError, match="nowhere.tif does not exist"):
        run("--prediction", *files["map"], "--label", *labels, "--classes", "potsdam", "--out", tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()


def test_labels_are_needed_but_for_results(files, tmp_path):
    with pytest.raises(ConfigError, match="--label is missing"):
        run("--prediction", *files["map"], "--classes", "potsdam", "--out", tmp_path / "m.json")


@pytest.fixture
def measured(files, tmp_path):
    """Results of the maps, and of the same with more errors, under one protocol or several."""
    import rasterio

    worse = []
    for path in files["map"]:
        with rasterio.open(path) as file:
            array, profile = file.read(), file.profile
        array[:, 5::10] = 5
        worse.append(path.with_name(f"worse_{path.name}"))
        with rasterio.open(worse[-1], "w", **profile) as file:
            file.write(array)

    def measure(name, *protocols, worse=worse):
        maps = {"good": files["map"], "worse": worse}[name]
        out = tmp_path / f"{name}_{'_'.join(protocols)}.json"
        chosen = ["--protocol", *protocols] if protocols else []
        run("--prediction", *maps, "--label", *files["label"], "--classes", "potsdam", "--out", out, *chosen)
        return out

    return measure, worse


def test_several_protocols_at_once_are_one_file_and_the_page_sets_them_side_by_side(files, tmp_path, capsys):
    out, page = tmp_path / "all.json", tmp_path / "all.html"
    run(
        *("--prediction", *files["map"], "--label", *files["label"], "--classes", "potsdam", "--out", out),
        *("--protocol", "isprs-official", "geoseg-legacy", "--boundary", 1, 3, "--report", page),
    )
    content = json.loads(out.read_text())
    assert content["protocols"] == ["isprs-official", "geoseg-legacy"] and content["comparisons"] == []
    honest, padded = content["results"]
    p = padded["padded_pixels"] / padded["evaluated_pixels"]
    assert padded["overall_accuracy"] == pytest.approx(honest["overall_accuracy"] * (1 - p) + p, abs=1e-12)
    assert honest["boundary"]["distances"] == [1, 3]
    text = page.read_text()
    assert "geoseg-legacy: eroded labels, 5 classes" in text and "isprs-official: full labels, 6 classes" in text
    assert "Outlines" in text and "protocol geoseg-legacy" in capsys.readouterr().out
    assert not out.with_name("all_confusion.png").exists()


def test_several_sets_of_maps_are_compared(files, measured, tmp_path, capsys):
    out, page = tmp_path / "both.json", tmp_path / "both.html"
    run(
        *("--prediction", f"good={files['map'][0]}", files["map"][1]),
        *("--prediction", f"worse={measured[1][0]}", measured[1][1]),
        *("--label", *files["label"], "--scene", *files["image"], "--classes", "potsdam", "--out", out),
        *("--report", page),
    )
    content = json.loads(out.read_text())
    assert [result["name"] for result in content["results"]] == ["good", "worse"]
    found = {row["figure"]: row for row in content["comparisons"]}
    assert found["overall_accuracy"]["difference"] == pytest.approx(0.1)
    assert found["overall_accuracy"]["larger_than_chance"] is False  # two blocks can never tell
    shown = capsys.readouterr().out
    assert "good - worse" in shown and "do not differ by more than chance" in shown
    text = page.read_text()
    assert 'alt="Error of worse of a"' in text and "Classes of good" in text


def test_results_are_compared_without_their_rasters_and_those_of_two_protocols_are_not(measured, tmp_path, capsys):
    measure, _ = measured
    good, worse = measure("good"), measure("worse")
    out = tmp_path / "both.json"
    run("--compare", good, worse, "--out", out, "--report", tmp_path / "both.html", "--samples", 500)
    content = json.loads(out.read_text())
    assert [result["name"] for result in content["results"]] == ["good_", "worse_"]
    assert content["results"][0]["intervals"]["samples"] == 500
    other = measure("worse", "mmseg-6class")
    with pytest.raises(ConfigError, match="good_ was measured under protocol 'all-classes' and worse_mmseg-6class un"):
        run("--compare", good, other, "--out", out)
    with pytest.raises(ConfigError, match="'mmseg-6class' and --protocol asks for all-classes"):
        run("--compare", good, worse, other, "--protocol", "all-classes", "--out", out)
    with pytest.raises(
        ConfigError, match="--protocol isprs-official is in none of the results, which hold all-classes"
    ):
        run("--compare", good, worse, "--protocol", "isprs-official", "--out", out)


def test_a_card_and_suspicious_labels_are_written_on_request(files, write_raster, tmp_path, capsys):
    sure = [write_raster(f"{name}_sure.tif", np.full((50, 40), 0.9, np.float32)) for name in "ab"]
    card, places = tmp_path / "CARD.md", tmp_path / "labels.gpkg"
    run(
        *("--prediction", *files["map"], "--confidence", *sure, "--label", *files["label"], "--classes", "potsdam"),
        *("--out", tmp_path / "m.json", "--card", card, "--find-label-errors", places, "--title", "Two towns"),
    )
    assert card.read_text().startswith("# Two towns") and places.is_file()
    shown = capsys.readouterr().out
    assert "0 places where the labels may be wrong" in shown and shown.splitlines()[-2:] == [str(card), str(places)]
    assert "expected calibration error 0.00" in shown  # 90 % are right, and each pixel says so


@pytest.fixture
def checkpoint(tmp_path):
    """A small network that was never trained, saved as training saves one."""
    import torch

    from rs_biformer.checkpoint import META_KEY, NETWORK_PREFIX, CheckpointMeta

    torch.manual_seed(0)
    meta = CheckpointMeta(
        encoder="resnet18",
        decoder="unet",
        model_arguments={},
        schema=PRESETS["potsdam"],
        bands=("red", "green", "blue"),
        dtype="uint8",
        mean=(60.0,) * 3,
        std=(40.0,) * 3,
        window=32,
        gsd=0.5,
        version="0",
    )
    state = {f"{NETWORK_PREFIX}{name}": value for name, value in meta.create_network().state_dict().items()}
    path = tmp_path / "best.ckpt"
    torch.save({"state_dict": state, META_KEY: meta.to_dict()}, path)
    return path


@pytest.mark.parametrize("keep", [True, False])
def test_a_checkpoint_maps_the_scenes_first_and_the_maps_are_kept_where_asked(
    files, checkpoint, tmp_path, capsys, keep
):
    out, maps = tmp_path / "metrics.json", tmp_path / "maps"
    kept = ["--maps", maps] if keep else []
    run(
        *("--checkpoint", checkpoint, "--scene", *files["image"], "--label", *files["label"], "--out", out),
        *("--device", "cpu", "--overlap", 0, "--window", 32, *kept),
    )
    result = json.loads(out.read_text())
    assert result["evaluated_pixels"] == 2 * 50 * 40 and result["unpredicted_pixels"] == 0
    assert result["schema"]["name"] == "potsdam"
    assert maps.is_dir() == keep
    named = [Path(scene["prediction"]) for scene in result["per_scene"]]
    assert [path.name for path in named] == ["a_image_classes.tif", "b_image_classes.tif"]
    assert {path.parent for path in named} == {maps if keep else Path()}  # a folder that is gone is no place
    if keep:
        assert sorted(path.name for path in maps.glob("*.tif")) == ["a_image_classes.tif", "b_image_classes.tif"]
        again = tmp_path / "again.json"
        run(
            *("--prediction", *sorted(maps.glob("*.tif")), "--label", *files["label"]),
            *("--classes", "potsdam", "--out", again),
        )
        assert json.loads(again.read_text())["confusion_matrix"] == result["confusion_matrix"]
    assert "_image_classes.tif" not in capsys.readouterr().out


def test_a_checkpoint_is_stitched_as_the_protocol_wants_and_its_size_and_speed_are_told(files, checkpoint, tmp_path):
    protocol = tmp_path / "mine.yaml"
    protocol.write_text(yaml.safe_dump({"id": "mine", "window": 32, "overlap": 0.0}))
    out = tmp_path / "metrics.json"
    options = ["--checkpoint", checkpoint, "--scene", *files["image"], "--label", *files["label"], "--out", out]
    options += ["--device", "cpu", "--confidence", "--protocol", protocol]
    with pytest.raises(ConfigError, match="--overlap is 0.5, but protocol 'mine' asks for 0.0; leave --overlap out"):
        run(*options, "--overlap", 0.5)
    run(*options)
    result = json.loads(out.read_text())
    assert result["per_scene"][0]["made_by"]["PREDICTION_WINDOW"] == "32"
    assert result["per_scene"][0]["made_by"]["PREDICTION_OVERLAP"] == "0"
    assert result["model"]["network"] == "resnet18 + unet" and "Mpx/s" in result["model"]["speed here"]
    assert result["model"]["parameters"].endswith(" M") and result["calibration"]["expected_error"] > 0
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({"id": "other", "window": 16}))
    with pytest.raises(ConfigError, match="mine and other stitch maps in different ways"):
        run(*options, other)


def test_what_cannot_be_evaluated_is_refused_before_anything_is_mapped(files, checkpoint, tmp_path):
    options = ["--checkpoint", checkpoint, "--scene", *files["image"], "--out", tmp_path / "m.json", "--label"]
    two = ClassSchema("two", ("roof", "ground"), ((1, 2, 3), (4, 5, 6)))
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(two.to_dict()))
    with pytest.raises(ConfigError, match="knows the classes impervious surface, .* has roof, ground"):
        run(*options, *files["label"], "--classes", path)
    with pytest.raises(ConfigError, match="2 scenes and 1 labels"):
        run(*options, files["label"][0])
    with pytest.raises(ConfigError, match="no protocol 'strict'"):
        run(*options, *files["label"], "--protocol", "strict", "--maps", tmp_path / "maps")
    with pytest.raises(RasterError, match="nowhere.tif does not exist"):
        run(*options, files["label"][0], tmp_path / "nowhere.tif", "--maps", tmp_path / "maps")
    assert not (tmp_path / "maps").exists()  # all were refused before the first scene was mapped


def test_each_checkpoint_is_loaded_once_and_the_scenes_are_listed_once(files, checkpoint, tmp_path, monkeypatch):
    import rs_biformer.checkpoint as checkpoint_files
    from rs_biformer.jobs import mapping, truths

    counted = {}

    def count(room, name):
        real = getattr(room, name)

        def counting(*args, **options):
            counted[name] = counted.get(name, 0) + 1
            return real(*args, **options)

        monkeypatch.setattr(room, name, counting)

    count(checkpoint_files, "load_checkpoint")
    count(truths, "pattern_scenes")
    count(mapping, "pattern_scenes")
    run(
        *("--checkpoint", f"one={checkpoint}", f"two={checkpoint}", "--scene", *files["image"], "--label"),
        *(*files["label"], "--out", tmp_path / "m.json", "--overlap", 0, "--maps", tmp_path / "maps"),
    )
    assert counted == {"load_checkpoint": 2, "pattern_scenes": 1}
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("maps/*/*.tif")) == [
        f"maps/{model}/{name}_image_classes.tif" for model in ("one", "two") for name in "ab"
    ]


def accuracy(out):
    return json.loads(out.read_text())["overall_accuracy"]


def test_labels_are_found_by_a_pattern_from_the_map_or_from_the_scene(files, tmp_path):
    out, folder = tmp_path / "m.json", tmp_path
    always = ["--classes", "potsdam", "--out", out]
    run("--prediction", *files["map"], "--label", "{dir}/{stem:*_classes}_label.tif", *always)
    assert accuracy(out) == 0.9
    maps, labels = folder / "{name}_classes.tif", folder / "{name}_label.tif"
    run("--prediction", maps, "--scene", *reversed(files["image"]), "--label", labels, *always)
    assert accuracy(out) == 0.9
    assert [scene["name"] for scene in json.loads(out.read_text())["per_scene"]] == ["b", "a"]
    with pytest.raises(ConfigError, match="no label"):
        run("--prediction", *files["map"], "--label", folder / "{stem}_x.tif", *always)
    with pytest.raises(ConfigError, match="leads from a scene to its prediction; give the images as --scene"):
        run("--prediction", maps, "--label", *files["label"], *always)


@pytest.mark.parametrize("with_images", [False, True])
def test_one_layer_of_polygons_is_the_label_of_all_maps(write_raster, tmp_path, capsys, with_images):
    """Boxes of class `building` on ground of its own under each map; the second map has a row of pixels too many."""
    made = [], []
    for number, west in enumerate((500_000, 500_100)):
        index = np.zeros((40, 40), np.uint8)
        index[10 : 20 + number, 5:25] = 1
        place = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, west, 0, -0.5, 5_400_000)}
        made[0].append(write_raster(f"m_{number}_classes.tif", index, nodata=IGNORE, **place))
        made[1].append(write_raster(f"m_{number}.tif", np.ones((3, 40, 40), np.uint8), **place))
    boxes = [shapely.box(west + 2.5, 5_399_990, west + 12.5, 5_399_995) for west in (500_000, 500_100)]
    city, classes, out = tmp_path / "city.gpkg", tmp_path / "c.yaml", tmp_path / "m.json"
    names = np.array(["building"] * 2, object)
    write(city, shapely.to_wkb(np.array(boxes)), [names], ["kind"], geometry_type="Polygon", crs="EPSG:32633")
    classes.write_text(
        "name: t\noutside: ground\nclasses:\n"
        "- {name: ground, colour: [0, 0, 0]}\n- {name: building, colour: [9, 9, 9]}\n"
    )
    images = ["--scene", *made[1]] if with_images else []
    run("--prediction", *made[0], *images, "--label", city, "--classes", classes, "--out", out)
    found = json.loads(out.read_text())
    assert found["confusion_matrix"] == [[2 * 1600 - 2 * 200 - 20, 20], [0, 400]]
    assert [scene["name"] for scene in found["per_scene"]] == ["m_0_classes", "m_1_classes"]
    assert "paired in the order" not in capsys.readouterr().err
    with pytest.raises(ConfigError, match="by their names it belongs to"):
        sets = [f"A={made[0][0]}", made[0][1]], [f"B={made[0][1]}", made[0][0]]
        run("--prediction", *sets[0], "--prediction", *sets[1], "--label", city, "--classes", classes, "--out", out)


def test_a_list_of_pairs_says_what_belongs_together(files, checkpoint, tmp_path):
    out, pairs = tmp_path / "m.json", tmp_path / "pairs.csv"
    pairs.write_text("image,label,name\na_image.tif,b_label.tif,north\nb_image.tif,a_label.tif,south\n")
    run(
        "--prediction",
        *reversed(files["map"]),
        "--scene",
        pairs,
        "--classes",
        "potsdam",
        "--out",
        out,
        "--pair",
        "order",
    )
    assert accuracy(out) == 0.9
    assert [scene["name"] for scene in json.loads(out.read_text())["per_scene"]] == ["north", "south"]
    run("--checkpoint", checkpoint, "--scene", pairs, "--out", out, "--maps", tmp_path / "maps", "--overlap", 0)
    assert sorted(path.name for path in tmp_path.glob("maps/*.tif")) == ["north_classes.tif", "south_classes.tif"]
    with pytest.raises(ConfigError, match="give it alone, without --label"):
        run("--checkpoint", checkpoint, "--scene", pairs, "--label", *files["label"], "--out", out)
    pairs.write_text("image,label\na_image.tif,\n")
    with pytest.raises(ConfigError, match=r"names no label for .*a_image\.tif"):
        run("--checkpoint", checkpoint, "--scene", pairs, "--out", out)


@pytest.mark.parametrize("kind", ["map", "image"])
def test_files_that_a_shell_has_permuted_are_refused(write_raster, tmp_path, kind, capsys):
    rng, out = np.random.default_rng(5), tmp_path / "m.json"
    made = {"map": [], "image": [], "label": []}
    for number in range(8, 12):
        label = rng.integers(0, 5, (8, 8)).astype(np.uint8)
        made["map"].append(write_raster(f"map_{number}.tif", label, nodata=IGNORE))
        made["image"].append(write_raster(f"image_{number}.tif", label + 1))
        made["label"].append(write_raster(f"truth_{number:03d}.tif", label))
    made["label"].sort()
    made["map"].sort(key=str if kind == "map" else lambda path: int(path.stem[4:]))
    scenes = ["--scene", *sorted(made["image"])] if kind == "image" else []
    argv = ["--prediction", *made["map"], "--label", *made["label"], *scenes, "--classes", "potsdam", "--out", out]
    beside = f"{kind}_10.tif stands beside label .*truth_008.tif, and by their names it belongs to .*truth_010.tif"
    with pytest.raises(ConfigError, match=beside):
        run(*argv)
    assert not out.exists()
    run(*argv, "--pair", "names")
    assert accuracy(out) == 1
    assert "paired by name" in capsys.readouterr().err
    run(*argv, "--pair", "order")
    assert (accuracy(out) < 0.5) == (kind == "map")


def test_scenes_of_one_name_in_several_folders_are_told_apart(files, checkpoint, write_raster, tmp_path):
    for name in "ab":
        for kind in ("image", "label"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / f"{name}_{kind}.tif").rename(tmp_path / name / f"{kind}.tif")
    argv = ["--checkpoint", checkpoint, "--scene", tmp_path / "a/image.tif", tmp_path / "b/image.tif", "--overlap", 0]
    argv += ["--label", "{dir}/label.tif", "--out", tmp_path / "m.json", "--maps", tmp_path / "maps"]
    run(*argv, "--name", "{parent}")
    assert [scene["name"] for scene in json.loads((tmp_path / "m.json").read_text())["per_scene"]] == ["a", "b"]
    assert sorted(path.name for path in tmp_path.glob("maps/*.tif")) == ["a_classes.tif", "b_classes.tif"]


def test_scenes_of_another_pixel_size_are_mapped_on_the_model_s_and_compared_on_the_label_s(
    checkpoint, write_raster, tmp_path, capsys
):
    from rasterio.transform import from_origin

    place = {"transform": from_origin(500_000, 5_400_000, 1, 1)}  # the model was trained on 0.5 m
    scene = write_raster("s.tif", np.full((3, 40, 48), 60, np.uint8), photometric="rgb", **place)
    label = write_raster("s_label.tif", np.zeros((40, 48), np.uint8), **place)
    out, maps = tmp_path / "m.json", tmp_path / "maps"
    argv = ["--checkpoint", checkpoint, "--scene", scene, "--label", label, "--out", out, "--overlap", 0]
    with pytest.raises(RasterError, match="--rescale-gsd"):
        run(*argv)
    page = tmp_path / "p.html"
    run(*argv, "--rescale-gsd", "--maps", maps, "--confidence", "--report", page)
    first = json.loads(out.read_text())
    assert first["evaluated_pixels"] == 40 * 48 and first["unpredicted_pixels"] == 0
    assert "pixels of another size than their labels" in capsys.readouterr().err
    run(
        "--prediction", maps / "s_classes.tif", "--label", label, "--classes", "potsdam", "--out", out, "--scene", scene
    )
    assert json.loads(out.read_text())["confusion_matrix"] == first["confusion_matrix"]
    run(*argv, "--allow-gsd-mismatch")
    assert json.loads(out.read_text())["evaluated_pixels"] == 40 * 48


@pytest.mark.parametrize("prefix", ["", "/vsicurl/"])
def test_page_card_and_figures_hold_no_key_of_a_url(files, tmp_path, monkeypatch, capsys, prefix):
    with serving(tmp_path) as url:
        signed = [
            f"{prefix}{url}/{kind}?X-Amz-Signature=KEY&sig=KEY&apikey=KEY"
            for kind in ("a_classes.tif", "a_label.tif", "a_image.tif")
        ]
        mapped, label, image = (name.replace("http://", "http://me:KEY@") for name in signed)
        out, page, card = tmp_path / "m.json", tmp_path / "p.html", tmp_path / "c.md"
        argv = ["--prediction", f"new={mapped}", "--label", label, "--scene", image, "--classes", "potsdam"]
        argv += ["--out", str(out), "--report", str(page), "--card", str(card)]
        monkeypatch.setattr(sys, "argv", ["rs-biformer", "evaluate", *argv])
        run(*argv)
    for path in (out, page, card):
        text = path.read_text(encoding="utf-8")
        assert "a_label.tif" in text and "KEY" not in text, path
    shown = capsys.readouterr()
    assert "KEY" not in shown.out + shown.err


def test_only_what_lies_in_the_area_counts(files, checkpoint, tmp_path):
    # rows 5 to 25 and columns 0 to 10 of 0.5 m pixels: of every ten rows the first is wrong
    ring = [[500_000, 5_399_987.5], [500_005, 5_399_987.5], [500_005, 5_399_997.5], [500_000, 5_399_997.5]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::25832"}}
    area, out = tmp_path / "area.geojson", tmp_path / "m.json"
    area.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]}))
    always = ["--label", *files["label"], "--out", out, "--area", area]
    run("--prediction", *files["map"], "--classes", "potsdam", *always)
    result = json.loads(out.read_text())
    assert (result["evaluated_pixels"], result["ignored_pixels"]) == (2 * 20 * 10, 2 * (50 * 40 - 200))
    assert result["overall_accuracy"] == 0.9
    run("--checkpoint", checkpoint, "--scene", *files["image"], *always, "--overlap", 0, "--maps", tmp_path / "maps")
    result = json.loads(out.read_text())
    assert (result["evaluated_pixels"], result["unpredicted_pixels"]) == (400, 0)
