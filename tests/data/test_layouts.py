from pathlib import Path

import pytest

from rs_biformer.data.layouts import SceneFiles, official_scenes, pattern_scenes
from rs_biformer.errors import ConfigError

VAIHINGEN_TRAIN = {1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37}
VAIHINGEN_TEST = {2, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 27, 29, 31, 33, 35, 38}
POTSDAM_TEST = "2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13".split()
POTSDAM_TRAIN = (
    "2_10 2_11 2_12 3_10 3_11 3_12 4_10 4_11 4_12 5_10 5_11 5_12 6_7 6_8 6_9 6_10 6_11 6_12 7_7 7_8 7_9 7_10 7_11 7_12"
).split()


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def vaihingen(tmp_path):
    """The three archives, each unpacked into a folder of its own name."""
    main = "ISPRS_semantic_labeling_Vaihingen"
    for area in VAIHINGEN_TRAIN | VAIHINGEN_TEST:
        touch(
            tmp_path,
            f"{main}/top/top_mosaic_09cm_area{area}.tif",
            f"{main}/top/top_mosaic_09cm_area{area}.tfw",
            f"{main}/dsm/dsm_09cm_matching_area{area}.tif",
            f"{main}_ground_truth_COMPLETE/top_mosaic_09cm_area{area}.tif",
            f"{main}_ground_truth_eroded_COMPLETE/top_mosaic_09cm_area{area}_noBoundary.tif",
        )
        if area in VAIHINGEN_TRAIN:
            touch(tmp_path, f"{main}/gts_for_participants/top_mosaic_09cm_area{area}.tif")
    return tmp_path


@pytest.fixture
def potsdam(tmp_path):
    for name in POTSDAM_TRAIN + POTSDAM_TEST:
        row, col = name.split("_")
        touch(
            tmp_path,
            f"2_Ortho_RGB/top_potsdam_{name}_RGB.tif",
            f"3_Ortho_IRRG/top_potsdam_{name}_IRRG.tif",
            f"4_Ortho_RGBIR/top_potsdam_{name}_RGBIR.tif",
            f"1_DSM/dsm_potsdam_{int(row):02}_{int(col):02}.tif",
            f"1_DSM_normalisation/dsm_potsdam_{int(row):02}_{int(col):02}_normalized_lastools.jpg",
            f"1_DSM_normalisation/dsm_potsdam_{int(row):02}_{int(col):02}_normalized_ownapproach.jpg",
            f"5_Labels_all/top_potsdam_{name}_label.tif",
            f"5_Labels_all_noBoundary/top_potsdam_{name}_label_noBoundary.tif",
        )
    return tmp_path


def by_split(scenes, split):
    return {scene.name for scene in scenes if scene.split == split}


def test_vaihingen_has_the_official_split_and_val_comes_from_train(vaihingen):
    scenes = official_scenes("vaihingen", vaihingen)
    assert by_split(scenes, "test") == {str(area) for area in VAIHINGEN_TEST}
    assert by_split(scenes, "train") | by_split(scenes, "val") == {str(area) for area in VAIHINGEN_TRAIN}
    assert len(by_split(scenes, "val")) == 5
    assert [scene.name for scene in scenes[:10]] == "1 2 3 4 5 6 7 8 10 11".split()


def test_vaihingen_pairs_the_orthophoto_with_the_complete_ground_truth(vaihingen):
    scene = next(scene for scene in official_scenes("vaihingen", vaihingen) if scene.name == "38")
    main = vaihingen / "ISPRS_semantic_labeling_Vaihingen"
    label = vaihingen / "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE/top_mosaic_09cm_area38.tif"
    assert scene == SceneFiles("38", (main / "top/top_mosaic_09cm_area38.tif",), label, "test")


def test_vaihingen_can_take_eroded_labels_and_the_dsm(vaihingen):
    scene = official_scenes("vaihingen", vaihingen, eroded=True, height="dsm")[0]
    assert [path.name for path in scene.images] == ["top_mosaic_09cm_area1.tif", "dsm_09cm_matching_area1.tif"]
    assert scene.label.parent.name.endswith("ground_truth_eroded_COMPLETE")
    assert scene.label.name == "top_mosaic_09cm_area1_noBoundary.tif"


