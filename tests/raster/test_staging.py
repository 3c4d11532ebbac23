"""What outlives a writer: kills, exceptions, full disks, torn files, other states, other processes."""

import errno
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from rs_biformer import files
from rs_biformer.errors import ConfigError, RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster import staging
from rs_biformer.raster.staging import close_folder, open_folder
from rs_biformer.raster.writer import MapWriter

PLACE = {"height": 1100, "width": 1300, "crs": "EPSG:25832", "transform": Affine(0.5, 0, 5e5, 0, -0.5, 5.4e6)}
STATE = {"fingerprint": "abc", "options": {"window": 256}}
PIXELS = np.random.default_rng(0).integers(0, 6, (1100, 1300)).astype(np.uint8)
WINDOWS = [
    Window(row, col, min(190, 1100 - row), min(512, 1300 - col))
    for row in range(0, 1100, 190)
    for col in (0, 512, 1024)
]


def writer(path: Path, state: dict | None = None, **options) -> MapWriter:
    return MapWriter(path, **{**PLACE, **options}, state=state or STATE)


def write_some(sink: MapWriter, windows: list[Window]) -> int:
    """Write what is not there yet; how many windows that was."""
    missing = [window for window in windows if not sink.has(window)]
    for window in missing:
        sink.write(window, PIXELS[window.slices])
    return len(missing)


def break_off(path: Path, windows: list[Window], state: dict | None = None) -> Path:
    """Write a few windows and fail; the folder that stays."""
    with pytest.raises(ZeroDivisionError), writer(path, state) as sink:
        write_some(sink, windows)
        raise ZeroDivisionError
    return path.with_name(f".{path.name}.partial")


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> bytes:
    """The map, written in one go, without a state."""
    path = tmp_path_factory.mktemp("whole") / "map.tif"
    with MapWriter(path, **PLACE) as sink:
        sink.write(Window(0, 0, 1100, 1300), PIXELS)
    return path.read_bytes()


def test_what_was_written_before_an_exception_is_there_for_the_next_writer(tmp_path, expected):
    path = tmp_path / "map.tif"
    break_off(path, WINDOWS[:7])
    break_off(path, WINDOWS[3:11])
    assert not path.exists()
    with writer(path) as sink:
        assert [sink.has(window) for window in WINDOWS] == [True] * 11 + [False] * (len(WINDOWS) - 11)
        assert write_some(sink, WINDOWS) == len(WINDOWS) - 11
    assert path.read_bytes() == expected
    assert [entry.name for entry in tmp_path.iterdir()] == ["map.tif"]


def test_the_bytes_of_a_map_depend_on_no_window_order_or_thread_count(tmp_path, expected, monkeypatch):
    monkeypatch.setattr("rs_biformer.raster.cog.writer_threads", lambda: "1")
    with MapWriter(tmp_path / "map.tif", **PLACE) as sink:
        for number in np.random.default_rng(1).permutation(len(WINDOWS)):
            write_some(sink, [WINDOWS[number]])
    assert (tmp_path / "map.tif").read_bytes() == expected


def test_a_window_larger_than_a_piece_is_there_only_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "_PIECE_BYTES", 512 * 512)
    whole = Window(0, 0, 1100, 1300)
    folder = break_off(tmp_path / "map.tif", [whole])
    assert len(list(folder.glob("*.tif"))) == 9
    next(folder.glob("*.tif")).unlink()
    with writer(tmp_path / "map.tif") as sink:
        assert write_some(sink, [whole]) == 1
    with rasterio.open(tmp_path / "map.tif") as file:
        assert np.array_equal(file.read(1), PIXELS)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-100], lambda data: b"", lambda data: data[:200] + bytes(len(data) - 200)]
)
def test_a_torn_piece_is_written_again(tmp_path, expected, damage):
    path = tmp_path / "map.tif"
    piece = sorted(break_off(path, WINDOWS[:5]).glob("*.tif"))[2]
    piece.write_bytes(damage(piece.read_bytes()))
    with writer(path) as sink:
        assert write_some(sink, WINDOWS) == len(WINDOWS) - 4
    assert path.read_bytes() == expected


