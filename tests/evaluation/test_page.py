import re
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup
from PIL import Image

from rs_biformer.errors import ConfigError
from rs_biformer.evaluation import Protocol, SceneView, evaluate, html, write_page
from rs_biformer.evaluation import page as page_module
from rs_biformer.evaluation import pictures as pictures_module
from rs_biformer.evaluation.pictures import SHOWN_SCENES
from rs_biformer.evaluation.previews import EMPTY, most_frequent, preview, stretch, worst_first, wrong_share
from rs_biformer.schema import IGNORE, PRESETS, ClassSchema

NASTY = 'roof </script><b onclick="x">&amp;'
SCHEMA = ClassSchema("nasty", ("ground", NASTY, "never"), ((255, 255, 255), (0, 0, 255), (9, 9, 9)))


class Tags(HTMLParser):
    """Elements with their attributes, and whether every element that was opened was closed."""

    VOID = {"meta", "link", "img", "input", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID and tag not in ("line", "polyline", "circle", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def views(write_raster):
    """Two scenes of three bands; the second one is predicted worse."""
    rng = np.random.default_rng(0)
    made = []
    for number, wrong in enumerate((5, 20)):
        label = np.zeros((40, 60), np.uint8)
        label[:, 30:] = 1
        prediction = label.copy()
        prediction[:wrong] = 1 - prediction[:wrong]
        made.append(
            SceneView(
                f"{number}_town",
                write_raster(f"{number}_town_image.tif", rng.integers(0, 255, (3, 40, 60)).astype(np.uint8)),
                write_raster(f"{number}_town_label.tif", label),
                write_raster(f"{number}_town_classes.tif", prediction, nodata=IGNORE),
            )
        )
    return made


@pytest.fixture
def page(views, tmp_path):
    log = tmp_path / "metrics.csv"
    log.write_text("epoch,step,train/loss,val/miou\n0,9,1.5,0.2\n1,19,0.7,0.6\n")
    return write_page(
        tmp_path / "out" / "page.html",
        metrics=metrics_of(views),
        title="Towns & villages",
        scenes=views,
        curves=log,
        commands=["rs-biformer evaluate --out 'a b.json' > x"],
        files={"Log": log},
    )


def metrics_of(views):
    return evaluate([view.prediction for view in views], [view.label for view in views], SCHEMA)


def test_the_page_is_well_formed_and_loads_nothing_from_elsewhere(page):
    text = page.read_text(encoding="utf-8")
    tags = Tags(text)
    assert tags.open == []
    for tag, attributes in tags.found:
        if "src" in attributes or tag == "link":
            assert (attributes.get("src") or attributes["href"]).startswith("data:")
    assert not re.search(r"url\(|@import|https?://", text)
    anchors = {attributes["id"] for _, attributes in tags.found if "id" in attributes}
    links = [attributes["href"] for tag, attributes in tags.found if tag == "a"]
    assert links[-1] == "../metrics.csv"
    assert {link[1:] for link in links[:-1]} == anchors == {"classes", "scenes", "confusion", "training", "method"}


def test_names_and_commands_are_shown_and_never_run(page):
    text = page.read_text(encoding="utf-8")
    assert "<b onclick" not in text and text.count("<script>") == 1
    assert "roof &lt;/script&gt;" in text
    assert "rs-biformer evaluate --out &#39;a b.json&#39; &gt; x" in text
    assert "<h1>Towns &amp; villages</h1>" in text


@pytest.mark.parametrize(
    "piece",
    [
        lambda text: html.row_name(text),
        lambda text: html.row_name("row", text),
        lambda text: html.number(1.0, text),
        lambda text: html.heading(text),
        lambda text: html.facts({text: text}),
        lambda text: html.hint(text),
        lambda text: html.joined([text, text]),
        lambda text: html.table([html.heading(text)], [html.row_name(text)], html.number(1.0, text)),
        lambda text: html.name_of(SCHEMA, 1),
    ],
)
def test_no_piece_lets_text_become_markup_wherever_it_stands(piece):
    made = piece(NASTY + """ ' " <i>""")
    tags = Tags(f"<div>{made}</div>")
    assert not {tag for tag, _ in tags.found} & {"b", "i", "script"} and "</script" not in made
    assert not any("onclick" in attributes for _, attributes in tags.found)


def test_a_row_is_called_and_sorted_by_its_name():
    assert html.row_name('a"<b>&c') == '<th scope="row" data-value="a&#34;&lt;b&gt;&amp;c">a&#34;&lt;b&gt;&amp;c</th>'
    shown = Markup("<b>{}</b>").format("<x>")
    assert html.row_name("<x>", shown) == '<th scope="row" data-value="&lt;x&gt;"><b>&lt;x&gt;</b></th>'


def test_the_page_shows_the_figures_of_the_metrics(page, views):
    metrics = metrics_of(views)
    text = page.read_text(encoding="utf-8")
    assert f"<dt>Mean IoU</dt><dd>{100 * metrics.mean_iou:.2f}" in text
    assert f"<dt>Overall accuracy</dt><dd>{100 * metrics.overall_accuracy:.2f}" in text
    assert '<td data-value="">–</td>' in text  # the class that never occurs
    assert text.count("<polyline") == 2
    # One heat map by label and one by prediction, with the same counts in their tooltips.
    assert text.count(f"ground → ground: {metrics.scores.confusion.matrix[0, 0]:,} pixels") == 2


def test_the_worst_scene_comes_first_with_four_pictures_each(page):
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"<h3>(\d_town)</h3>", text) == ["1_town", "0_town"]
    assert re.findall(r'alt="(\w+) of 1_town"', text) == ["Image", "Truth", "Prediction", "Error"]


def test_a_page_without_images_curves_and_commands_is_whole_as_well(views, tmp_path):
    bare = [SceneView(view.name, None, view.label, view.prediction) for view in views]
    path = write_page(tmp_path / "page.html", metrics=metrics_of(views), title="Bare", scenes=bare)
    text = path.read_text(encoding="utf-8")
    assert Tags(text).open == []
    assert "Training" not in text and "figures again" not in text
    assert re.findall(r'alt="(\w+) of 1_town"', text) == ["Truth", "Prediction", "Error"]


def test_windows_that_are_mapped_worst_are_shown_worst_first(write_raster, tmp_path, monkeypatch):
    label = np.zeros((1100, 1600), np.uint8)
    prediction = label.copy()
    prediction[512:700, 1024:1500] = 1  # 34 % of the block in the second row, third column
    prediction[:100, :300] = 1  # 11 % of the first one
    files = write_raster("a_classes.tif", prediction), write_raster("a_label.tif", label)
    metrics = evaluate(*files, SCHEMA)
    worst = metrics.worst_blocks(2)
    assert [(block.window.row, block.window.col) for block in worst] == [(512, 1024), (0, 0)]
    assert worst[0].accuracy == 1 - 188 * 476 / 512**2
    assert len(metrics.worst_blocks(99)) == 6  # those at the edges have labels on less than a quarter of their area
    monkeypatch.setattr(pictures_module, "SHOWN_BLOCKS", 3)
    view = SceneView("a", None, files[1], files[0])
    text = write_page(tmp_path / "p.html", metrics=metrics, title="x", scenes=[view]).read_text()
    shown = re.findall(r"accuracy ([\d.]+) · rows ([\d,]+) – [\d,]+, columns ([\d,]+)", text)
    assert [part[1:] for part in shown] == [("512", "1,024"), ("0", "0"), ("0", "512")]
    assert shown[0][0] == f"{100 * worst[0].accuracy:.2f}"


def test_what_was_measured_beside_the_confusion_has_sections_of_its_own(write_raster, tmp_path):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, (140, 120)).astype(np.uint8).repeat(10, 0).repeat(10, 1)
    wrong = rng.random((140, 120)).repeat(10, 0).repeat(10, 1) < 0.1
    files = write_raster("a_classes.tif", np.where(wrong, 1 - label, label)), write_raster("a_label.tif", label)
    sure = write_raster("a_sure.tif", np.full(label.shape, 0.95, np.float32))
    protocol = Protocol("mine", exclude=("never",), ignore_boundary=1, pad_to=1024, pad_class="ground")
    metrics = evaluate(*files, SCHEMA, protocol, confidences=[sure], boundary=(1, 2))
    text = write_page(tmp_path / "p.html", metrics=metrics, title="x").read_text(encoding="utf-8")
    low, high = (100 * end for end in metrics.intervals["mean_iou"])
    assert f'<dd class="more">{low:.2f} – {high:.2f}</dd>' in text
    assert re.findall(r'<section id="(\w+)">', text) == [
        *("protocols", "classes", "outlines", "scenes", "confusion", "calibration", "method")
    ]
    assert f"{100 * metrics.boundary_f1[0]:.2f}" in text and "eroded labels, 3 classes" in text
    assert f"<b>{100 * metrics.calibration.expected_error:.2f} %</b>" in text
    assert "up to multiples of 1024 px, scored as ground" in text and "are padding and in no scene" in text
    assert Tags(text).open == []