def test_the_participants_download_leaves_the_test_scenes_without_label(tmp_path):
    for area in (1, 2):
        touch(tmp_path, f"top/top_mosaic_09cm_area{area}.tif")
    touch(tmp_path, "gts_for_participants/top_mosaic_09cm_area1.tif")
    labels = {scene.name: scene.label for scene in official_scenes("vaihingen", tmp_path)}
    assert labels == {"1": tmp_path / "gts_for_participants/top_mosaic_09cm_area1.tif", "2": None}


def test_potsdam_has_the_official_split(potsdam):
    scenes = official_scenes("potsdam", potsdam)
    assert by_split(scenes, "test") == set(POTSDAM_TEST)
    assert by_split(scenes, "train") | by_split(scenes, "val") == set(POTSDAM_TRAIN)
    assert len(by_split(scenes, "val")) == 7
    names = [scene.name for scene in scenes]
    assert names.index("6_9") < names.index("6_10"), "numbers are sorted as numbers"


@pytest.mark.parametrize(
    ("options", "images", "label"),
    [
        ({}, ["top_potsdam_6_7_RGB.tif"], "5_Labels_all/top_potsdam_6_7_label.tif"),
        ({"image": "irrg"}, ["top_potsdam_6_7_IRRG.tif"], "5_Labels_all/top_potsdam_6_7_label.tif"),
        (
            {"image": "rgbir", "height": "ndsm", "eroded": True},
            ["top_potsdam_6_7_RGBIR.tif", "dsm_potsdam_06_07_normalized_lastools.jpg"],
            "5_Labels_all_noBoundary/top_potsdam_6_7_label_noBoundary.tif",
        ),
        (
            {"height": "dsm"},
            ["top_potsdam_6_7_RGB.tif", "dsm_potsdam_06_07.tif"],
            "5_Labels_all/top_potsdam_6_7_label.tif",
        ),
    ],
)
def test_potsdam_offers_its_images_labels_and_heights(potsdam, options, images, label):
    scene = next(scene for scene in official_scenes("potsdam", potsdam, **options) if scene.name == "6_7")
    assert [path.name for path in scene.images] == images
    assert scene.label == potsdam / label


def test_the_older_potsdam_folders_are_known_too(tmp_path):
    touch(
        tmp_path,
        "Potsdam/2_Ortho_RGB/top_potsdam_2_10_RGB.tif",
        "Potsdam/5_Labels_for_participants_no_Boundary/top_potsdam_2_10_label_noBoundary.tif",
    )
    (scene,) = official_scenes("potsdam", tmp_path, eroded=True)
    assert scene.label.parent.name == "5_Labels_for_participants_no_Boundary"


def test_loveda_follows_its_folders_and_has_no_test_labels(tmp_path):
    for split, area, number, masked in (
        ("Train", "Urban", 1366, True),
        ("Train", "Rural", 0, True),
        ("Val", "Rural", 2522, True),
        ("Test", "Urban", 5167, False),
    ):
        touch(tmp_path, f"{split}/{area}/images_png/{number}.png")
        if masked:
            touch(tmp_path, f"{split}/{area}/masks_png/{number}.png")
    scenes = official_scenes("loveda", tmp_path)
    assert [(scene.name, scene.split) for scene in scenes] == [
        ("0", "train"),
        ("1366", "train"),
        ("2522", "val"),
        ("5167", "test"),
    ]
    assert scenes[1].label == tmp_path / "Train/Urban/masks_png/1366.png"
    assert scenes[3].label is None


@pytest.mark.parametrize("kind", ["vaihingen", "potsdam", "loveda"])
def test_a_folder_without_the_download_says_what_was_looked_for(tmp_path, kind):
    with pytest.raises(ConfigError, match=r"holds no .*(top/top_mosaic_09cm_area1|top_potsdam_2_10_RGB|images_png)"):
        official_scenes(kind, tmp_path)


