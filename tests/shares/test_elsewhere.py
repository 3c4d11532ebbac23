"""tile, evaluate and vectorize by the workers of a cluster against the same in this process, byte for byte."""

import os
import re
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import pointwise_model, tiny_meta

from rs_biformer.cli import main
from rs_biformer.errors import ConfigError, RasterError, RsBiformerError
from rs_biformer.jobs import evaluate_models, find_truths, load_model
from rs_biformer.schema import PRESETS
from rs_biformer.shares import cluster as cluster_module
from rs_biformer.shares import connected, executor
from rs_biformer.shares.cluster import Connection
from rs_biformer.shares.worker import Seen, do_share, versions

distributed = pytest.importorskip("distributed")


@dataclass(frozen=True)
class Sum:
    """A share: numbers, and files that the worker must see."""

    numbers: tuple[int, ...]
    files: tuple[Path | str, ...] = ()


def total(task: Sum) -> int:
    return sum(task.numbers)


def each(task: Sum) -> Iterator[int]:
    yield from task.numbers


def failing(task: Sum) -> int:
    raise KeyError(task.numbers)


def fatal(task: Sum) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


@pytest.fixture(scope="module")
def client() -> Iterator["distributed.Client"]:
    """Two workers in threads of this process: quick to start."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0", protocol="tcp"
        ) as local,
        distributed.Client(local, set_as_default=False) as client,
    ):
        yield client


TASKS = [Sum((number, 1)) for number in range(40)]


def test_results_come_in_the_order_of_the_tasks_wherever_they_are_made(client):
    wanted = [number + 1 for number in range(40)]
    for where in (None, client):
        with executor(where) as shares:
            assert list(shares.map(total, TASKS)) == wanted
            assert list(shares.map(total, [])) == []
            assert [list(found) for found in shares.map(each, TASKS[:3])] == [[0, 1], [1, 1], [2, 1]]


def test_tasks_are_made_as_they_can_be_begun_and_given_up_when_nobody_asks_any_more(client):
    made: list[int] = []

    def tasks() -> Iterator[Sum]:
        for task in TASKS:
            made.append(1)
            yield task

    results = Connection(client).map(total, tasks())
    next(results)
    assert 1 <= len(made) <= 2 * 4 + 1
    results.close()
    assert not client.futures


def test_what_a_share_raises_is_raised_here(client):
    with pytest.raises(KeyError, match="0, 1"):
        list(Connection(client).map(failing, TASKS))


def test_a_file_that_a_worker_does_not_see_is_named_with_the_rule(client, tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(b"123")
    seen = Seen.of([path, "https://host/b.tif"])
    assert seen.sizes == ((path, 3),)
    seen.require("tcp://10.0.0.7:4711")
    path.write_bytes(b"12345")
    with pytest.raises(
        RasterError, match=r"tcp://10\.0\.0\.7:4711 has another file under .*a\.tif, of 5 bytes and not 3;"
    ):
        seen.require("tcp://10.0.0.7:4711")
    path.unlink()
    with pytest.raises(RasterError, match=r"7:4711 cannot open .*a\.tif, which is there .* under the same paths"):
        seen.require("tcp://10.0.0.7:4711")
    with pytest.raises(RasterError, match=r"worker tcp://.* cannot open .*a\.tif; workers need the scenes"):
        list(Connection(client).map(total, [Sum((1,), (path,))]))
    assert "cannot open" in str(Connection(client).unseen([path]))
    assert Connection(client).unseen([tmp_path]) is None


def test_a_relative_path_is_the_callers_wherever_a_worker_runs(tmp_path, monkeypatch):
    (tmp_path / "a.tif").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    seen = Seen.of([Path("a.tif")])
    monkeypatch.chdir("/")
    seen.require("local")


def test_a_worker_with_other_versions_is_refused(client, monkeypatch):
    wanted = versions() | {"numpy": "0.1"}
    with pytest.raises(ConfigError, match=r"the worker at tcp://.* has numpy .* and not 0\.1: install the same"):
        client.submit(do_share, total, TASKS[0], Seen.of([]), wanted).result()


@pytest.mark.slow
def test_a_share_that_kills_every_worker_is_given_up():
    with executor("dask:2") as shares, pytest.raises(RsBiformerError, match="4 workers died .* want of memory"):
        list(shares.map(fatal, TASKS[:1]))


# ------------------------------------------------------------------------------------------------ the commands


HEIGHT, WIDTH = 600, 160


@pytest.fixture
def city(write_raster, tmp_path) -> Path:
    """Two scenes of several slabs with labels in colours, maps that differ from them, and confidences."""
    rng = np.random.default_rng(0)
    place = dict(crs="EPSG:32632")
    for number in range(2):
        coarse = rng.integers(0, 3, (HEIGHT // 40, WIDTH // 40)).astype(np.uint8)
        index = coarse.repeat(40, 0).repeat(40, 1)
        colours = np.array([(255, 255, 255), (0, 0, 255), (0, 255, 0)], np.uint8)[index].transpose(2, 0, 1)
        image = (index[None] * 60 + rng.integers(0, 60, (3, HEIGHT, WIDTH))).astype(np.uint8)
        mapped = np.where(rng.random(index.shape) < 0.002, (index + 1) % 3, index).astype(np.uint8)
        mapped[:50, :70] = 255
        write_raster(f"scene{number}.tif", image, photometric="rgb", **place)
        write_raster(f"scene{number}_label.tif", colours, photometric="rgb", **place)
        write_raster(f"scene{number}_classes.tif", mapped[None], nodata=255, **place)
        write_raster(
            f"scene{number}_confidence.tif", rng.integers(0, 251, (1, HEIGHT, WIDTH)).astype(np.uint8), **place
        )
    (tmp_path / "classes.yaml").write_text(
        "name: three\nclasses:\n"
        "  - {name: road, colour: [255, 255, 255]}\n  - {name: roof, colour: [0, 0, 255]}\n"
        "  - {name: tree, colour: [0, 255, 0]}\n"
    )
    return tmp_path


def commands(city: Path, out: Path) -> list[list[str]]:
    scenes = [str(city / f"scene{number}.tif") for number in range(2)]
    labels = [str(city / f"scene{number}_label.tif") for number in range(2)]
    maps = [str(city / f"scene{number}_classes.tif") for number in range(2)]
    sure = [str(city / f"scene{number}_confidence.tif") for number in range(2)]
    schema = ["--classes", str(city / "classes.yaml")]
    tile = ["tile", *scenes, "--labels", str(city / "{stem}_label.tif"), *schema, "--window", "128", "--overlap", "0"]
    measure = ["evaluate", "--prediction", *maps, "--label", *labels, *schema, "--scene", *scenes]
    return [
        [*tile, "--split", "train=*", "--chips", "--out", str(out / "tiles")],
        [*measure, "--confidence", *sure, "--boundary", "2"] + ["--samples", "100", "--out", str(out / "result.json")],
        ["vectorize", maps[0], "--confidence", sure[0], "--out", str(out / "plain.gpkg")],
        ["vectorize", maps[0], "--confidence", sure[0], "--min-area", "40", "--out", str(out / "sieved.fgb")],
        ["vectorize", maps[0], "--regularise", "class 1", "--min-area", "40", "--out", str(out / "squared.fgb")],
    ]


DATE = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?")
"""Of its making: a GeoPackage holds it."""


def made(folder: Path) -> dict[str, bytes]:
    """The bytes of all that a run made; its own name in them is that of every run."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: DATE.sub(b"", content.replace(str(folder).encode(), b"OUT")) for name, content in found.items()}


