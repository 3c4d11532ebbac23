"""Commands, options and keys that the pages name are taken by the real parsers."""

import argparse
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from documentation import PAGES, ROOT, anchors, blocks, command_lines, links, spans, text_of, words
from pyogrio.raw import write

from rs_biformer.cli import COMMANDS, _with_joined_numbers, build_parser
from rs_biformer.errors import ConfigError
from rs_biformer.raster.labels import encode_colours
from rs_biformer.schema import load_schema
from rs_biformer.synthetic import make_scene
from rs_biformer.train.config import SECTIONS, known_keys, parse

OF_OTHERS = {"--memory-limit", "--nthreads", "--tls-ca-file", "--tls-cert", "--tls-key"}
"""Options that docs/cluster.md names and that are those of Dask's commands."""

_KEY = re.compile(rf"(?!\w+\.(?:py|onnx)$)({'|'.join([*SECTIONS, 'trainer'])})\.[a-z_.]*[a-z](:? .+)?")
_PLACEHOLDER = re.compile(r"[A-Z][A-Z_.]*(\.\w+)?")


class _Refused(Exception):
    pass


@cache
def relaxed(name: str) -> argparse.ArgumentParser:
    """The parser of a command, which misses nothing: for an option that is named alone."""
    commands = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    parser = commands.choices[name]
    for group in parser._mutually_exclusive_groups:
        group.required = False
    for action in parser._actions:
        action.required = False
        if not action.option_strings and action.nargs in (None, "+"):
            action.nargs = "*"
    return parser


def try_config(rest: list[str], files: list[str]) -> None:
    """The config that these words would train with: keys and values are checked, the index is not opened."""
    named = [name for name in files if (ROOT / name).is_file()]
    assert all((ROOT / name).is_file() for name in files if name.startswith("configs/")), files
    parse([*(word for name in named for word in ("--config", str(ROOT / name))), *rest])


def try_command(line: str) -> None:
    """Raises what the parsers raise at a whole command line."""
    given = _with_joined_numbers(words(line.partition(" > ")[0])[1:])
    if "--help" in given:
        assert given[0] in COMMANDS
        return
    args, rest = build_parser().parse_known_args(given)
    if args.command == "train":
        try_config(rest, args.config)
    elif rest:
        raise _Refused(rest)


def try_span(span: str) -> None:
    """Raises _Refused at a command, an option or a key of the config, alone or with values, that nothing takes."""
    if span.startswith("rs-biformer "):
        span = span.removeprefix("rs-biformer ")
        if span.split()[0] not in COMMANDS:
            raise _Refused(span)
    given = _with_joined_numbers(words(span)) if span.startswith("--") or span.split()[0] in COMMANDS else []
    given = [word for word in given if word != "..."]
    if given and given[0].split("=")[0] not in OF_OTHERS:
        names = [given.pop(0)] if given[0] in COMMANDS else list(COMMANDS)
        if given and not any(_takes(name, given) for name in names):
            raise _Refused(span)
    elif _KEY.fullmatch(span):
        key, _, value = span.replace(":", "", 1).partition(" ")
        free = key.rpartition(".")[0]
        if key not in known_keys() and free not in known_keys():
            raise _Refused(span)
        if value:
            parse([f"--{key}", value])


def _takes(name: str, given: list[str]) -> bool:
    option, sign, joined = given[0].partition("=")
    values = [word for word in ([joined] if sign else given[1:]) if not _PLACEHOLDER.fullmatch(word)]
    if option.startswith("--") and not values:  # named alone
        return option in relaxed(name)._option_string_actions or name == "train" and option[2:] in known_keys()
    try:
        args, rest = relaxed(name).parse_known_args(given)
    except SystemExit as stop:
        return stop.code == 0
    if name != "train":
        return not rest
    try:
        try_config(rest, args.config or [])
    except ConfigError:
        return False
    return True


HISTORY = [ROOT / name for name in ("CHANGELOG.md", "SECURITY.md", "benchmarks/RESULTS.md")]
"""Pages that may name options that are no more; their links count."""

LINKED = [*(page for page in PAGES if page.suffix != ".yaml"), *HISTORY]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


COMMAND_LINES = [(f"{page.relative_to(ROOT)}", line) for page in PAGES for line in command_lines(text_of(page))]


@pytest.mark.parametrize(("page", "line"), COMMAND_LINES, ids=[f"{page}: {line[:60]}" for page, line in COMMAND_LINES])
def test_a_command_that_a_page_shows_is_taken(page, line):
    try_command(line)


@pytest.mark.parametrize("page", [page for page in PAGES if page.suffix != ".yaml"], ids=name_of)
def test_every_option_and_key_that_a_page_names_exists_and_takes_its_value(page):
    for span in spans(text_of(page)):
        try_span(span)


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_lead_to_files_and_headings_of_the_project(page):
    for path, anchor in links(text_of(page)):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), f"{path}#{anchor}"


def test_the_pages_show_what_people_do_first():
    shown = {words(line)[1] for _, line in COMMAND_LINES}
    assert {"tile", "train", "evaluate", "predict", "vectorize"} <= shown


@pytest.mark.parametrize(
    "span",
    ["--no-such-option", "rs-biformer tyle", "tile --labls", "data.balanse", "--data.balanse 1", "--data.balance much"]
    + ["trainer.max_epochs: many", "tile --checkpoint best.ckpt", "tile --scale multiply", "evaluate --boundary one"],
)
def test_what_nothing_takes_is_noticed(span, capsys):
    with pytest.raises((_Refused, ConfigError)):
        try_span(span)


