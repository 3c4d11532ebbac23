"""A list of pairs: a table that says which label belongs to which image, written by hand, by script or in Excel.

One row is one scene. The header names the columns:

    image    the raster (needed); `scene` means the same
    label    its label; `mask` means the same. Empty: the scene has none
    split    train, val or test
    name     what the scene is called; the file's stem unless given
    extra... every column whose name begins so is a further raster of the scene, such as extra_dsm

Fields are parted by commas, semicolons or tabs (what the header has most of), may be quoted, and file names count from
the folder of the list. UTF-8, or UTF-16 with a byte order mark, which is what Excel calls Unicode text.
"""

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

from rs_biformer.data.layouts import SceneFiles, nearest_file, require_own_names, with_own_names
from rs_biformer.errors import ConfigError
from rs_biformer.raster.paths import Location, PathLike, brief, is_file, is_remote, locate

PAIR_SUFFIXES = (".csv", ".tsv")
"""What tells a list of pairs from a scene."""

_DELIMITERS = ",;\t"
_ALIASES = {"scene": "image", "mask": "label"}
_SPLITS = ("train", "val", "test")


def is_pair_list(name: PathLike) -> bool:
    """Whether a file given as a scene is a list of pairs."""
    return not is_remote(name) and Path(name).suffix.lower() in PAIR_SUFFIXES


def paired_scenes(path: PathLike) -> tuple[SceneFiles, ...]:
    """The scenes of a list of pairs, with their labels, splits and further rasters, as the module's text says.

    Raises ConfigError, with the line, for what cannot be read, a file that does not exist, or a scene listed twice.
    """
    path = Path(path)
    rows = pair_rows(path, ("label", "split", "name"))
    scenes = [_scene(path, line, row) for line, row in rows]
    seen: dict[Location, int] = {}
    for (line, _), scene in zip(rows, scenes, strict=True):
        first = seen.setdefault(scene.images[0], line)
        if first != line:
            raise ConfigError(f"{path}, line {line}: {scene.images[0]} stands in line {first} already; list it once")
    if any(row.get("name") for _, row in rows):
        require_own_names([(scene.name, scene.images[0]) for scene in scenes])
        return tuple(scenes)
    return with_own_names(scenes)


def pair_rows(path: PathLike, optional: Sequence[str]) -> list[tuple[int, Mapping[str, str]]]:
    """The rows of a list with the line each begins on: {column: text}, aliases replaced, empty fields left out.

    optional: the columns that there may be beside `image` and `extra...`. Raises ConfigError.
    """
    path = Path(path)
    text = _text(path)
    header = text.partition("\n")[0]
    reader = csv.reader(StringIO(text, newline=""), delimiter=max(_DELIMITERS, key=header.count), strict=True)
    columns: list[str] = []
    rows: list[tuple[int, Mapping[str, str]]] = []
    line = 1
    try:
        for fields in reader:
            if not columns:
                columns = _columns(path, fields, optional)
            elif any(field.strip() for field in fields):
                if len(fields) > len(columns):
                    raise ConfigError(
                        f"{path}, line {line}: {len(fields)} fields and {len(columns)} columns "
                        f"({brief(', '.join(columns))}); quote fields that hold the delimiter"
                    )
                values = zip(columns, (field.strip() for field in fields), strict=False)
                rows.append((line, {column: value for column, value in values if value}))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ConfigError(f"{path}, line {line}: {error}; a list of pairs is a CSV table with a header") from None
    if not rows:
        raise ConfigError(f"{path} lists no scene; write one a line under the header image,label,split")
    return rows


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"no list of pairs {path}: there is no such file{nearest_file(path)}") from None
    except OSError as error:
        raise ConfigError(f"the list of pairs {path} cannot be read: {error.strerror or error}") from None
    if b"\0" in content and content[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        raise ConfigError(f"the list of pairs {path} holds zero bytes and is no text; save it as UTF-8")
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        raise ConfigError(f"the list of pairs {path} is not in UTF-8; save it as UTF-8") from None


def _columns(path: Path, fields: Sequence[str], optional: Sequence[str]) -> list[str]:
    names = [_ALIASES.get(field.strip().lower(), field.strip().lower()) for field in fields]
    known = ("image", *optional)
    strange = [name for name in names if name not in known and not name.startswith("extra")]
    allowed = f"{', '.join(known)}, and extra... for further rasters"
    if "image" not in names:
        found = brief(", ".join(filter(None, names))) or "nothing"
        raise ConfigError(
            f"{path}: the first line names no column image (it has {found}); a list begins with a header of {allowed}"
        )
    if strange:
        name = brief(strange[0]) or "(without a name)"
        raise ConfigError(f"{path}: there is no column {name!r}; a list may have {allowed}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{path}: the header names {brief(twice[0])} more than once; name each column once")
    return names


def _scene(path: Path, line: int, row: Mapping[str, str]) -> SceneFiles:
    where = f"{path}, line {line}"
    if "image" not in row:
        raise ConfigError(f"{where}: the row has no image; fill it in or remove the row")
    split = row.get("split")
    if split is not None and split.lower() not in _SPLITS:
        raise ConfigError(
            f"{where}: the split is {brief(split)!r}; it must be {', '.join(_SPLITS)}, or empty for all rows"
        )
    images = [row["image"], *(value for column, value in row.items() if column.startswith("extra"))]
    located = [_located(path.parent, name, where) for name in images]
    label = _located(path.parent, row["label"], where) if "label" in row else None
    if label in located:
        raise ConfigError(f"{where}: {label} is image and label at once; name the label's own file")
    return SceneFiles(row.get("name", ""), tuple(located), label, split and split.lower())


def _located(folder: Path, name: str, where: str) -> Location:
    location = locate(name if is_remote(name) else folder / name)
    if isinstance(location, Path) and not is_file(location):
        raise ConfigError(f"{where}: {brief(location)} does not exist{nearest_file(location)}")
    return location
