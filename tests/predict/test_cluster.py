"""Strips made by the workers of a cluster against those made in this process."""

import ast
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_checkpoint import tiny_meta
from torch import Tensor, nn

import rs_biformer
from rs_biformer.checkpoint import TrainedModel
from rs_biformer.errors import CheckpointError, ConfigError, RasterError, RsBiformerError
from rs_biformer.jobs import ScenesFailed, map_scenes
from rs_biformer.predict import Ensemble, predict_scene
from rs_biformer.predict import cluster as cluster_module
from rs_biformer.predict.cluster import Cluster, connect, run_length
from rs_biformer.predict.engine import infer_strips
from rs_biformer.predict.forward import hardware, prepare
from rs_biformer.predict.outputs import Layers
from rs_biformer.predict.plan import Plan, Run, make_plan
from rs_biformer.predict.recipe import Recipe
from rs_biformer.raster.scene import Scene
from rs_biformer.schema import PRESETS, ClassSchema

distributed = pytest.importorskip("distributed")

CLASSES, WINDOW = 4, 16
LAYERS = Layers(("classes", "confidence"), CLASSES)
CPU = torch.device("cpu")
FOUR = ClassSchema("four", PRESETS["vaihingen"].classes[:4], PRESETS["vaihingen"].colours[:4])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, CLASSES, 1)).eval()


def plan_of(scene: Scene, columns: int | None = None, overlap: float = 0.5) -> Plan:
    plan = make_plan(
        scene.height, scene.width, planes=CLASSES, bands=3, itemsize=1, window=WINDOW, overlap=overlap, batch_size=4
    )
    return plan if columns is None else replaced(plan, columns)


def replaced(plan: Plan, columns: int) -> Plan:
    from dataclasses import replace

    return replace(plan, columns=tuple((at, min(at + columns, plan.width)) for at in range(0, plan.width, columns)))


def all_strips(plan: Plan) -> list[tuple[int, int]]:
    return [(lane, index) for lane in range(len(plan.columns)) for index in range(plan.strip_count)]


def alone(model: nn.Module, scene: Scene, plan: Plan, layers: Layers = LAYERS) -> dict:
    """The maps of all strips, made in this process in one run per lane."""
    made = prepare(Recipe(layers.classes), model, CPU)
    return {
        (strip.lane, strip.index): maps
        for lane in range(len(plan.columns))
        for strip, maps in infer_strips(scene, plan, made, Run(lane, 0, plan.strip_count), layers)
    }


def together(cluster: Cluster, model, scene: Scene, plan: Plan, missing=None, device="cpu") -> dict:
    missing = all_strips(plan) if missing is None else missing
    found = {}
    for strip, maps in cluster.infer(model, Recipe(CLASSES), device, scene, plan, LAYERS, missing):
        assert (strip.lane, strip.index) not in found
        found[strip.lane, strip.index] = maps
    return found


