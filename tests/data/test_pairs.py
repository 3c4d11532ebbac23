import pytest

from rs_biformer.data.layouts import SceneFiles
from rs_biformer.data.pairs import is_pair_list, pair_rows, paired_scenes
from rs_biformer.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    """Files i/1.tif, i/2.tif, their labels in m/, and a list of pairs in lists/ with the given text."""
    for name in ("i/1.tif", "i/2.tif", "m/a,b.tif", "m/2.tif", "d/1.tif", "j/1.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "lists").mkdir()

    def save(text, name="pairs.csv"):
        path = tmp_path / "lists" / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return save


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_gives_images_labels_splits_and_further_rasters_from_its_own_folder(write, delimiter, encoding):
    rows = [
        ["Image", "label", "split", "extra_dsm"],
        ["../i/1.tif", '"../m/a,b.tif"', "train", "../d/1.tif"],
        ["../i/2.tif", "../m/2.tif", "VAL", ""],
    ]
    path = write("\r\n".join(delimiter.join(row) for row in rows).encode(encoding))
    at = path.parent
    assert paired_scenes(path) == (
        SceneFiles("1", (at / "../i/1.tif", at / "../d/1.tif"), at / "../m/a,b.tif", "train"),
        SceneFiles("2", (at / "../i/2.tif",), at / "../m/2.tif", "val"),
    )


def test_columns_come_in_any_order_and_under_their_other_names(write):
    path = write("mask;name;scene\n../m/2.tif;south;../i/2.tif\n\n;north;../i/1.tif\n")
    assert [(scene.name, scene.label and scene.label.name) for scene in paired_scenes(path)] == [
        ("south", "2.tif"),
        ("north", None),
    ]


def test_scenes_of_one_stem_are_told_apart_by_their_folders(write):
    assert [scene.name for scene in paired_scenes(write("image\n../i/1.tif\n../j/1.tif\n"))] == ["i_1", "j_1"]


def test_remote_files_and_absolute_paths_stay_as_they_are(write, tmp_path):
    path = write(f"image,label\nhttps://host/a.tif,{tmp_path / 'm/2.tif'}\n")
    (scene,) = paired_scenes(path)
    assert scene == SceneFiles("a", ("https://host/a.tif",), tmp_path / "m/2.tif", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("../i/1.tif,../m/2.tif\n", r"no column image .*; a list begins with a header of image, label, split, name"),
        ("image,dsm\n../i/1.tif,../d/1.tif\n", "no column 'dsm'; a list may have .*extra"),
        ("image,label,label\n", "names label more than once"),
        ("image,label\n", "lists no scene"),
        ("image,label\n../i/3.tif,../m/2.tif\n", r"line 2: .*3.tif does not exist; did you mean"),
        ("image,label\n../i/1.tif,../m/9.tif\n", r"line 2: .*9.tif does not exist"),
        ("image,label\n../i/1.tif,../m/a,b.tif\n", "line 2: 3 fields and 2 columns .*quote"),
        ("image,label\n,../m/2.tif\n", "line 2: the row has no image"),
        ("image,label,split\n../i/1.tif,../m/2.tif,dev\n", "line 2: the split is 'dev'; it must be train, val, test"),
        ("image,label\n../i/1.tif,../m/2.tif\n../i/1.tif,../m/a.tif\n", "line 3: .*a.tif does not exist"),
        ("image\n../i/1.tif\n\n../i/1.tif\n", "line 4: .* stands in line 2 already"),
        ("image,label\n../i/1.tif,../i/1.tif\n", "image and label at once"),
        ("image,name\n../i/1.tif,a\n../i/2.tif,a\n", "two scenes are called a"),
        ('image\n"../i/1.tif\n', "line 2: .*; a list of pairs is a CSV table"),
        (b"image\n../i/\xe4.tif\n", "is not in UTF-8"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_line(write, text, message):
    with pytest.raises(ConfigError, match=message):
        paired_scenes(write(text))


def test_a_list_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no list of pairs .*none.csv"):
        paired_scenes(tmp_path / "none.csv")


def test_other_commands_may_ask_for_columns_of_their_own(write):
    rows = pair_rows(write("image,prediction\n../i/1.tif,../m/2.tif\n"), ("prediction",))
    assert rows == [(2, {"image": "../i/1.tif", "prediction": "../m/2.tif"})]


@pytest.mark.parametrize(
    ("name", "whether"), [("a.csv", True), ("b.TSV", True), ("a.txt", False), ("https://host/a.csv", False)]
)
def test_a_list_is_known_by_its_suffix(name, whether):
    assert is_pair_list(name) is whether


@pytest.mark.parametrize(
    "text, message",
    [
        ("image,label\n" + "x" * 5000 + ",b", "does not exist"),
        ("image,label\n" + "x" * 5000 + "/a.tif,b", "nor does the folder"),
        ("image,label\na\0.tif,b", "zero bytes"),
        ("image,label,split\na.tif,a.tif," + "x" * 5000, "the split is"),
        ("image," + "x" * 5000 + "\na.tif,", "there is no column"),
    ],
)
def test_names_that_no_file_can_have_are_refused_in_a_short_line(text, message, tmp_path):
    (tmp_path / "a.tif").touch()
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        paired_scenes(tmp_path / "pairs.csv")
    assert len(str(caught.value)) < 2000 and "\n" not in str(caught.value)