def test_options_that_a_download_does_not_have_are_refused(vaihingen, tmp_path):
    with pytest.raises(ConfigError, match="vaihingen has no rgb images; it has irrg"):
        official_scenes("vaihingen", vaihingen, image="rgb")
    with pytest.raises(ConfigError, match="vaihingen has no ndsm in its download; it has dsm"):
        official_scenes("vaihingen", vaihingen, height="ndsm")
    with pytest.raises(ConfigError, match="LoveDA has one RGB image"):
        official_scenes("loveda", tmp_path, eroded=True)
    (vaihingen / "ISPRS_semantic_labeling_Vaihingen/dsm/dsm_09cm_matching_area7.tif").unlink()
    with pytest.raises(ConfigError, match="scene 7 has no dsm file"):
        official_scenes("vaihingen", vaihingen, height="dsm")


def test_labels_in_another_folder_share_the_stem(tmp_path):
    touch(tmp_path, "images/b.tif", "images/a.tif", "labels/a.png", "labels/b.png")
    scenes = pattern_scenes([tmp_path / "images"], f"{tmp_path}/labels/{{stem}}.png")
    assert [(scene.name, scene.label.name) for scene in scenes] == [("a", "a.png"), ("b", "b.png")]


def test_a_folder_of_scenes_and_labels_gives_the_scenes(tmp_path):
    touch(tmp_path, "a_image.tif", "a_label.tif", "a_dsm.tif", "b_image.tif", "b_label.tif", "b_dsm.tif", "notes.txt")
    scenes = pattern_scenes([tmp_path], "{dir}/{name}_label.tif", ["{dir}/{name}_dsm.tif"])
    assert [scene.name for scene in scenes] == ["a_image", "b_image"]
    assert scenes[0].images == (tmp_path / "a_image.tif", tmp_path / "a_dsm.tif")
    assert scenes[0].label == tmp_path / "a_label.tif"


def test_a_quoted_glob_is_expanded_and_the_parent_folder_can_be_named(tmp_path):
    touch(tmp_path, "images/train/a.tif", "images/val/b.tif", "labels/train/a.tif", "labels/val/b.tif")
    scenes = pattern_scenes([str(tmp_path / "images/*/*.tif")], f"{tmp_path}/labels/{{parent}}/{{stem}}.tif")
    assert [scene.label for scene in scenes] == [tmp_path / "labels/train/a.tif", tmp_path / "labels/val/b.tif"]


def test_a_missing_label_names_the_scene_the_path_and_a_near_file(tmp_path):
    touch(tmp_path, "a_image.tif", "a_labels.tif")
    with pytest.raises(ConfigError, match=r"a_image.tif has no label: .*a_label.tif does not exist; .*a_labels.tif\?"):
        pattern_scenes([tmp_path / "a_image.tif"], "{dir}/{name}_label.tif")


def test_a_folder_given_as_label_is_told(tmp_path):
    touch(tmp_path, "a.tif", "labels/a.tif")
    with pytest.raises(ConfigError, match=r"the label of scene .*a.tif is a folder, .*labels; .*labels/\{stem\}.tif'"):
        pattern_scenes([tmp_path / "a.tif"], str(tmp_path / "labels"))


@pytest.mark.parametrize(
    ("scenes", "labels", "message"),
    [
        (["nothing.tif"], "{stem}.png", "no scene nothing.tif: there is no such file"),
        (["no*.tif"], "{stem}.png", r"no file matches no\*.tif"),
        (["a.tif"], "{scene}.png", r"has \{scene\}; it may have \{dir\}, \{name\}, \{parent\}, \{stem\}"),
        (["a.tif"], "{stem.png", "cannot be read"),
        (["a.tif"], "{stem}.tif", "would be its own label"),
        (["a.tif", "other/a.tif"], "{stem}.png", "two scenes are called a"),
        (["empty"], "{stem}.png", "empty holds no scenes"),
    ],
)
def test_inputs_that_cannot_be_meant_are_refused(tmp_path, monkeypatch, scenes, labels, message):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "a.tif", "b.tif", "other/a.tif", "a.png", "label.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=message):
        pattern_scenes(scenes, labels)


