"""Files that appear complete or not at all, and what killed processes leave."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rs_biformer import files


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture(autouse=True)
def as_a_new_process(monkeypatch):
    monkeypatch.setattr(files, "_swept", set())


def test_a_file_appears_when_the_block_ends_and_not_before(tmp_path):
    path = tmp_path / "a.txt"
    with files.replacing(path) as partial:
        partial.write_text("whole")
        assert names(path.parent) == [partial.name]
    assert names(path.parent) == ["a.txt"]
    assert path.read_text() == "whole"


def test_an_error_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), files.replacing(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_scratch_folder_goes_with_what_is_in_it(tmp_path):
    with files.scratch_folder(tmp_path / "a.gpkg") as folder:
        (folder / "a.gpkg").write_text("one")
        (folder / "a.gpkg-journal").write_text("two")
        files.publish(folder / "a.gpkg", tmp_path / "a.gpkg")
    assert names(tmp_path) == ["a.gpkg"]


def test_text_is_utf_8_with_its_own_line_ends(tmp_path):
    files.write_text(tmp_path / "a.txt", "Fl\u00e4che\n\r\n")
    assert (tmp_path / "a.txt").read_bytes() == b"Fl\xc3\xa4che\n\r\n"


def test_bytes_are_on_the_disk_before_the_name_is_there(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(files.os, "fsync", lambda _: seen.append((tmp_path / "a.txt").exists()))
    files.write_text(tmp_path / "a.txt", "x")
    assert seen == [False, True]  # the file, then the folder that names it
    files.write_text(tmp_path / "b.txt", "x", sync=False)
    assert len(seen) == 2


@pytest.mark.parametrize("name", ["a" * 255, "\u00e4" * 127])
def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path, name):
    files.write_text(tmp_path / name, "x")
    assert names(tmp_path) == [name]


_HANG = """
import sys, time
from pathlib import Path
from rs_biformer import files
with files.replacing(Path(sys.argv[1])) as partial, files.scratch_folder(Path(sys.argv[1])) as folder:
    partial.write_text("half")
    (folder / "part").write_text("half")
    print("ready", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_left_goes_with_the_next_write_and_what_a_living_one_has_in_hand_stays(tmp_path):
    path = tmp_path / "a.txt"
    children = [subprocess.Popen([sys.executable, "-c", _HANG, path], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for child in children:
            child.stdout.readline()
        children[0].send_signal(signal.SIGKILL)
        children[0].wait()
        assert len(names(tmp_path)) == 4
        files.write_text(tmp_path / "other.txt", "x")
        left = names(tmp_path)
        assert len(left) == 3
        assert all(f"-{children[1].pid}-" in name for name in left if name.endswith(".partial"))
    finally:
        for child in children:
            child.kill()
            child.communicate()
    files._swept.clear()
    files.write_text(path, "x")
    assert names(tmp_path) == ["a.txt", "other.txt"]


def test_what_an_earlier_process_of_the_same_number_left_goes(tmp_path):
    """In a container that is started again the process has the number it had before."""
    left = tmp_path / f".a.txt.{files._machine()}-{os.getpid()}-01234567.partial"
    left.write_text("half")
    with files.replacing(tmp_path / "b.txt") as partial:
        partial.write_text("x")
        files._swept.clear()
        files.write_text(tmp_path / "c.txt", "x")
    assert names(tmp_path) == ["b.txt", "c.txt"]


def test_what_another_machine_left_goes_after_a_day_and_not_before(tmp_path):
    left = tmp_path / ".a.txt.00000000-1-01234567.partial"
    left.write_text("half")
    files.write_text(tmp_path / "a.txt", "x")
    assert left.exists()
    yesterday = time.time() - 25 * 3600
    os.utime(left, (yesterday, yesterday))
    files._swept.clear()
    files.write_text(tmp_path / "a.txt", "x")
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_of_others_that_looks_alike_is_left_alone(tmp_path):
    for name in (".map.tif.partial", ".map.tif.partial.lock", ".x.partial", "a.00000000-1-01234567.partial"):
        (tmp_path / name).write_text("x")
    before = names(tmp_path)
    files.remove_leftovers(tmp_path)
    assert names(tmp_path) == before


def test_a_discarded_folder_is_gone_from_its_place_when_deleting_fails(tmp_path, monkeypatch):
    folder = tmp_path / "pieces"
    folder.mkdir()
    (folder / "one").write_text("x")
    monkeypatch.setattr(files.shutil, "rmtree", lambda *_, **__: None)
    files.discard(folder, tmp_path / "map.tif")
    assert not folder.exists()
    monkeypatch.undo()
    files._swept.clear()
    files.write_text(tmp_path / "a.txt", "x")
    assert names(tmp_path) == ["a.txt"]


def test_processes_that_are_there_and_that_are_gone_are_told_apart():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert files.process_is_alive(os.getpid())
    assert not files.process_is_alive(child.pid)
    assert not files.process_is_alive(2**80)


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /data rw - nfs4 server:/export rw
31 30 8:2 / /data/local\\040disk rw - xfs /dev/sdb rw
32 22 0:41 / /mnt/ssh rw - fuse.sshfs host: rw
33 22 8:3 / /mnt/usb rw - fuseblk /dev/sdc rw
34 22 8:3 / /over rw - ext4 /dev/sdd rw
35 22 8:3 / /over rw - cifs //server/share rw
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mountinfo is Linux's")
@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/home/a", None),
        ("/data", "nfs4"),
        ("/data/b/c.tif", "nfs4"),
        ("/database/c.tif", None),
        ("/data/local disk/c.tif", None),
        ("/mnt/ssh/x", "fuse.sshfs"),
        ("/mnt/usb/x", None),
        ("/over/x", "cifs"),
    ],
)
def test_file_systems_that_machines_share_are_known_by_their_mount(monkeypatch, place, kind):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: MOUNTS)
    assert files.shared_file_system(Path(place)) == kind


