"""What is written is never what is read, and can be written: one rule for every command and its function, asked before
anything is made.

Files are told apart as the operating system does, by what they are and not by how they are spelt: a relative path, a
link of either kind, a file system that ignores case, an archive that holds the raster. What belongs to a raster counts
with it, both ways: masks, overviews and metadata beside it, and what writing a map removes beside that map.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rs_biformer.errors import ConfigError
from rs_biformer.raster.paths import PathLike
from rs_biformer.raster.remote import local_file
from rs_biformer.raster.vrt import sources_of

MAP_SUFFIXES = (".tif", ".tiff")

_BESIDE_MAPS = (".aux.xml", ".ovr", ".msk")
_WITH_NAME = (".aux.xml", ".ovr", ".msk", ".xml", ".qix")
_WITH_STEM = tuple(
    ".aux .aux.xml .ovr .rrd .ige .hdr .prj .dbf .shx .cpg .sbn .sbx .qix .tab .rpb .imd .tfw .tifw .tiffw .tfwx .jgw "
    ".pgw .jpw .pngw .bpw .wld .j2w .qml .sld".split()
)
"""What readers look for beside a file, after its name and after its stem."""

_Key = tuple[int, int]


def refuse_overwriting(
    inputs: Iterable[PathLike | None], outputs: Iterable[PathLike | None], *, emptied: Sequence[PathLike] = ()
) -> None:
    """Raise ConfigError when a file to be written is one that is read, or two of them are one, or it cannot be written.

    None stands for no file.

    inputs: what is read, as the user has it: files, URLs, parts of archives and containers, patterns and folders, of
        which the last two tell no file. outputs: files to be written; those of maps stand for what is removed beside
        them too. emptied: folders from which files are removed: nothing in them may be read.
    """
    written = [Path(path) for path in outputs if path is not None]
    _require_own_names(written)
    _require_writable(written)
    files = [(name, file) for name in inputs if name is not None for file in _files_of(name)]
    folders = [Path(path) for path in emptied] + [_staging(path) for path in written if _is_map(path)]
    _require_outside(files, folders)
    there = {key: path for path in written for part in _touched(path) if (key := _key(part)) is not None}
    if not there:
        return
    for name, file in files:
        for part in (file, *_belonging(file)):
            if (key := _key(part)) in there:
                what = os.fspath(name) if part == file else f"{part.name}, which belongs to {os.fspath(name)}"
                raise ConfigError(f"{there[key]} would replace {what}, which is read; write it under another name")


def _files_of(name: PathLike) -> Iterator[Path]:
    """The files of this machine that a name stands for: a list or container and, for a VRT, what it names."""
    file = local_file(os.fspath(name).removeprefix("@"))
    if file is not None:
        yield file
        yield from sources_of(file)


def _require_own_names(written: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for path in written:
        name = os.path.normcase(os.path.realpath(path))
        if name in seen:
            raise ConfigError(f"{path} is asked for twice; give each output its own name")
        seen[name] = path


def _require_writable(written: Sequence[Path]) -> None:
    """A file is begun where each is to be: permissions alone do not tell of disks that are mounted to be read."""
    tried: set[Path] = set()
    for path in written:
        above = next(folder for folder in path.absolute().parents if folder.exists())
        problem = "it is a folder" if path.is_dir() else "" if above in tried else _problem_with(above)
        if problem:
            raise ConfigError(f"{path} cannot be written: {problem}; choose another name")
        tried.add(above)


def _problem_with(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is a file"
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"{folder} takes no file ({error.strerror or error})"


def _require_outside(files: Sequence[tuple[PathLike, Path]], folders: Sequence[Path]) -> None:
    keys = {key: folder for folder in folders if (key := _key(folder)) is not None}
    if not keys:
        return
    known: dict[Path, Path | None] = {}  # one folder may hold thousands of files
    for name, file in files:
        parent = Path(os.path.realpath(file)).parent
        if parent not in known:
            known[parent] = next((keys[key] for one in (parent, *parent.parents) if (key := _key(one)) in keys), None)
        if (folder := known[parent]) is not None:
            raise ConfigError(f"{os.fspath(name)} lies in {folder}, which is emptied; write to another folder")


def _touched(path: Path) -> list[Path]:
    """The files that are replaced or removed when a file is written."""
    beside = [path.with_name(path.name + suffix) for suffix in _BESIDE_MAPS] if _is_map(path) else []
    return [path, *beside]


def _belonging(file: Path) -> list[Path]:
    """What readers would take with a file, whether it is there or not."""
    if not file.name:  # a folder, `.`
        return []
    named = [file.with_name(file.name + suffix) for suffix in _WITH_NAME]
    return named + [file.with_suffix(suffix) for suffix in _WITH_STEM if file.suffix]


def _is_map(path: Path) -> bool:
    return path.suffix.lower() in MAP_SUFFIXES


def _staging(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _key(path: Path) -> _Key | None:
    """What a file is, whatever it is called; None for one that is not there."""
    try:
        facts = path.stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    return facts.st_dev, facts.st_ino