def test_of_many_scenes_the_worst_are_shown_and_the_page_says_so(views, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures_module, "SHOWN_SCENES", 1)
    text = write_page(tmp_path / "p.html", metrics=metrics_of(views), title="Few", scenes=views).read_text()
    assert "The 1 worst of 2 are shown." in text and re.findall(r"<h3>(\d_town)</h3>", text) == ["1_town"]
    assert SHOWN_SCENES > 1


def test_the_same_evaluation_gives_the_same_bytes(views, tmp_path):
    pages = [write_page(tmp_path / name, metrics=metrics_of(views), title="x", scenes=views) for name in "ab"]
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_curves_that_cannot_be_read_are_refused(views, tmp_path):
    with pytest.raises(ConfigError, match="nowhere.csv"):
        write_page(tmp_path / "p.html", metrics=metrics_of(views), title="x", curves=tmp_path / "nowhere.csv")
    assert not (tmp_path / "p.html").exists()


def pixels(uri: str) -> np.ndarray:
    with Image.open(BytesIO(b64decode(uri.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("RGB"))


def test_pictures_are_reduced_alike_and_colour_what_the_rasters_hold(views):
    view = views[1]
    pictures = preview(view.image, view.label, view.predictions, SCHEMA, size=20)
    assert (pictures.height, pictures.width) == (14, 20)  # cells of 3 pixels
    label, error = pixels(pictures.layers["Truth"]), pixels(pictures.layers["Error"])
    assert label.shape == error.shape == pixels(pictures.layers["Image"]).shape == (14, 20, 3)
    assert (label[:, :10] == (255, 255, 255)).all() and (label[:, 10:] == (0, 0, 255)).all()
    assert (error[:6, :, 0] < 180).all() and (error[8:] > 240).all()


@settings(max_examples=60)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(0, 99))
def test_cells_hold_their_most_frequent_class_and_share_of_errors(height, width, cell, seed):
    rng = np.random.default_rng(seed)
    label, found = rng.choice([0, 1, 2, IGNORE], (2, height, width)).astype(np.uint8)
    modes, shares = most_frequent(label, cell, 3), wrong_share(label, found, cell)
    for row, col in np.ndindex(modes.shape):
        square = (slice(row * cell, (row + 1) * cell), slice(col * cell, (col + 1) * cell))
        truth, guess = label[square], found[square]
        counts = [(truth == number).sum() for number in range(3)]
        assert modes[row, col] == (np.argmax(counts) if max(counts) else IGNORE)
        wrong = (truth != guess)[truth != IGNORE]
        np.testing.assert_equal(shares[row, col], wrong.mean() if wrong.size else np.nan)


def test_bytes_stay_as_they_are_and_other_values_are_spread():
    ramp = np.tile(np.linspace(100, 300, 101), (3, 1, 1))
    np.testing.assert_array_equal(stretch(ramp, np.dtype(np.uint8))[0, 0, :5], [100, 102, 104, 106, 108])
    spread = stretch(ramp * 50, np.dtype(np.uint16))
    assert (spread[:, 0, :3] == 0).all() and (spread[:, 0, -3:] == 255).all()
    ramp[:, 0, 0] = np.nan
    assert tuple(stretch(ramp, np.dtype(np.float32))[:, 0, 0]) == EMPTY


def test_an_image_of_one_band_or_without_valid_pixels_is_drawn_too(write_raster, views):
    for name, band in (("one.tif", np.full((40, 60), 7, np.uint16)), ("none.tif", np.full((40, 60), np.nan))):
        picture = preview(write_raster(name, band), views[0].label, views[0].predictions, SCHEMA, size=60).layers[
            "Image"
        ]
        assert pixels(picture).shape == (40, 60, 3)


def test_scenes_without_a_mean_come_last():
    assert worst_first("abcd", [0.5, float("nan"), 0.1, 0.5]) == [2, 0, 3, 1]


def test_the_assets_are_part_of_the_package():
    assert all(page_module._asset(name) for name in ("page.html", "page.css", "page.js"))


def test_every_preset_can_be_drawn(write_raster, tmp_path):
    for name, schema in PRESETS.items():
        index = np.arange(len(schema), dtype=np.uint8)[None].repeat(4, 0)
        label = np.array(schema.values, np.uint8)[index]
        view = SceneView(name, None, write_raster(f"{name}.tif", label), write_raster(f"{name}_c.tif", index))
        metrics = evaluate(view.prediction, view.label, schema)
        assert metrics.overall_accuracy == 1
        write_page(tmp_path / f"{name}.html", metrics=metrics, title=name, scenes=[view])