def test_another_state_is_refused_and_says_what_differs(tmp_path, expected):
    path = tmp_path / "map.tif"
    folder = break_off(path, WINDOWS[:5])
    for state, options, message in (
        (STATE | {"fingerprint": "xyz"}, {}, "its fingerprint was abc and is now xyz"),
        ({"fingerprint": "abc"}, {}, "its options was .* and is now absent"),
        (STATE, {"count": 2}, "its raster was .* and is now"),
    ):
        with pytest.raises(ConfigError, match=f"{message}.*--restart"):
            writer(path, state, **options).__enter__()
    assert len(list(folder.glob("*.tif"))) == 5
    with writer(path) as sink:
        write_some(sink, WINDOWS)
    assert path.read_bytes() == expected


@pytest.mark.parametrize("state", [STATE, {"fingerprint": "another"}])
def test_a_restart_forgets_what_was_there(tmp_path, expected, state):
    path = tmp_path / "map.tif"
    break_off(path, WINDOWS[:5])
    with writer(path, state, restart=True) as sink:
        assert write_some(sink, WINDOWS) == len(WINDOWS)
    assert path.read_bytes() == expected


def test_a_writer_that_fails_before_its_first_window_leaves_nothing(tmp_path):
    break_off(tmp_path / "map.tif", [])
    assert not list(tmp_path.iterdir())


def test_a_second_writer_is_refused_while_the_first_is_at_it(tmp_path):
    path = tmp_path / "map.tif"
    with writer(path) as first:
        write_some(first, WINDOWS[:3])
        for restart in (False, True):
            with pytest.raises(RasterError, match=rf"process {os.getpid()} on .* is writing it"):
                writer(path, restart=restart).__enter__()
        write_some(first, WINDOWS)
    assert path.exists()


def test_the_lock_of_a_local_disk_is_trusted_whatever_the_host_was_called(tmp_path):
    """A container that is started again has another name, and so has the next node of a queue."""
    path = tmp_path / "map.tif"
    folder = break_off(path, WINDOWS[:3])
    (folder / "owner.json").write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    with writer(path) as sink:
        assert write_some(sink, WINDOWS) == len(WINDOWS) - 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["map.tif"]


@pytest.mark.parametrize("restart", [False, True])
def test_what_another_machine_has_not_given_back_on_a_shared_disk_is_refused_with_the_way_out(
    tmp_path, monkeypatch, restart
):
    path = tmp_path / "map.tif"
    folder = break_off(path, WINDOWS[:3])
    monkeypatch.setattr(files, "_file_system", lambda _: "nfs4")
    (folder / "owner.json").write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    with pytest.raises(RasterError, match=r"process 7 on elsewhere .* \(nfs4\) .* remove .*owner\.json") as caught:
        writer(path, restart=restart).__enter__()
    Path(re.search(r"remove (\S+)", str(caught.value))[1]).unlink()
    with writer(path) as sink:
        assert sink.has(WINDOWS[0])