@pytest.mark.parametrize(
    "line",
    ["rs-biformer tile a.tif --label b.tif --out tiles", "rs-biformer predict a.tif --checkpoint b.ckpt"]
    + ["rs-biformer train --config configs/vaihingen/no_such_recipe.yaml", "rs-biformer train --data.indx tiles"],
)
def test_a_command_line_that_is_not_taken_is_noticed(line, capsys):
    with pytest.raises((_Refused, ConfigError, SystemExit, AssertionError)):
        try_command(line)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_is_taken_by_it(name):
    module = __import__(f"rs_biformer.cli.{name}", fromlist=["EXAMPLE"])
    for line in command_lines(f"```\n{module.EXAMPLE}\n```"):
        typed = re.sub(r"\s{2,}\(.*\)$", "", line).replace("--config ...", "")
        if typed.endswith("..."):
            try_span(typed)
        else:
            try_command(typed)


def type_in(lines, folder):
    """Run commands one after the other in a folder, as a shell does, the training cut short; what they print."""
    shorter = "--trainer.max_epochs 1 --data.samples_per_epoch 4 --data.batch_size 2 --trainer.limit_val_batches 2"
    smaller = "--model.encoder resnet18_biformer --data.workers 0 --trainer.accelerator cpu --trainer.precision 32-true"
    lines = [f"{line} {shorter} {smaller}" if words(line)[1] == "train" else line for line in lines]
    script = "\n".join(["set -e", f'rs-biformer() {{ {sys.executable} -m rs_biformer "$@"; }}', *lines])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_polygons_drawn_in_qgis_and_an_orthophoto_become_a_map_in_five_commands(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("## From polygons")[2].partition("\n## ")[0]
    (tmp_path / "drawn.yaml").write_text(blocks(readme, "yaml")[0], encoding="utf-8")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    make_scene(tmp_path / "ortho.tif", tmp_path / "unused.tif", height=1024, width=2048, gsd=0.2, seed=0)
    with rasterio.open(tmp_path / "ortho.tif") as ortho:
        place, crs = ortho.transform, ortho.crs
    to_degrees = pyproj.Transformer.from_crs(crs.to_wkt(), 4326, always_xy=True)
    for name, first in (("drawn", 0), ("checked", 1)):  # a square in every other cell of 128 pixels
        squares = [
            shapely.box(*(place * (col + 14, row + 114)), *(place * (col + 114, row + 14)))
            for row in range(0, 1024, 128)
            for col in range(128 * first, 2048, 256)
        ]
        kinds = np.array(["roof", "green"] * (len(squares) // 2), object)
        drawn = [
            shapely.transform(s, lambda points: np.stack(to_degrees.transform(*points.T), axis=1)) for s in squares
        ]
        shapes = shapely.to_wkb(np.array(drawn, object))
        write(tmp_path / f"{name}.gpkg", shapes, [kinds], ["kind"], geometry_type="Polygon", crs="EPSG:4326")
    lines = list(command_lines(readme))
    assert [words(line)[1] for line in lines] == ["tile", "train", "predict", "evaluate", "vectorize"]
    printed = type_in(lines, tmp_path)
    assert "polygons are read by the attribute kind; what none covers is ignored" in printed
    with rasterio.open(tmp_path / "maps/ortho_classes.tif") as mapped:
        assert (mapped.height, mapped.width, mapped.transform) == (1024, 2048, place)
        assert set(np.unique(mapped.read(1))) <= {0, 1, 255}
    counted = int(re.search(r"([\d,]+) pixels counted", printed)[1].replace(",", ""))
    assert counted == pytest.approx(64 * 100 * 100, abs=64 * 100)
    assert (tmp_path / "ortho.gpkg").stat().st_size > 0


@pytest.mark.slow
def test_the_tour_of_the_readme_is_what_it_says(tmp_path):
    """Its commands one after the other, as a shell runs them, on small scenes; only the training is cut short."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Five minutes")[2].partition("\n## ")[0]
    (tmp_path / "classes.yaml").write_text(blocks(readme, "yaml")[0], encoding="utf-8")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    schema = load_schema(tmp_path / "classes.yaml")
    for number, (image, label) in enumerate(
        [("images/town.tif", "labels/town.tif"), ("images/mill.tif", "labels/mill.tif")]
        + [("test/far_image.tif", "test/far_label.tif")]
    ):
        for path in (tmp_path / image, tmp_path / label):
            path.parent.mkdir(exist_ok=True)
        size = {"height": 320, "width": 400} if number == 2 else {"height": 1024, "width": 2048}
        place = (500_000.0 + 1000 * number, 5_400_000.0)
        make_scene(tmp_path / image, tmp_path / label, **size, seed=number, gsd=0.2, origin=place)
        with rasterio.open(tmp_path / image) as scene, rasterio.open(tmp_path / label) as drawn:
            brightness, profile = scene.read(1), drawn.profile
        index = np.digitize(brightness, np.quantile(brightness, (1 / 3, 2 / 3))).astype(np.uint8)
        index[:8] = 255
        profile.update(driver="GTiff")
        with rasterio.open(tmp_path / label, "w", **profile) as sink:
            sink.write(encode_colours(index, schema))
    lines = [line for line in command_lines(readme)]
    assert [words(line)[1] for line in lines] == ["tile", "train", "evaluate", "predict", "vectorize"]
    type_in(lines, tmp_path)
    for made in ("metrics.json", "report.html", "maps/mill_classes.tif", "town.gpkg", "runs/first/best.ckpt"):
        assert (tmp_path / made).stat().st_size > 0, made
    with rasterio.open(tmp_path / "maps/town_classes.tif") as mapped:
        assert (mapped.height, mapped.width) == (1024, 2048)
        assert set(np.unique(mapped.read(1))) <= {0, 1, 2, 255}
    assert not list(Path(tmp_path).rglob("*.partial"))