def test_the_same_file_given_twice_is_one_scene(tmp_path):
    touch(tmp_path, "a.tif", "a.png")
    assert len(pattern_scenes([tmp_path / "a.tif", str(tmp_path / "*.tif")], f"{tmp_path}/{{stem}}.png")) == 1


def test_scenes_without_labels_are_found_too(tmp_path):
    for name in ("a_image.tif", "a_dsm.tif", "notes.txt"):
        (tmp_path / name).touch()
    (scene,) = pattern_scenes([tmp_path], None, ["{dir}/{name}_dsm.tif"])
    assert scene == SceneFiles("a_image", (tmp_path / "a_image.tif", tmp_path / "a_dsm.tif"), None)


def test_paths_of_gdal_file_systems_are_taken_as_they_are():
    (scene,) = pattern_scenes(["/vsizip/area.zip/scene.tif"], None)
    assert [str(path) for path in scene.images] == ["/vsizip/area.zip/scene.tif"]


def test_urls_are_taken_as_they_are():
    urls = ["https://host/a/one.tif?key=x/y", "s3://bucket/two.tif"]
    scenes = pattern_scenes(urls, "{dir}/labels/{stem}.tif", ["/vsis3/heights/{parent}_{stem}.tif"])
    assert scenes[0].name == "one"
    assert scenes[0].images == (urls[0], "/vsis3/heights/a_one.tif")
    assert [scene.label for scene in scenes] == ["https://host/a/labels/one.tif", "s3://bucket/labels/two.tif"]


@pytest.mark.parametrize("given", ["lists/scenes.txt", "@lists/scenes.of.today"])
def test_a_list_names_scenes_from_its_own_folder(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "lists/a.tif", "in/b.tif", "in/c.tif", "elsewhere/d.tif")
    lines = ["# tonight", "", "a.tif", "  ../in/*.tif  ", f"{tmp_path}/elsewhere", "https://host/e.tif"]
    Path(given.removeprefix("@")).write_text("\n".join(lines), encoding="utf-8-sig")
    scenes = pattern_scenes([given, "in/b.tif"], None)
    assert [scene.name for scene in scenes] == ["a", "b", "c", "d", "e"]
    assert scenes[0].images == (Path("lists/a.tif"),)


def test_lists_that_cannot_be_meant_are_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    (tmp_path / "image.txt").write_bytes(b"II*\x00\xff\xfe")
    for given, message in (("scenes.txt", "no list of scenes"), ("empty.txt", "names no"), ("image.txt", "is no text")):
        with pytest.raises(ConfigError, match=message):
            pattern_scenes([tmp_path / given], None)


def test_what_is_to_be_skipped_is_left_out_wherever_it_comes_from(tmp_path):
    touch(tmp_path, "a.tif", "b_classes.tif", "a_label.tif", "a_classes.tif", "maps/a_confidence.tif")
    skip = ["*_label.tif", "{dir}/{stem}_classes.tif", f"{tmp_path}/maps/{{stem}}_confidence.tif"]
    scenes = pattern_scenes([tmp_path, *tmp_path.glob("maps/*.tif")], None, skip=skip)
    assert [scene.name for scene in scenes] == ["a", "b_classes"]  # there is no scene b that it could be the map of
    with pytest.raises(ConfigError, match=r"of 1 scenes none is left; \*\.tif"):
        pattern_scenes([tmp_path / "a.tif"], None, skip=["*.tif"])