def assert_same(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for place, maps in wanted.items():
        for name, layer in maps.items():
            np.testing.assert_array_equal(found[place][name], layer)


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


@pytest.fixture
def cluster(client) -> Iterator[Cluster]:
    with Cluster(client) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As many as the workers have: the bytes of a convolution depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def scene(write_raster) -> Scene:
    image = np.random.default_rng(0).integers(1, 256, (3, 150, 90)).astype(np.uint8)
    image[:, 40:75, 20:] = 0  # strips without a valid pixel, and with few
    return Scene(write_raster("scene.tif", image, nodata=0))


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
@pytest.mark.parametrize("columns", [None, 32])
def test_workers_make_the_bytes_of_one_process(cluster, scene, overlap: float, columns: int | None):
    plan = plan_of(scene, columns, overlap)
    assert_same(together(cluster, network(), scene, plan), alone(network(), scene, plan))


def test_only_the_strips_that_are_missing_are_made(cluster, scene):
    plan = plan_of(scene, 32)
    wanted = alone(network(), scene, plan)
    missing = [place for number, place in enumerate(all_strips(plan)) if number % 7 in (1, 2, 5)]
    assert_same(together(cluster, network(), scene, plan, missing), {place: wanted[place] for place in missing})


def test_nothing_missing_is_nothing_to_do(cluster, scene):
    assert together(cluster, network(), scene, plan_of(scene), []) == {}


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.75])
@pytest.mark.parametrize("workers", [1, 3, 16, 200])
@pytest.mark.parametrize("height", [1, 17, 100, 500, 4000])
def test_tasks_leave_no_worker_idle_and_otherwise_infer_little_twice(height: int, overlap: float, workers: int):
    plan = make_plan(height, 40, planes=CLASSES, bands=3, itemsize=1, window=WINDOW, overlap=overlap, batch_size=2)
    length = run_length(plan, plan.strip_count, workers, 2)
    tasks = plan.runs(all_strips(plan), length)
    assert len(tasks) >= min(plan.strip_count, (workers + 1) // 2)
    twice = sum(run.first - plan.lead_in(run.lane, run.first) for run in tasks)
    assert twice <= 0.1 * plan.strip_count or length == -(-plan.strip_count // workers)


def test_tasks_of_a_large_scene_stay_short_so_that_little_is_lost():
    plan = make_plan(50_000, 50_000, planes=6, bands=3, itemsize=1, window=256, batch_size=8, max_memory=2 * 10**9)
    strips = all_strips(plan)
    assert 10 <= run_length(plan, len(strips), 8, 1) <= 20


def test_a_task_with_many_layers_is_short_enough_to_be_held():
    plan = make_plan(50_000, 8192, planes=60, bands=3, itemsize=1, window=512, batch_size=8)
    strip = plan.strip(0, 0).output
    length = run_length(plan, plan.strip_count, 4, pixel_bytes=120)
    assert length * strip.height * strip.width * 120 <= 256 * 2**20


def test_a_model_is_sent_once_for_many_scenes_and_taken_back(client, scene, monkeypatch):
    sent: list[str] = []
    register = client.register_plugin
    monkeypatch.setattr(client, "register_plugin", lambda plugin, name: (sent.append(name), register(plugin, name)))
    plan = plan_of(scene)
    with Cluster(client) as cluster:
        for _ in range(2):
            together(cluster, network(), scene, plan)
        assert len(sent) == 1
        together(cluster, network().double().float().requires_grad_(False), scene, plan)
        held = client.run(lambda dask_worker: sorted(dask_worker.plugins))
        assert all(set(sent) <= set(names) for names in held.values())
    held = client.run(lambda dask_worker: sorted(dask_worker.plugins))
    assert not any(set(sent) & set(names) for names in held.values())


def test_a_worker_that_joins_later_gets_the_model(client, cluster, scene):
    together(cluster, network(), scene, plan_of(scene))
    (name,) = cluster._models
    before = workers_of(client)
    client.cluster.scale(3)
    client.wait_for_workers(3)
    (late,) = workers_of(client) - before
    assert name in client.run(lambda dask_worker: list(dask_worker.plugins), workers=[late])[late]
    client.cluster.scale(2)
    while len(workers_of(client)) > 2:
        time.sleep(0.05)


def workers_of(client) -> set[str]:
    return set(client.nthreads())


def test_few_tasks_are_out_at_a_time(client, cluster, scene, monkeypatch):
    plan, submit, submitted = plan_of(scene), client.submit, []
    monkeypatch.setattr(client, "submit", lambda *task, **options: (submitted.append(1), submit(*task, **options))[1])
    monkeypatch.setattr(cluster_module, "run_length", lambda *_: 1)
    most = 0
    for number, _ in enumerate(cluster.infer(network(), Recipe(CLASSES), "cpu", scene, plan, LAYERS, all_strips(plan))):
        most = max(most, len(submitted) - number)
    assert len(submitted) == plan.strip_count > most
    assert most <= 2 * 2 + 1  # two for each worker, and the one in hand


def test_a_generator_that_is_closed_takes_its_tasks_back(client, cluster, scene, monkeypatch):
    monkeypatch.setattr(cluster_module, "run_length", lambda *_: 1)
    plan = plan_of(scene)
    strips = cluster.infer(network(), Recipe(CLASSES), "cpu", scene, plan, LAYERS, all_strips(plan))
    next(strips)
    strips.close()
    assert not client.futures


class Failing(nn.Module):
    """A model that raises what it is given."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, batch: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize(
    "error", [CheckpointError("the weights"), KeyError("a name"), OSError(5, "of the model's own")]
)
def test_what_a_model_raises_on_a_worker_is_raised_here(cluster, scene, error: Exception):
    with pytest.raises(type(error)) as caught:
        together(cluster, Failing(error), scene, plan_of(scene))
    assert caught.value.args == error.args


def test_a_file_that_workers_cannot_read_is_named(cluster, scene):
    plan = plan_of(scene)
    scene.path.unlink()
    with pytest.raises(RasterError, match="worker tcp://.* cannot open .*scene.tif.*under the same paths"):
        together(cluster, network(), scene, plan)


def test_a_relative_path_leads_workers_in_other_folders_to_the_scene(cluster, scene, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(scene.path.parent)
    relative = Scene(scene.path.name)
    sent = pickle.dumps(relative)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert pickle.loads(sent).path == scene.path


def test_a_model_that_gives_nan_is_told_with_its_window(cluster, scene):
    model = network()
    model[2].bias.data[1] = torch.nan
    with pytest.raises(RsBiformerError, match="NaN for the window at row"):
        together(cluster, model, scene, plan_of(scene))


def test_a_model_that_cannot_be_pickled_is_refused(cluster, scene):
    model = network()
    model.lock = threading.Lock()
    with pytest.raises(ConfigError, match="cannot be sent to the workers .*lock"):
        together(cluster, model, scene, plan_of(scene))


def test_a_function_of_the_callers_own_script_is_a_model_as_well(cluster, scene):
    scale = 0.5
    plan = plan_of(scene)
    model = lambda batch: torch.cat([batch * scale, batch.sum(1, keepdim=True) / 4], 1)  # noqa: E731
    assert_same(together(cluster, model, scene, plan), alone(model, scene, plan))


def test_a_package_that_the_workers_lack_is_named(cluster, scene, tmp_path, monkeypatch):
    (tmp_path / "mymodels.py").write_text("from torch import nn\nclass Mine(nn.Identity): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    from mymodels import Mine

    packed = cluster_module._packed(Mine(), Recipe(CLASSES), "cpu")
    monkeypatch.setattr(cluster_module, "_packed", lambda *_: packed)
    monkeypatch.delitem(sys.modules, "mymodels")
    monkeypatch.setattr(sys, "path", [part for part in sys.path if part != str(tmp_path)])
    with pytest.raises(ConfigError, match="the workers cannot import mymodels"):
        together(cluster, network(), scene, plan_of(scene))


def test_the_survey_tells_what_the_workers_are(cluster):
    found = cluster.survey("cpu", network())
    assert (found.count, found.hardware) == (2, hardware(CPU, 1))
    with pytest.raises(ConfigError, match="device 'cuda:77' cannot be used"):
        cluster.survey("cuda:77", network())


def test_a_worker_with_other_versions_is_refused_before_it_is_given_work(cluster, scene, monkeypatch):
    from rs_biformer.predict import worker

    ours = worker.versions(("torch",))

    def describe(names: tuple[str, ...], device: str, movable: bool, dask_worker: object) -> worker.Facts:
        return worker.Facts(ours | {"torch": "1.0"}, "cpu", False)

    monkeypatch.setattr(worker, "describe", describe)
    with pytest.raises(
        ConfigError, match=rf"worker at tcp://.* has torch 1.0 and not {re.escape(torch.__version__)}: install"
    ):
        cluster.survey("cpu", network())


def test_a_worker_that_joins_with_other_versions_is_refused_as_well(cluster, scene, monkeypatch):
    from rs_biformer.predict import worker

    both = iter([worker.versions(("torch",)) | {"torch": "1.0"}])
    monkeypatch.setattr(worker, "versions", lambda names, ours=worker.versions: next(both, None) or ours(names))
    with pytest.raises(ConfigError, match=r"and not 1.0: install the same everywhere"):
        together(cluster, network(), scene, plan_of(scene))


def test_a_worker_that_joins_with_other_hardware_is_refused(cluster, scene):
    plan, kinds = plan_of(scene), cluster.survey("cpu", network()).kinds
    assert kinds == (hardware(CPU, 1),)
    found = list(cluster.infer(network(), Recipe(CLASSES), "cpu", scene, plan, LAYERS, all_strips(plan), kinds))
    assert len(found) == len(all_strips(plan))
    with pytest.raises(ConfigError, match=rf"joined with {hardware(CPU, 1)}, and the map was begun on NVIDIA H100"):
        list(cluster.infer(network(), Recipe(CLASSES), "cpu", scene, plan, LAYERS, all_strips(plan), ("NVIDIA H100",)))


def test_a_model_that_was_not_ready_at_the_first_try_is_made_ready_at_the_next(monkeypatch):
    """The worker's first attempt may fail for want of memory: its bytes must still be there for the next task."""
    import pickle

    from rs_biformer.predict import worker

    sent = worker.SentModel(pickle.dumps((network(), Recipe(CLASSES), "cpu")))
    sent.setup(None)
    with monkeypatch.context() as patch:
        patch.setattr(
            "rs_biformer.predict.forward.prepare",
            lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")),
        )
        for _ in range(2):
            with pytest.raises(torch.OutOfMemoryError), sent.in_hand():
                pass
    with sent.in_hand() as (prepared, device, model), torch.inference_mode():
        assert device == CPU and isinstance(model, nn.Sequential)
        assert len(list(prepared.predict(torch.zeros(1, 3, 16, 16), torch.ones(1, 16, 16, dtype=torch.bool)))) == 1
    assert sent._packed is None


def test_an_open_connection_is_used_as_it_is(client, cluster):
    with connect(cluster) as same:
        assert same is cluster
    with connect(client) as one:
        assert one.survey("cpu", network()).count == 2
    assert client.status == "running"
    with connect(client.scheduler.address) as one:
        assert one.survey("cpu", network()).count == 2


@pytest.mark.parametrize("text", ["dask:many", "dask:0", "carrier-pigeon://home", 7])
def test_what_is_no_cluster_is_refused(text):
    with pytest.raises(ConfigError, match=f"{text}"), connect(text):
        pass


def test_an_address_where_nobody_answers_is_refused():
    import dask

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "500ms"}),
        pytest.raises(ConfigError, match="no Dask scheduler answers at tcp://127.0.0.1:9 "),
        connect("tcp://127.0.0.1:9"),
    ):
        pass


