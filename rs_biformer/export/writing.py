"""Where exported files go: what is asked for is looked at first, and nothing appears before it has been checked."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rs_biformer.checkpoint import TrainedModel
from rs_biformer.errors import ConfigError
from rs_biformer.export.check import Agreement
from rs_biformer.export.deployed import Deployed
from rs_biformer.files import publish, scratch_folder
from rs_biformer.geometry import stride_of

LARGEST_WINDOW = 8192
"""Pixels on a side: several such windows are in memory, and go through the network, while a file is checked."""


@dataclass(frozen=True)
class Exported:
    """What was written, its precision, and how it agrees with the checkpoint.

    files: the model, and where its weights are too many for one file another beside it.
    """

    files: tuple[Path, ...]
    precision: str
    agreement: Agreement

    @property
    def path(self) -> Path:
        """The model."""
        return self.files[0]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(file.stat().st_size for file in self.files)


def prepared(
    model: TrainedModel, path: str | Path, suffix: str, window: int | None, overlap: float
) -> tuple[Deployed, Path, int]:
    """What is exported, where to, and the side of its windows.

    Raises ConfigError for what no tool could use, and a name by which `predict` or torch would not know the file.
    """
    path, size = Path(path), model.meta.window if window is None else window
    if path.suffix.lower() != suffix:
        raise ConfigError(f"--out is {path}; the name of such a file ends in {suffix}")
    if path.is_dir():
        raise ConfigError(f"--out {path} is a folder; name a file that ends in {suffix}")
    stride_of(size, overlap)
    if size > LARGEST_WINDOW:
        raise ConfigError(f"window is {size} pixels; the model is tried on several, of at most {LARGEST_WINDOW}")
    return Deployed(model), path, size


@contextmanager
def published(path: Path) -> Iterator[tuple[Path, list[Path]]]:
    """A folder to write into, whose files take their places beside `path` when the block ends well, `path` last.

    The list gets what was written then, `path` first. Folders above that did not exist go again when the block fails.
    Raises ConfigError where nothing can be written.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    files: list[Path] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(path) as folder:
            yield folder, files
            for part in sorted(folder.iterdir(), key=lambda part: part.name == path.name):
                publish(part, path.with_name(part.name))
                files.insert(0, path.with_name(part.name))
    except BaseException as error:
        with suppress(OSError):  # one that somebody else uses by now
            for empty in made:
                empty.rmdir()
        if isinstance(error, OSError):
            raise ConfigError(f"cannot write {path}: {error.strerror or error}; give another --out") from error
        raise
