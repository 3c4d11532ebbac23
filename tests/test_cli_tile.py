import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from PIL import Image
from range_server import serving
from rasterio.transform import from_origin

import rs_biformer
from rs_biformer.cli import main
from rs_biformer.data.index import TileIndex
from rs_biformer.schema import PRESETS, load_schema

SPLITS = ("train", "val", "test")
COLOURS = np.array([*PRESETS["vaihingen"].colours, (0, 0, 0)], np.uint8)


@pytest.fixture
def save(tmp_path):
    """Write an array below tmp_path; a label (h, w) of class indices in the ISPRS colours, 6 for black."""

    def write(name, array):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if array.ndim == 2:
            array = np.moveaxis(COLOURS[array], -1, 0)
        if path.suffix == ".png":
            Image.fromarray(np.moveaxis(array, 0, -1).squeeze()).save(path)
            return path
        count, height, width = array.shape
        place = {"crs": "EPSG:25832", "transform": from_origin(5e5, 5.4e6, 0.09, 0.09)}
        with rasterio.open(
            path, "w", driver="GTiff", height=height, width=width, count=count, dtype=array.dtype, **place
        ) as sink:
            sink.write(array)
        return path

    return write


@pytest.fixture
def pairs(save):
    """Three scenes a, b, c with labels, in folders train, val and test."""
    rng = np.random.default_rng(0)
    for name, folder in (("a", "train"), ("b", "val"), ("c", "test")):
        save(f"data/{folder}/{name}_image.tif", rng.integers(0, 255, (3, 40, 48), dtype=np.uint8))
        save(f"data/{folder}/{name}_label.tif", rng.integers(0, 6, (40, 48)))