@pytest.fixture
def short(monkeypatch) -> None:
    """Shares that small rasters have many of."""
    monkeypatch.setattr("rs_biformer.data.counting._PIXELS_AT_ONCE", 2**15)
    monkeypatch.setattr("rs_biformer.evaluation.stream._PIXELS_AT_ONCE", 1)
    monkeypatch.setattr("rs_biformer.raster.vector._SLAB_PIXELS", 2**14)
    monkeypatch.setattr("rs_biformer.raster.tracing._SHARE_PIXELS", 2**15)


def test_tile_evaluate_and_vectorize_write_the_bytes_of_a_run_without_a_cluster(client, city, short, capsys):
    for name, where in (("local", ["--workers", "1"]), ("again", ["--cluster", client.scheduler.address])):
        for command in commands(city, city / name):
            own = where if command[0] == "tile" or name == "again" else []
            assert main([*command, *own]) == 0, capsys.readouterr().err
    here, there = made(city / "local"), made(city / "again")
    assert here.keys() == there.keys() and len([name for name in here if name.endswith(".tif")]) > 10
    assert [name for name in here if here[name] != there[name]] == []


@pytest.mark.slow
def test_a_worker_that_is_killed_changes_nothing(city, short, monkeypatch):
    """Each command loses its only worker with the first share, and what it had in hand is done by the next one."""
    for command in commands(city, city / "local"):
        assert main([*command, *(["--workers", "1"] if command[0] == "tile" else [])]) == 0
    killed: list[int] = []
    awaited = cluster_module._awaited

    def kill_once(waiting: deque) -> object:
        if not killed or killed[-1] == 0:
            (victim,) = connection.client.run(os.getpid).values()
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)
        return awaited(waiting)

    monkeypatch.setattr(cluster_module, "_awaited", kill_once)
    with connected("dask:1") as connection:
        monkeypatch.setattr(cluster_module, "connect", lambda *_: nullcontext(connection))
        for number, command in enumerate(commands(city, city / "again")):
            killed.append(0)
            assert main([*command, "--cluster", "dask"]) == 0
            assert len([one for one in killed if one]) == number + 1
    assert made(city / "local") == made(city / "again")


def test_maps_of_a_model_are_compared_by_workers_that_see_them_and_here_otherwise(client, write_raster, monkeypatch):
    rng = np.random.default_rng(0)
    index = rng.integers(0, 6, (7, 9)).repeat(10, 0).repeat(10, 1)
    colours = np.array(PRESETS["vaihingen"].colours, np.uint8)[index].transpose(2, 0, 1)
    scene = write_raster("a.tif", rng.integers(1, 256, (3, 70, 90)).astype(np.uint8), photometric="rgb")
    truths = find_truths([str(scene)], [str(write_raster("a_label.tif", colours, photometric="rgb"))])
    model, read = load_model(pointwise_model(tiny_meta(window=64))), Connection.map
    told: list[str] = []
    counted: list[bool] = []

    def figures(folder: str, **where: object) -> object:
        found = evaluate_models({"m": model}, truths, scene.parent / folder, say=told.append, device="cpu", **where)
        return found.results[0].scores.confusion.matrix.tolist()

    monkeypatch.setattr(Connection, "map", lambda *given: (counted.append(True), read(*given))[1])
    wanted = figures("local")
    assert not counted and figures("seen", cluster=client) == wanted
    assert len(counted) == 1 and not told
    monkeypatch.setattr(Connection, "unseen", lambda self, files: f"worker tcp://10.0.0.7:1 cannot open {files[0]}")
    assert figures("unseen", cluster=client) == wanted
    assert len(counted) == 1
    (line,) = told
    assert line.startswith("note: the maps are compared here")
    assert line.endswith(f"do not see the folder {scene.parent / 'unseen'}")
