"""What goes wrong around a command, done to every one: no room, no permission, links, inputs that end or change.

Each ends in one line and code 2; what is left under its name is whole, and nothing half-written stays beside it.
Kills have a file of their own (test_kills.py).
"""

import os
import re
import resource
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from every_command import COMMANDS, command, made, write_inputs

from rs_biformer.cli import main
from rs_biformer.raster.source import Source

pytest.importorskip("onnxscript")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.filterwarnings("ignore")]

BY_DESIGN = {"train": r"run/\.(unfinished|lock)", "predict": r"\.scene_\w+\.tif\.partial(/.*)?"}
"""What stays under a leading dot: where a training stands, and what is finished of a map, for the same command."""
GROWING = {"train": {"run/metrics.csv"}}
"""What gets row after row while a command runs."""


class Ground:
    """Where commands are run: inputs, and a folder for the outputs of each, always the same, as some files name it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.inputs = folder, folder / "inputs"
        self.inputs.mkdir()
        write_inputs(self.inputs)
        self._wanted: dict[str, dict[str, object]] = {}
        self._sizes: dict[str, int] = {}

    def out(self, name: str) -> Path:
        return self.folder / name

    def empty(self, name: str) -> Path:
        shutil.rmtree(self.out(name), ignore_errors=True)
        self.out(name).mkdir()
        return self.out(name)

    def run(self, name: str) -> int:
        return main(command(name, self.inputs, self.out(name)))

    def wanted(self, name: str) -> dict[str, object]:
        """What the undisturbed command makes, by its name."""
        if name not in self._wanted:
            out = self.empty(name)
            assert self.run(name) == 0
            self._wanted[name] = made(out)
            self._sizes[name] = max((out / path).stat().st_size for path in self._wanted[name])
        return self._wanted[name]

    def largest(self, name: str) -> int:
        """Bytes of the largest file that it makes."""
        self.wanted(name)
        return self._sizes[name]

    def wrong(self, name: str) -> list[str]:
        """Files under their names that are not whole, and what is left beside them."""
        out, wanted = self.out(name), self.wanted(name)
        hidden = [str(path.relative_to(out)) for path in out.rglob(".*")]
        left = [path for path in hidden if not re.fullmatch(BY_DESIGN.get(name, "none"), path)]
        whole = {path: value for path, value in made(out).items() if path not in GROWING.get(name, ())}
        return [path for path, value in whole.items() if wanted.get(path) != value] + sorted(left)

    def read_by(self, name: str, *suffixes: str) -> list[Path]:
        """The files that the command names as its inputs."""
        words = command(name, self.inputs, self.out(name))
        found = [Path(word) for word in words if word.startswith(str(self.inputs))]
        files = [file for path in found for file in ([path] if path.is_file() else sorted(path.glob("*.*")))]
        return [file for file in files if not suffixes or file.suffix in suffixes]


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"))


@pytest.fixture
def told(capsys) -> Callable[[], str]:
    """The line that ended the last command."""

    def last() -> str:
        shown = capsys.readouterr().err
        assert "Traceback" not in shown and "Exception ignored" not in shown
        line = shown.rstrip("\n").rpartition("\n")[2].rpartition("\r")[2]
        assert line.startswith("rs-biformer ") and len(line) < 600, shown
        return line

    return last


@pytest.mark.parametrize("share", [0, 0.4, 0.95])
@pytest.mark.parametrize("name", COMMANDS)
def test_where_there_is_no_more_room_a_line_tells_and_nothing_is_left_half_written(name, share, ground, told):
    """A bound on the size of files stands in for the end of the disk: writing beyond it fails in the same way."""
    most = int(share * ground.largest(name))
    ground.empty(name)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        code = ground.run(name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    line = told()
    assert (code, ground.wrong(name)) == (2, []), line
    assert str(ground.out(name)) in line or tempfile.gettempdir() in line, line


@pytest.mark.parametrize("name", COMMANDS)
def test_where_no_file_may_take_its_name_a_line_tells_and_none_does(name, ground, told, monkeypatch):
    wanted = ground.wanted(name)
    ground.empty(name)

    def refused(old: object, new: object, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(old), None, str(new))

    monkeypatch.setattr(os, "replace", refused)
    code = ground.run(name)
    monkeypatch.undo()
    line = told()
    assert (code, ground.wrong(name)) == (2, []), line
    assert str(ground.out(name)) in line or tempfile.gettempdir() in line, line
    assert len(made(ground.out(name))) < len(wanted)


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "demo"])
def test_an_input_that_ends_too_early_is_named_and_nothing_is_made(name, share, ground, told):
    ground.wanted(name)
    for path in ground.read_by(name, ".tif", ".gpkg", ".ckpt", ".safetensors", ".parquet", ".json"):
        whole = path.read_bytes()
        ground.empty(name)
        path.write_bytes(whole[: int(share * len(whole))])
        try:
            code = ground.run(name)
        finally:
            path.write_bytes(whole)
        if code == 0:  # what is missing was not wanted
            assert name == "explain" and made(ground.out(name)) == ground.wanted(name)
            continue
        line = told()
        assert (code, ground.wrong(name)) == (2, []), (path.name, line)
        assert path.name in line or path.parent.name in line, line


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("demo", "tile", "convert")])
def test_a_raster_that_changes_between_two_reads_ends_the_command(name, ground, told, monkeypatch):
    ground.wanted(name)
    read = Source.read
    for path in ground.read_by(name, ".tif"):
        readers: list[Source] = []

        def touching(
            self: Source, *args: object, changed: Path = path, by: list[Source] = readers, **kwargs: object
        ) -> object:
            pixels = read(self, *args, **kwargs)
            if Path(str(self.path)) == changed:
                by.append(self)
                if len(by) == 1:
                    now = changed.stat()
                    os.utime(changed, ns=(now.st_atime_ns, now.st_mtime_ns + 10**9))
            return pixels

        monkeypatch.setattr(Source, "read", touching)
        ground.empty(name)
        code = ground.run(name)
        monkeypatch.undo()
        assert readers, path
        if code == 0:  # who had begun to read it read no more of it
            assert readers[0] not in readers[1:], path
            continue
        assert (code, made(ground.out(name))) == (2, {}), told()
        assert f"{path} was changed while it was read" in told()


@pytest.mark.parametrize("name", COMMANDS)
def test_links_where_files_are_to_be_lead_to_nothing_that_is_written(name, ground, tmp_path):
    wanted = ground.wanted(name)
    out = ground.out(name)
    elsewhere = tmp_path / "elsewhere"

    def linked(links: list[str]) -> int:
        ground.empty(name)
        shutil.rmtree(elsewhere, ignore_errors=True)
        elsewhere.mkdir()
        for number, link in enumerate(links):
            (out / link).parent.mkdir(parents=True, exist_ok=True)
            target = elsewhere / f"{number}{Path(link).suffix}"
            if Path(link).suffix:
                target.write_text("precious")
            else:
                target.mkdir()
                (target / "precious").write_text("precious")
            (out / link).symlink_to(target)
        code = ground.run(name)
        there = {str(path.relative_to(elsewhere)): path for path in elsewhere.rglob("*") if path.is_file()}
        names = [f"{number}{Path(link).suffix or '/precious'}" for number, link in enumerate(links)]
        assert sorted(there) == sorted(names), links
        assert {path.read_text() for path in there.values()} == {"precious"}, links
        return code

    words = command(name, ground.inputs, out)
    named = Path(words[words.index("--scene" if name == "demo" else "--out") + 1])
    folders = {str(p) for path in wanted for p in Path(path).parents if named in (out / p).parents}
    one_of_each = {(str(Path(path).parent), Path(path).suffix): path for path in wanted}
    if linked(list(one_of_each.values())) != 0:
        for link in one_of_each.values():
            assert linked([link]) in (0, 2)
    for folder in folders:
        assert linked([folder]) in (0, 2)