def test_a_folder_that_was_given_back_names_no_owner(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_file_system", lambda _: "nfs4")
    monkeypatch.setattr(staging.socket, "gethostname", lambda: "elsewhere")
    folder = break_off(tmp_path / "map.tif", WINDOWS[:3])
    assert {entry.suffix for entry in folder.iterdir()} == {".tif", ".json"}
    monkeypatch.undo()
    monkeypatch.setattr(files, "_file_system", lambda _: "nfs4")
    with writer(tmp_path / "map.tif") as sink:
        assert sink.has(WINDOWS[0])


@pytest.mark.parametrize(("owner", "free"), [("gone", True), ("alive", False)])
@pytest.mark.parametrize("raised", [NotImplementedError("no flock"), OSError(errno.ENOTSUP, "no locks")])
def test_without_locks_in_the_file_system_a_living_process_is_respected(tmp_path, monkeypatch, owner, free, raised):
    def no_locks(*_, **__):
        raise raised

    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        folder = break_off(tmp_path / "map.tif", WINDOWS[:3])
        if owner == "gone":
            child.kill()
            child.wait()
        (folder / "owner.json").write_text(json.dumps({"pid": child.pid, "host": socket.gethostname()}))
        monkeypatch.setattr(staging.FileLock, "acquire", no_locks)
        if free:
            with writer(tmp_path / "map.tif") as sink:
                assert sink.has(WINDOWS[0])
        else:
            with pytest.raises(RasterError, match=f"process {child.pid} on .* without locks"):
                writer(tmp_path / "map.tif").__enter__()
    finally:
        child.kill()
        child.communicate()


_AGAIN_AND_AGAIN = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_staging import PIXELS, Window, writer
from rs_biformer.errors import RasterError

wrote = refused = 0
while wrote < int(sys.argv[3]):
    try:
        with writer(Path(sys.argv[1]), height=64, width=64) as sink:
            for row in range(0, 64, 4):
                if not sink.has(Window(row, 0, 4, 64)):
                    sink.write(Window(row, 0, 4, 64), PIXELS[row : row + 4, :64])
            wrote += 1
    except RasterError as error:
        assert "is writing it" in str(error), error
        refused += 1
print(wrote, refused)
"""


def test_two_processes_that_write_one_map_again_and_again_never_meet(tmp_path):
    """The end of one against the start of another, many times: each writes the whole map or is refused in a line."""
    path = tmp_path / "map.tif"
    with writer(path, height=64, width=64) as sink:
        sink.write(Window(0, 0, 64, 64), PIXELS[:64, :64])
    expected = path.read_bytes()
    command = [sys.executable, "-c", _AGAIN_AND_AGAIN, path, Path(__file__).parent, "40"]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for child in children:
        out, err = child.communicate()
        assert child.returncode == 0, err
        assert out.split()[0] == "40"
    assert path.read_bytes() == expected
    assert [entry.name for entry in tmp_path.iterdir()] == ["map.tif"]


def test_a_folder_leaves_its_place_before_its_files_are_deleted(tmp_path, monkeypatch):
    """Whoever comes while it is being deleted must not take what is half there for the whole."""
    path, seen = tmp_path / "map.tif", []
    remove = files.shutil.rmtree
    monkeypatch.setattr(
        files.shutil,
        "rmtree",
        lambda folder, **options: (
            seen.append((len(list(Path(folder).glob("*.tif"))), path.with_name(".map.tif.partial").exists())),
            remove(folder, **options),
        ),
    )
    with writer(path) as sink:
        write_some(sink, WINDOWS)
    assert [(pieces > 0, in_place) for pieces, in_place in seen] == [(True, False)]


_CHILD = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_staging import WINDOWS, write_some, writer

with writer(Path(sys.argv[1])) as sink:
    print("open", flush=True)
    for window in WINDOWS:
        write_some(sink, [window])
    print("written", flush=True)
print("done", flush=True)
"""


def start(path: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, path, Path(__file__).parent],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("moment", ["open", "written"])
@pytest.mark.parametrize("delay", [0.0, 0.02])
def test_a_killed_writer_is_gone_on_with_to_the_same_bytes(tmp_path, expected, moment, delay):
    path = tmp_path / "map.tif"
    child = start(path)
    while child.stdout.readline().strip() != moment:
        assert child.poll() is None, child.stderr.read()
    time.sleep(delay)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    with writer(path) as sink:
        write_some(sink, WINDOWS)
    assert path.read_bytes() == expected
    assert [entry.name for entry in tmp_path.iterdir()] == ["map.tif"]


@pytest.mark.slow
def test_twenty_kills_at_random_moments_end_in_the_same_bytes(tmp_path, expected):
    path = tmp_path / "map.tif"
    moments = np.random.default_rng(0).uniform(0, 0.25, 20)
    for moment in moments:
        child = start(path)
        child.stdout.readline()
        time.sleep(moment)
        child.kill()
        child.communicate()
        assert not path.exists() or path.read_bytes() == expected
        path.unlink(missing_ok=True)
    child = start(path)
    assert child.communicate()[0].endswith("done\n")
    assert path.read_bytes() == expected


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="this system has no limit on file sizes")
@pytest.mark.parametrize("limit", [20_000, 400_000])
def test_a_disk_that_is_full_keeps_the_pieces_until_there_is_room(tmp_path, expected, limit):
    """A limit on the size of a file stands in for a full disk: one that a piece exceeds, or only the finished map."""
    path = tmp_path / "map.tif"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(RasterError, match="cannot be written"), writer(path) as sink:
            write_some(sink, WINDOWS[-1:])
            write_some(sink, WINDOWS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not path.exists()
    with writer(path) as sink:
        assert sink.has(WINDOWS[-1])
        assert sink.has(WINDOWS[0]) == (limit > 100_000)
        write_some(sink, WINDOWS)
    assert path.read_bytes() == expected


def test_maps_that_are_completed_together_get_their_names_together_or_not_at_all(tmp_path, expected, monkeypatch):
    paths = [tmp_path / "a.tif", tmp_path / "b.tif"]

    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(RasterError, match=r"b\.tif cannot be written"), writer(paths[0]) as a, writer(paths[1]) as b:
        for sink in (a, b):
            write_some(sink, WINDOWS)
        a.complete()
        monkeypatch.setattr("rs_biformer.raster.cog.join", full)
        b.complete()
    monkeypatch.undo()
    assert not any(path.exists() for path in paths)
    for path in paths:
        with writer(path) as sink:
            assert write_some(sink, WINDOWS) == 0
            sink.complete()
        assert path.read_bytes() == expected


# --- what is not ours -------------------------------------------------------------------------------------------------

MARKED = {"raster": [1, 8, 8, "uint8", "None"]}


def begin(tmp_path, restart=False):
    target = tmp_path / "m.tif"
    folder = target.with_name(".m.tif.partial")
    lock = open_folder(folder, MARKED, restart=restart, target=target)
    close_folder(folder, lock, keep=False, target=target)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(
    "name", ["notes.txt", "photo.tif", "0-0-8-8.png", "state.json.bak", "0-0-8-8.new", ".hidden", "folder/file"]
)
def test_a_folder_with_somebody_s_files_is_refused_and_left_alone(name, restart, tmp_path):
    path = tmp_path / ".m.tif.partial" / name
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    (tmp_path / ".m.tif.partial" / "state.json").write_text(json.dumps(MARKED))  # even with our mark beside it
    with pytest.raises(RasterError, match="nothing was removed") as refused:
        begin(tmp_path, restart)
    assert "\n" not in str(refused.value) and path.read_text() == "precious"


@pytest.mark.parametrize("state", [None, "", "{}", '{"name": "x"}', "[1]", "\x00"])
def test_pieces_without_the_mark_are_somebody_s(state, tmp_path):
    folder = tmp_path / ".m.tif.partial"
    folder.mkdir()
    (folder / "0-0-8-8.tif").write_text("precious")
    if state is not None:
        (folder / "state.json").write_text(state)
    with pytest.raises(RasterError, match="nothing was removed"):
        begin(tmp_path)
    assert (folder / "0-0-8-8.tif").read_text() == "precious"
    begin(tmp_path, restart=True)  # who says so throws away what has the names of pieces
    assert not folder.exists()


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("name", [".m.tif.partial", ".m.tif.partial.lock"])
def test_a_link_is_refused_and_not_followed(name, restart, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for kept in ("precious.txt", "0-0-8-8.tif", "state.json"):
        (elsewhere / kept).write_text(json.dumps(MARKED))
    (tmp_path / name).symlink_to(elsewhere if name.endswith("partial") else elsewhere / "precious.txt")
    before = {path.name: path.read_bytes() for path in elsewhere.iterdir()}
    with pytest.raises(RasterError, match="is a link"):
        begin(tmp_path, restart)
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == before and (tmp_path / name).is_symlink()


def test_a_file_of_that_name_is_refused(tmp_path):
    (tmp_path / ".m.tif.partial").write_text("precious")
    with pytest.raises(RasterError):
        begin(tmp_path)
    assert (tmp_path / ".m.tif.partial").read_text() == "precious"


def test_what_a_process_left_that_was_killed_as_it_began_is_ours(tmp_path):
    folder = tmp_path / ".m.tif.partial"
    folder.mkdir()
    (folder / ".state.json.0123abcd-99-0123abcd.partial").write_text("{")
    (folder / "owner.json").write_text("{}")
    begin(tmp_path)
    assert not folder.exists()