@pytest.mark.filterwarnings("ignore:Couldn't detect a suitable IP address:RuntimeWarning")  # a machine without network
def test_a_scheduler_without_workers_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr("rs_biformer.shares.cluster.PATIENCE", 0.2)
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as local,
        distributed.Client(local, set_as_default=False) as client,
        Cluster(client) as cluster,
        pytest.raises(ConfigError, match="has no worker after 0.2 s; start some with: dask worker"),
    ):
        cluster.survey("cpu", network())


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"pip install 'rs_biformer\[cluster\]'"), connect("dask"):
        pass


def test_dask_is_not_imported_unless_it_is_asked_for():
    """Modules that import it, or worker.py that does, when they are themselves imported."""
    importers = set()
    for path in Path(rs_biformer.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom | ast.Import):
                text = ast.unparse(node)
                importers |= {path.name} if re.search(r"\b(dask|distributed|predict\.worker)\b", text) else set()
    assert importers == {"worker.py"}


def predict(scene: Scene, out: Path, **options: object) -> Path:
    names = ("probabilities", "confidence", "margin", "entropy", "disagreement")
    maps = {name: out.with_name(f"{out.stem}_{name}.tif") for name in names}
    model = TrainedModel(network(), tiny_meta(window=WINDOW, schema=FOUR))
    return predict_scene(model, scene, out, classes=FOUR, window=WINDOW, batch_size=4, tta="flips", **maps, **options)