def test_the_mounts_of_macos_are_read_as_mount_lists_them(monkeypatch):
    listed = "/dev/disk1 on / (apfs, local, journaled)\nserver:/home on /Volumes/a (b) (nfs, nodev)\n"
    monkeypatch.setattr(
        files.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess(["mount"], 0, stdout=listed)
    )
    assert files._bsd_mounts() == [("/", "apfs"), ("/Volumes/a (b)", "nfs")]


_BARE = """
import importlib, pkgutil, sys
import rs_biformer

names = ["rs_biformer"] + [one.name for one in pkgutil.walk_packages(rs_biformer.__path__, "rs_biformer.")]
names = [name for name in names if name != "rs_biformer.__main__"]
for name in names:
    importlib.import_module(name)  # with all that others made of it
for name in [name for name in sys.modules if name.partition(".")[0] == "rs_biformer"]:
    del sys.modules[name]

import ctypes, mmap, os, signal
for name in ("fcntl", "resource", "pwd", "grp", "termios", "posix"):
    sys.modules[name] = None
for module, gone in (
    (os, "register_at_fork fork forkpty pread pwrite sysconf getuid geteuid statvfs sched_getaffinity mkfifo"),
    (mmap, "MAP_ANONYMOUS MAP_PRIVATE"),
    (signal, "SIGKILL SIGHUP SIGALRM SIGUSR1"),
):
    for name in gone.split():
        if hasattr(module, name):
            delattr(module, name)

def no_library(name, *_, **__):
    if name is None:
        raise TypeError("bad argument type for built-in operation")
    raise OSError(name)

ctypes.CDLL = no_library
for name in names:
    importlib.import_module(name)
import json
print(json.dumps(len(names)))
"""


def test_every_module_is_imported_where_a_system_has_nothing_of_posix():
    """What Windows does not have is taken away; other packages have taken what they want of it before."""
    child = subprocess.run([sys.executable, "-W", "ignore", "-c", _BARE], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-2000:]
    assert json.loads(child.stdout) > 100


def test_what_a_killed_process_left_in_the_temporary_folder_goes_with_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(files, "_swept", set())
    monkeypatch.setattr(files, "process_is_alive", lambda pid: pid != 4_000_000)
    dead = tmp_path / f".rs_biformer.{files._machine()}-4000000-0123abcd.partial"
    alive = tmp_path / f".rs_biformer.{files._machine()}-4000001-0123abcd.partial"
    (tmp_path / "of somebody").mkdir()
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "map.tif").touch()
    with files.temporary_folder() as folder:
        assert folder.parent == tmp_path and folder.stat().st_mode & 0o077 == 0
        (folder / "a").touch()
        assert not dead.exists() and alive.exists()
    assert sorted(found.name for found in tmp_path.iterdir()) == [alive.name, "of somebody"]