def test_scenes_of_one_stem_can_be_told_apart_by_their_folders(tmp_path):
    touch(tmp_path, "x/ortho.tif", "y/ortho.tif")
    with pytest.raises(ConfigError, match="two scenes are called ortho"):
        pattern_scenes([str(tmp_path / "*/ortho.tif")], None)
    scenes = pattern_scenes([str(tmp_path / "*/ortho.tif")], None, name="{parent}_{stem}")
    assert [scene.name for scene in scenes] == ["x_ortho", "y_ortho"]


@pytest.mark.parametrize(
    ("pattern", "partner"),
    [
        ("m/mask_{stem:image_*}.tif", "m/mask_0001_b.tif"),
        ("m/{stem:*_0001_b}.tif", "m/image.tif"),
        ("m/{stem:*_0001_*>*_mask_*}.tif", "m/image_mask_b.tif"),
        ("m/{stem:image_????_*}.tif", "m/b.tif"),
        ("m/{name:image_*}.tif", "m/0001.tif"),
        ("{dir:*/images}/m.tif", "m.tif"),
    ],
)
def test_a_piece_of_a_name_is_what_the_star_stands_for(tmp_path, monkeypatch, pattern, partner):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "part/images/image_0001_b.tif", partner if partner != "m.tif" else "part/m.tif")
    (scene,) = pattern_scenes(["part/images/image_0001_b.tif"], pattern)
    assert scene.label == Path(partner if partner != "m.tif" else "part/m.tif")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("m/{stem:mask_*}.tif", r"'image_1' is not of the form 'mask_\*'"),
        ("m/{stem:image_}.tif", "a piece is written"),
        ("m/{stem:*_*}.tif", "several .* as many"),
        ("m/{stem:*>*_*}.tif", "several .* as many"),
        ("m/{stem!r}.tif", r"has \{stem!r\}; it may have"),
        ("m/{stem!z}.tif", r"has \{stem!z\}; it may have"),
    ],
)
def test_pieces_that_cannot_be_taken_are_refused(tmp_path, monkeypatch, pattern, message):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "image_1.tif")
    with pytest.raises(ConfigError, match=message):
        pattern_scenes(["image_1.tif"], pattern)


def test_scenes_of_one_stem_get_the_folders_that_tell_them_apart(tmp_path):
    names = [f"{split}/images/{number}.tif" for split in ("train", "val") for number in (1, 2)]
    touch(tmp_path, *names, "val/images/3.tif")
    scenes = pattern_scenes([tmp_path / "train/images", tmp_path / "val/images"], None, name=None)
    assert [scene.name for scene in scenes] == ["train_1", "train_2", "val_1", "val_2", "val_3"]
    scenes = pattern_scenes([tmp_path / "train/images"], None, name=None)
    assert [scene.name for scene in scenes] == ["1", "2"], "where stems differ they are the names"
    scenes = pattern_scenes([tmp_path / "val/images"], None, name=f"{{dir:{tmp_path}/*/images}}-{{stem}}")
    assert [scene.name for scene in scenes] == ["val-1", "val-2", "val-3"]


def test_hidden_files_are_no_scenes_unless_named(tmp_path):
    touch(tmp_path, "a.tif", "._a.tif", ".b.tif")
    assert [scene.name for scene in pattern_scenes([tmp_path], None)] == ["a"]
    assert [scene.name for scene in pattern_scenes([tmp_path / "*.tif"], None)] == ["a"]
    assert [scene.name for scene in pattern_scenes([tmp_path / "._*.tif"], None)] == ["._a"]
    touch(tmp_path, "Train/Urban/images_png/1.png", "Train/Urban/images_png/._1.png", "Train/Urban/masks_png/1.png")
    assert [scene.name for scene in official_scenes("loveda", tmp_path)] == ["1"]


def test_a_label_that_is_not_there_shows_how_a_piece_of_a_name_is_written(tmp_path):
    touch(tmp_path, "i/image_0001.tif", "m/mask_0001.tif")
    with pytest.raises(ConfigError, match=r"did you mean .*m/mask_0001.tif\?; a piece .* written \{stem:image_\*\}"):
        pattern_scenes([tmp_path / "i"], f"{tmp_path}/m/mask_{{stem}}.tif")