def test_a_scene_mapped_on_a_cluster_has_the_bytes_of_one_that_is_not(client, scene, tmp_path):
    told: list[tuple[int, int]] = []
    predict(scene, tmp_path / "here" / "map.tif")
    predict(scene, tmp_path / "there" / "map.tif", cluster=client, progress=lambda *done: told.append(done))
    here, there = (sorted((tmp_path / name).iterdir()) for name in ("here", "there"))
    assert [path.name for path in here] == [path.name for path in there]
    assert len([path for path in here if path.suffix == ".tif"]) == 6
    for one, other in zip(here, there, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]


def test_an_ensemble_on_a_cluster_has_the_bytes_of_one_that_is_not(client, scene, tmp_path):
    members = [TrainedModel(network(), tiny_meta(window=WINDOW, schema=FOUR)) for _ in range(2)]
    torch.nn.init.normal_(members[1].network[0].weight)
    options = dict(classes=FOUR, window=WINDOW, batch_size=4)
    for name, where in (("here", {}), ("there", {"cluster": client})):
        maps = {layer: tmp_path / name / f"{layer}.tif" for layer in ("confidence", "disagreement")}
        predict_scene(Ensemble(members), scene, tmp_path / name / "map.tif", **maps, **options, **where)
    for path in (tmp_path / "here").iterdir():
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()
    alone = predict_scene(members[0], scene, tmp_path / "one.tif", **options)
    assert alone.read_bytes() != (tmp_path / "here" / "map.tif").read_bytes()