@pytest.fixture
def tile(tmp_path, monkeypatch, capsys):
    """Run the command in tmp_path with one worker: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main(["tile", *arguments, "--workers", "1"])
        return code, *capsys.readouterr()

    return run


OWN = ("--labels", "{dir}/{name}_label.tif", "--classes", "vaihingen", "--out", "out", "--window", "16")


def test_a_folder_per_split_becomes_an_index_and_a_summary(pairs, tile, tmp_path):
    code, shown, _ = tile("data/train", "data/val", "data/test", *OWN, "--split", "by-folder")
    assert code == 0
    index = TileIndex.read(tmp_path / "out")
    assert {index.scene(n).name: str(index.table.split[n]) for n in range(len(index))} == {
        "a_image": "train",
        "b_image": "val",
        "c_image": "test",
    }
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["windows"] == len(index) == 3 * 4 * 5
    for word in (
        "a_image",
        "40 x 48",
        "train",
        "low vegetation",
        "mean",
        "out/tiles.parquet",
        "next: rs-biformer train",
    ):
        assert word in shown


def test_chips_are_written_when_asked_for(pairs, tile, tmp_path):
    code, shown, _ = tile("data/*/*_image.tif", *OWN, "--split", "train=a*", "val=b*", "test=c*", "--chips")
    assert code == 0
    assert len(TileIndex.read(tmp_path / "out" / "chips")) == len(list(tmp_path.glob("out/chips/images/*/*.tif"))) == 60
    assert "--data.index out/chips" in shown


def test_blocks_split_every_scene_in_space(pairs, tile, tmp_path):
    arguments = ("--split", "blocks:0.5,0.25,0.25", "--block-size", "16", "--buffer", "0", "--overlap", "0")
    code, _, _ = tile("data/*/*_image.tif", *OWN, *arguments)
    assert code == 0
    assert set(TileIndex.read(tmp_path / "out").table.split.tolist()) == {"train", "val", "test"}


def test_an_official_folder_needs_no_more_than_its_name(save, tile, tmp_path):
    rng = np.random.default_rng(0)
    for area in (1, 11, 2, 3):
        save(f"vaihingen/top/top_mosaic_09cm_area{area}.tif", rng.integers(0, 255, (3, 20, 20), dtype=np.uint8))
        save(f"vaihingen/dsm/dsm_09cm_matching_area{area}.tif", rng.random((1, 20, 20), dtype=np.float32))
        if area < 3 or area == 11:
            save(f"vaihingen/gts_for_participants/top_mosaic_09cm_area{area}.tif", rng.integers(0, 6, (20, 20)))
        label = rng.integers(0, 7, (20, 20))
        save(f"vaihingen/gts_eroded_for_participants/top_mosaic_09cm_area{area}_noBoundary.tif", label)
    common = ("vaihingen", "--classes", "vaihingen", "--out", "out", "--window", "16")
    code, shown, _ = tile(*common)
    assert code == 0
    assert "1 scenes have no label and were left out: 3" in shown
    index = TileIndex.read(tmp_path / "out")
    assert {index.scene(n).name: str(index.table.split[n]) for n in range(len(index))} == {
        "1": "train",
        "2": "test",
        "11": "val",
    }
    assert index.manifest.gsd == pytest.approx(0.09)
    code, _, _ = tile(*common, "--eroded", "--with-dsm")
    assert code == 0
    manifest = TileIndex.read(tmp_path / "out").manifest
    assert len(manifest.scenes) == 4
    assert len(manifest.bands) == 4
    assert manifest.scenes[0].label.endswith("area1_noBoundary.tif")


def test_loveda_masks_are_numbers(save, tile, tmp_path):
    for split, number in (("Train", 7), ("Val", 2522)):
        save(f"LoveDA/{split}/Urban/images_png/{number}.png", np.full((3, 32, 32), number % 250, np.uint8))
        mask = np.full((1, 32, 32), 4, np.uint8)
        mask[0, :16] = 0
        save(f"LoveDA/{split}/Urban/masks_png/{number}.png", mask)
    code, shown, _ = tile("LoveDA", "--classes", "loveda", "--out", "out", "--window", "32")
    assert code == 0
    assert "no CRS" in shown
    table = TileIndex.read(tmp_path / "out").table
    assert table.split.tolist() == ["train", "val"]
    assert table.histogram.tolist() == 2 * [[0, 0, 0, 512, 0, 0, 0]]  # 4 is water, the fourth class; 0 is no data


def test_a_schema_of_ones_own_is_read_from_yaml(pairs, tile, tmp_path):
    schema = PRESETS["vaihingen"].to_dict() | {"name": "mine"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(schema))
    code, _, _ = tile("data/train", *OWN, "--classes", "mine.yaml", "--split", "train")
    assert code == 0
    assert TileIndex.read(tmp_path / "out").manifest.schema.name == "mine"


def test_the_schema_of_the_czech_scenes_ships_with_the_project():
    schema = load_schema("configs/classes/czech.yaml")
    assert schema.classes == ("vegetation", "unpaved road", "paved road", "building", "water", "bare land")
    assert schema.ignore_colours == ((50, 50, 50),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data/train", *OWN), "say which scenes train"),
        (("data/train", *OWN, "--split", "train=nobody"), "no scene is called nobody"),
        (("data/train", *OWN, "--split", "train", "--overlap", "1"), "overlap is 1.0"),
        (("data/train", *OWN, "--split", "train", "--window", "0"), "window is 0"),
        (("data/train", *OWN, "--split", "train", "--out", "data/train/out"), "lies in the input data/train"),
        (("data/train", *OWN, "--split", "train", "--classes", "vaihigen"), "did you mean vaihingen?"),
        (("data/train", *OWN, "--split", "train", "--bands", "1,nir"), "has no band 'nir'"),
        (("data/train", *OWN, "--split", "train", "--eroded"), "--eroded and --with-dsm are for one official folder"),
        (("data/train", "data/val", "--classes", "vaihingen", "--out", "out"), "--labels PATTERN is missing"),
        (("data/train", "--classes", "potsdam", "--out", "out"), "holds no potsdam rgb images"),
        (("data", *OWN, "--split", "train"), "data holds no scenes"),
        (("data/nothing.tif", *OWN, "--split", "train"), "no scene data/nothing.tif"),
        (("data/*.txt", *OWN, "--split", "train"), "no file matches data/*.txt"),
        (("text.tif", *OWN, "--labels", "data/train/a_label.tif", "--split", "train"), "text.tif cannot be opened"),
        (("data/val/b_image.tif", *OWN, "--labels", "data/{name}.tif", "--split", "val"), "has no label: data/b.tif"),
        (("data/train", *OWN, "--split", "train", "--classes", "loveda"), "unknown to the class schema 'loveda'"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(pairs, tile, tmp_path, arguments, message):
    (tmp_path / "text.tif").write_text("no raster")
    code, _, error = tile(*arguments)
    assert code == 2
    (line,) = [line for line in error.splitlines() if line.startswith("rs-biformer tile: ")]
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_czech_scenes_tile_by_folder(shared, tile, tmp_path):
    folders = [str(shared / "data" / "czech" / name) for name in ("train", "val", "test")]
    schema = str(Path(__file__).parents[1] / "configs" / "classes" / "czech.yaml")
    code, _, _ = tile(*folders, *OWN[:2], "--classes", schema, "--out", "out", "--split", "by-folder")
    assert code == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["unknown"] == []
    shares = summary["splits"]["train"]["classes"]
    assert shares["vegetation"]["share"] == pytest.approx(0.771, abs=0.001)


def test_a_list_of_pairs_says_all_but_the_classes(pairs, tile, tmp_path):
    rows = ["image,label,split,name"]
    for name, split in (("a", "train"), ("b", "val"), ("c", "test")):
        rows.append(f"data/{split}/{name}_image.tif,data/{split}/{name}_label.tif,{split},{name}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    code, _, _ = tile("pairs.csv", "--classes", "vaihingen", "--out", "out", "--window", "16")
    assert code == 0
    index = TileIndex.read(tmp_path / "out")
    assert {index.scene(n).name: str(index.table.split[n]) for n in range(len(index))} == {
        "a": "train",
        "b": "val",
        "c": "test",
    }
    code, _, error = tile("pairs.csv", *OWN)
    assert code == 2
    assert "names its scenes, labels and further rasters itself" in error


def test_the_same_names_in_several_folders_are_told_apart(save, tile, tmp_path):
    rng = np.random.default_rng(0)
    for part in ("north", "south"):
        save(f"{part}/images/1.tif", rng.integers(0, 255, (3, 40, 48), dtype=np.uint8))
        save(f"{part}/labels/1.tif", rng.integers(0, 6, (40, 48)))
    own = ("north/images", "south/images", "--labels", "{dir}/../labels/{stem}.tif", *OWN[2:], "--split", "train")
    assert tile(*own)[0] == 0
    assert [scene.name for scene in TileIndex.read(tmp_path / "out").manifest.scenes] == ["north_1", "south_1"]
    assert tile(*own, "--name", "{dir:*/images}-{stem}")[0] == 0
    assert [scene.name for scene in TileIndex.read(tmp_path / "out").manifest.scenes] == ["north-1", "south-1"]
    code, _, error = tile(*own, "--name", "{stem}")
    assert code == 2
    assert "two scenes are called 1" in error
    assert "--name" in error
    code, _, error = tile(*own, "--name", "{dir}_{stem}")
    assert code == 2
    assert "slash" in error


def test_nodata_is_taken_with_an_exponent_and_a_sign(save, tile, tmp_path):
    image = np.full((1, 40, 48), 300, np.float32)
    image[0, :8] = -3.4028235e38
    save("a.tif", image)
    save("a_label.tif", np.zeros((40, 48), int))
    own = ("a.tif", "--labels", "{stem}_label.tif", *OWN[2:], "--split", "train")
    assert tile(*own, "--nodata", "-3.4028235e38")[0] == 0
    assert TileIndex.read(tmp_path / "out").manifest.mean == (300.0,)
    code, _, error = tile(*own, "--nodata", "-1e3x")
    assert code == 2
    assert "--nodata -1e3x is no number" in error


def test_an_index_that_python_makes_is_that_of_the_command(pairs, tile):
    assert tile("data/train", "data/val", "data/test", *OWN, "--split", "by-folder", "--overlap", "0.25")[0] == 0
    index, summary = rs_biformer.create_tile_index(
        [Path("data/train"), "data/val", "data/test"],
        "vaihingen",
        "own",
        labels="{dir}/{name}_label.tif",
        split=["by-folder"],
        options=rs_biformer.TileOptions(16, 0.25),
    )
    for name in ("tiles.parquet", "summary.json"):
        assert Path("own", name).read_bytes() == Path("out", name).read_bytes()
    assert len(index) == summary["windows"] > 0


def test_a_list_of_pairs_that_python_gives_deals_its_own_splits(pairs, tile):
    rows = [
        f"{split}/{name}_image.tif,{split}/{name}_label.tif,{split}" for name, split in zip("abc", SPLITS, strict=True)
    ]
    Path("data/pairs.csv").write_text("\n".join(["image,label,split", *rows]))
    index, _ = rs_biformer.create_tile_index(
        Path("data/pairs.csv"), "vaihingen", "own", options=rs_biformer.TileOptions(16)
    )
    assert {index.scene(n).name[0]: str(index.table.split[n]) for n in range(len(index))} == dict(
        zip("abc", SPLITS, strict=True)
    )


def test_bands_that_only_look_like_numbers_are_refused(pairs, tile):
    """A superscript is a digit to str.isdigit and no number to int."""
    code, _, error = tile("data/train", *OWN, "--split", "train", "--bands", "\u00b2")
    assert code == 2 and "\u00b2" in error and len(error.splitlines()) == 1


def test_neither_summary_nor_output_hold_a_key_of_a_url(save, tile, tmp_path, capsys):
    """The index does, as it must find the scenes again; what people hand on does not."""
    save("image.tif", np.ones((3, 40, 48), np.uint8))
    save("label.tif", np.zeros((40, 48), int))
    with rasterio.open(tmp_path / "image.tif", "r+") as image:
        image.nodata = 0
    with serving(tmp_path) as address:
        image, label = (
            f"{address}/{name}.tif?subscription=KEY".replace("//", "//me:KEY@") for name in ("image", "label")
        )
        Path("pairs.csv").write_text(f"image,label\n{image},{label}\n")
        code, out, error = tile("pairs.csv", *OWN[2:], "--split", "train", "--nodata", "255")
        assert main(["info", "--json", image]) == 0
    shown = capsys.readouterr()
    summary = Path("out/summary.json").read_text()
    assert code == 0 and "image.tif declares its own nodata value (0)" in summary
    assert "KEY" not in summary + out + error + shown.out + shown.err
