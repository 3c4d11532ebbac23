"""The command line killed at any moment, and the same command again: the same bytes as if nothing had happened.

Processes are forked from one that has imported everything, so that many of them take little time.
"""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from tiny_checkpoint import pointwise_model, tiny_meta, write_checkpoint
from torch import nn

from rs_biformer.errors import ConfigError
from rs_biformer.predict import predict_scene
from rs_biformer.predict.mapping import map_scene
from rs_biformer.predict.options import Options
from rs_biformer.predict.quality import Sight

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["rs_biformer.cli.predict", "rs_biformer.predict", "rs_biformer.checkpoint"])
LAYERS = ("classes", "probabilities", "confidence")


def command_line(argv: list[str], log: str) -> None:
    """What the shell would run, in a forked process."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    from rs_biformer.cli import main

    sys.exit(main(argv))


class Command:
    """`rs-biformer predict` of one scene into one folder, as often as wanted."""

    def __init__(self, folder: Path, scene: Path, checkpoint: Path) -> None:
        self.out = folder / "maps"
        self.log = folder / "log.txt"
        self.argv = ["predict", scene, "--checkpoint", checkpoint, "--out", self.out]
        self.argv += ["--probabilities", "--confidence", "--batch-size", 2, "--device", "cpu", "--precision", "32"]
        self.argv += ["--passes", "fused"]  # the way that bfloat16 takes, on every machine
        self.argv += ["--quality", "best"]  # small windows: pieces enough to be killed between them
        self.staging = [self.out / f".{scene.stem}_{layer}.tif.partial" for layer in LAYERS]
        self.maps = [self.out / f"{scene.stem}_{layer}.tif" for layer in LAYERS]

    def start(self, *more: object) -> multiprocessing.Process:
        process = FORK.Process(target=command_line, args=([str(part) for part in (*self.argv, *more)], str(self.log)))
        process.start()
        return process

    def run(self, *more: object) -> int:
        process = self.start(*more)
        process.join()
        return process.exitcode

    def pieces(self) -> int:
        return len(list(self.staging[0].glob("*.tif")))

    def assembling(self) -> bool:
        return any((folder / "map.partial").exists() for folder in self.staging)

    def bytes(self) -> list[bytes]:
        """The maps; nothing of what they were made of is left beside them."""
        assert not [path for path in self.out.iterdir() if path.name.startswith(".")]
        return [path.read_bytes() for path in self.maps]


def kill_when(process: multiprocessing.Process, ready: Callable[[], bool], number: int = signal.SIGKILL) -> bool:
    """Send a signal as soon as `ready()`; False when the process was through before."""
    while not ready():
        if not process.is_alive():
            return False
        time.sleep(0.0005)
    os.kill(process.pid, number)
    process.join()
    return process.exitcode != 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "best.ckpt")


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "town.tif"
    image = np.random.default_rng(0).integers(1, 256, (3, 400, 100)).astype(np.uint8)
    image[:, 100:220, :60] = 0
    place = {"crs": "EPSG:25832", "transform": from_origin(500_000, 5_400_000, 0.5, 0.5)}
    with rasterio.open(
        path, "w", driver="GTiff", height=400, width=100, count=3, dtype="uint8", photometric="rgb", nodata=0, **place
    ) as sink:
        sink.write(image)
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, scene, checkpoint) -> list[bytes]:
    command = Command(tmp_path_factory.mktemp("undisturbed"), scene, checkpoint)
    assert command.run() == 0, command.log.read_text()
    return command.bytes()


@pytest.fixture
def command(tmp_path, scene, checkpoint) -> Command:
    return Command(tmp_path, scene, checkpoint)


def moments(number: int) -> Iterator[tuple[str, float]]:
    """(what to wait for, how much of it): pieces on the disk, the last step, seconds since the first piece."""
    rng = np.random.default_rng(4)
    for index in range(number):
        kind = ("piece", "assembling", "seconds")[index % 3]
        yield kind, float({"piece": rng.integers(1, 12), "assembling": 0, "seconds": rng.uniform(0, 0.8)}[kind])


def moment(command: Command, kind: str, amount: float) -> Callable[[], bool]:
    if kind == "piece":
        return lambda: command.pieces() >= amount
    if kind == "assembling":
        return command.assembling
    began: list[float] = []

    def later() -> bool:
        if not began and command.pieces():
            began.append(time.monotonic())
        return bool(began) and time.monotonic() >= began[0] + amount

    return later


def killed_and_continued(command: Command, kind: str, amount: float) -> tuple[bool, list[bytes]]:
    killed = kill_when(command.start(), moment(command, kind, amount))
    assert not killed or any(folder.exists() for folder in command.staging)
    assert command.run() == 0, command.log.read_text()
    return killed, command.bytes()


@pytest.mark.parametrize(("kind", "amount"), list(moments(3)))
def test_killed_at_a_random_moment_the_same_command_ends_with_the_same_bytes(command, undisturbed, kind, amount):
    killed, found = killed_and_continued(command, kind, amount)
    assert killed
    assert found == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute where nothing else runs
def test_killed_at_twenty_random_moments_it_ends_with_the_same_bytes_each_time(
    tmp_path, scene, checkpoint, undisturbed
):
    killed = 0
    for number, (kind, amount) in enumerate(moments(20)):
        folder = tmp_path / str(number)
        folder.mkdir()
        interrupted, found = killed_and_continued(Command(folder, scene, checkpoint), kind, amount)
        killed += interrupted
        assert found == undisturbed, f"after {kind} {amount}"
    assert killed == 20


@pytest.mark.slow
def test_killed_again_and_again_it_gets_there(command, undisturbed):
    kills = 0
    while kill_when(command.start(), moment(command, "piece", command.pieces() + 2)):
        kills += 1
    assert kills >= 3
    assert command.bytes() == undisturbed


def test_the_command_as_typed_stops_at_ctrl_c_and_says_that_it_goes_on(command, undisturbed):
    python = [sys.executable, "-m", "rs_biformer", *map(str, command.argv)]
    with subprocess.Popen(python, stderr=subprocess.PIPE, text=True) as process:
        while not command.pieces():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]
    assert process.returncode == 130
    assert said.rstrip().endswith("predict: interrupted: the same command goes on from the last finished strip")
    assert command.pieces() > 0
    assert command.run() == 0, command.log.read_text()
    assert command.bytes() == undisturbed


def test_another_model_or_option_is_refused_until_it_is_told_to_start_over(command, undisturbed, tmp_path):
    assert kill_when(command.start(), lambda: command.pieces() >= 3, signal.SIGTERM)
    assert "interrupted: the same command goes on" in command.log.read_text()
    assert command.run("--overlap", 0.25) == 2
    line = command.log.read_text().splitlines()[-1]
    assert "its overlap was 32 pixels and is now 16 pixels; use --restart to start over" in line
    command.argv[3] = write_checkpoint(tmp_path / "other.ckpt", tiny_meta(std=(1.0, 2.0, 3.0)))
    assert command.run() == 2
    line = command.log.read_text().splitlines()[-1]
    assert re.search(r"its model was TrainedModel \w{32} and is now TrainedModel \w{32}; use --restart", line)
    assert command.pieces() >= 3
    assert command.run("--restart") == 0, command.log.read_text()
    assert command.bytes() != undisturbed


class Interrupted(Exception):
    pass


class Counting:
    """Counts the windows that a model has seen, and stops it at one of them."""

    def __init__(self, stop: float = float("inf")) -> None:
        self.seen, self.stop = 0, stop

    def __call__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.seen += len(inputs[0])
        if self.seen > self.stop:
            raise Interrupted


def mapped(scene: Path, out: Path, count: Counting, model: nn.Module | None = None, **options: object) -> Path:
    model = model or pointwise_model()
    model.register_forward_pre_hook(count)
    return predict_scene(
        model, scene, out, **({"classes": 6, "window": 32, "batch_size": 2, "device": "cpu"} | options)
    )


def test_what_is_finished_is_not_inferred_again(scene, tmp_path):
    whole, first, second = Counting(), Counting(stop=40), Counting()
    wanted = mapped(scene, tmp_path / "whole.tif", whole).read_bytes()
    with pytest.raises(Interrupted):
        mapped(scene, tmp_path / "map.tif", first)
    told: list[tuple[int, int, int]] = []
    found = mapped(scene, tmp_path / "map.tif", second, progress=lambda *done: told.append((*done, second.seen)))
    assert found.read_bytes() == wanted
    assert 0 < second.seen < whole.seen - 20
    assert max(done for done, _, seen in told if seen == 0) > 20
    assert told[-1][0] == told[-1][1]


def test_a_map_asked_for_in_addition_is_made_and_the_others_are_kept(scene, tmp_path):
    with pytest.raises(Interrupted):
        mapped(scene, tmp_path / "map.tif", Counting(stop=40))
    names = ("map.tif", "confidence.tif")
    mapped(scene, tmp_path / names[0], Counting(), confidence=tmp_path / names[1])
    mapped(scene, tmp_path / "whole.tif", Counting(), confidence=tmp_path / "sure.tif")
    for name, other in zip(names, ("whole.tif", "sure.tif"), strict=True):
        assert (tmp_path / name).read_bytes() == (tmp_path / other).read_bytes()


def test_a_scene_that_was_changed_in_between_is_refused(scene, tmp_path):
    copy = tmp_path / "scene.tif"
    copy.write_bytes(scene.read_bytes())
    with pytest.raises(Interrupted):
        mapped(copy, tmp_path / "map.tif", Counting(stop=40))
    os.utime(copy, ns=(0, 0))
    with pytest.raises(ConfigError, match=r"its file .*scene.tif was \d+ bytes of .* and is now .* of 1970-01-01"):
        mapped(copy, tmp_path / "map.tif", Counting())
    mapped(copy, tmp_path / "map.tif", Counting(), restart=True)


def test_nothing_is_kept_where_it_is_not_wanted_or_cannot_be_trusted(scene, tmp_path):
    with pytest.raises(Interrupted):
        mapped(scene, tmp_path / "map.tif", Counting(stop=40), resume=False)
    assert not list(tmp_path.iterdir())

    model, count = pointwise_model(), Counting(stop=40)
    model.register_forward_pre_hook(count)
    with pytest.raises(Interrupted):
        predict_scene(lambda batch: model(batch, None), scene, tmp_path / "map.tif", classes=6, window=32, batch_size=2)
    assert not list(tmp_path.iterdir())


def test_a_map_begun_in_one_way_is_not_continued_in_another(scene, tmp_path):
    def stop(done: int, _: int) -> None:
        if done > 40:
            raise Interrupted

    def mapped(model: nn.Module, **options: object) -> bytes:
        how = {"batch_size": 2, "device": "cpu", "precision": "32", "passes": "plain"} | options
        sight = Sight(32, grows=True)
        progress = how.pop("progress", None)
        paths = {"classes": tmp_path / "map.tif"}
        map_scene(model, scene, paths, classes=6, options=Options.of(**how), progress=progress, sight=sight)
        return paths["classes"].read_bytes()

    wanted = mapped(pointwise_model())
    with pytest.raises(Interrupted):
        mapped(pointwise_model(), quality="best", progress=stop)
    with pytest.raises(ConfigError, match="its window was 32 and is now 64; use --restart"):
        mapped(pointwise_model())
    with pytest.raises(ConfigError, match="its passes was plain and is now fused; use --restart"):
        mapped(pointwise_model(), quality="best", passes="fused")
    hooked = pointwise_model()
    hooked.register_forward_hook(lambda *_: None)  # and so it is not fused, and goes on
    assert mapped(hooked, quality="best", passes="fused") != wanted  # its metadata tells other windows
    assert mapped(pointwise_model()) == wanted


def test_a_model_that_is_another_in_the_same_process_is_told(scene, tmp_path):
    with pytest.raises(Interrupted):
        mapped(scene, tmp_path / "map.tif", Counting(stop=40))
    other = pointwise_model()
    other.network.bias.data[0] += 1
    with pytest.raises(ConfigError, match="its model was .* use --restart"):
        mapped(scene, tmp_path / "map.tif", Counting(), other)