def test_small_scenes_are_mapped_side_by_side_and_told_one_after_the_other(client, write_raster, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(8):
        write_raster(f"in/{number}.tif", rng.integers(1, 256, (3, 40, 50)).astype(np.uint8), photometric="rgb")
    (tmp_path / "in" / "5.tif").write_bytes((tmp_path / "in" / "5.tif").read_bytes()[:-3000])  # its header is whole
    model = TrainedModel(Slow(0.1), tiny_meta(window=WINDOW * 4, schema=FOUR))
    events: dict[str, list] = {}
    for name, where in (("here", {}), ("there", {"cluster": client})):
        events[name] = []
        with pytest.raises(ScenesFailed, match="1 of 8 scenes are not mapped.*5"):
            map_scenes(
                tmp_path / "in", model, tmp_path / name, window=WINDOW * 4, tell=events[name].append,
                allow_gsd_mismatch=True, device="cpu", **where,
            )  # fmt: skip
    told = {name: [(type(one).__name__, getattr(one, "name", "")) for one in events[name]] for name in events}
    assert told["here"] == told["there"]
    assert (tmp_path / "here" / "7_classes.tif").is_file()
    for path in (tmp_path / "here").iterdir():
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()


def test_an_ensemble_is_surveyed_by_all_its_back_ends(cluster, monkeypatch):
    from rs_biformer.predict import ensemble, worker

    found = cluster.survey("cpu", Ensemble([network(), network()]))
    assert found.kinds == (hardware(CPU, 1),)
    assert worker.versions(("torch",))["torch"] == torch.__version__
    assert ensemble.is_movable(Ensemble([network(), network()]))
    assert not ensemble.is_movable(Ensemble([network(), lambda batch: batch]))


def test_what_a_cluster_left_unfinished_is_finished_without_it(client, scene, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_module, "run_length", lambda *_: 2)
    wanted = predict(scene, tmp_path / "whole.tif").read_bytes()

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        predict(scene, tmp_path / "map.tif", cluster=client, progress=stop)
    inferred: list[int] = []
    monkeypatch.setattr(TrainedModel, "forward", counted(TrainedModel.forward, inferred))
    assert predict(scene, tmp_path / "map.tif").read_bytes() == wanted
    some = sum(inferred)
    inferred.clear()
    predict(scene, tmp_path / "map.tif")
    assert 0 < some < sum(inferred)


def counted(forward: Callable[..., Tensor], sizes: list[int]) -> Callable[..., Tensor]:
    def count(self: nn.Module, raw: Tensor, valid: Tensor) -> Tensor:
        sizes.append(len(raw))
        return forward(self, raw, valid)

    return count


class Slow(nn.Module):
    """A model that takes its time, so that a worker can be killed at work."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.network, self.seconds = network(), seconds

    def forward(self, batch: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return self.network(batch)


@pytest.mark.parametrize("workers", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_the_strips_of_a_worker_that_was_killed_are_made_again(scene, workers: int):
    """Also where it was the only one, and its successor has neither the model nor what was finished."""
    plan = plan_of(scene)
    wanted, found = alone(network(), scene, plan), {}
    with connect(f"dask:{workers}") as cluster:
        assert cluster.survey("auto", network()).count == workers
        victims = processes(cluster)[: -(-workers // 2)]
        assert os.getpid() not in victims
        for strip, maps in cluster.infer(Slow(0.02), Recipe(CLASSES), "cpu", scene, plan, LAYERS, all_strips(plan)):
            if not found:
                for victim in victims:
                    os.kill(victim, signal.SIGKILL)
            found[strip.lane, strip.index] = maps
        assert not set(victims) & set(processes(cluster))
    assert_same(found, wanted)


def processes(cluster: Cluster) -> list[int]:
    return sorted(cluster.client.run(os.getpid).values())


class Fatal(nn.Module):
    """A model that ends its process, as the kernel does when memory is out."""

    def forward(self, batch: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return batch


@pytest.mark.slow
def test_a_task_that_kills_every_worker_is_given_up(scene):
    with connect("dask:2") as cluster, pytest.raises(RsBiformerError, match="4 workers died .* want of memory"):
        together(cluster, Fatal(), scene, plan_of(scene))


@pytest.fixture
def scheduler() -> Iterator[tuple[str, subprocess.Popen]]:
    """A scheduler and a worker started as a user does: the address, and the scheduler's process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"

    def start(what: str, *options: str) -> subprocess.Popen:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *options, "--no-dashboard"]
        paths = {"PYTHONPATH": os.pathsep.join(map(str, sys.path))}
        return subprocess.Popen(command, stdout=-3, stderr=-3, env=os.environ | paths)

    processes = [
        start("scheduler", "--host", address),
        start("worker", address, "--nthreads", "1", "--memory-limit", "0"),
    ]
    yield address, processes[0]
    for process in processes:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_a_scheduler_started_by_hand_is_found_and_its_loss_is_told(scheduler, scene):
    address, process = scheduler
    plan = plan_of(scene)
    with connect(address) as cluster:
        assert cluster.survey("auto", network()).count == 1
        assert_same(together(cluster, network(), scene, plan), alone(network(), scene, plan))
        strips = cluster.infer(Slow(0.05), Recipe(CLASSES), "cpu", scene, plan, LAYERS, all_strips(plan))
        next(strips)
        process.kill()
        with pytest.raises(RsBiformerError, match=r"cluster was lost \(scheduler-connection-lost\); the same command"):
            list(strips)
