"""How a run writes its checkpoints and its metrics.csv, so that whoever kills it leaves whole ones behind.

Lightning writes a checkpoint into the system's temporary folder and moves it from there, which between two disks is a
copy: a kill leaves a torn last.ckpt where a whole one was. It removes metrics.csv when a run is resumed, before it
writes it anew, and truncates it whenever a figure with a new name comes.
"""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from rs_biformer.files import replacing, write_text
from rs_biformer.nn.archive import write_archive

Rows = list[dict[str, str]]
"""Of metrics.csv: the text of each figure by its name."""


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints beside their place, on its disk, and removes none: a run has two, which are overwritten."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write it complete or not at all. Raises OSError."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            write_archive(checkpoint, partial)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Nothing: whoever asks has the path from a file, which may name anything."""


class _Writer(ExperimentWriter):
    """Goes on with the file that is there."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.metrics_keys: list[str] = _header(Path(self.metrics_file_path))

    def _check_log_dir_exists(self) -> None:
        """Lightning would remove what is there."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        _write(path, fieldnames, read_rows(path))


class Metrics(CSVLogger):
    """Lightning's logger into a file, which never loses the rows that the file has."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """What writes the file; made when it is first asked for."""
        if self._experiment is None:
            Path(self.root_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _Writer(log_dir=self.log_dir)
        return self._experiment


def read_rows(path: Path) -> Rows:
    """The whole rows of a metrics.csv; what a kill or a full disk has torn is left out."""
    if not path.is_file():
        return []
    text = path.read_bytes().decode("utf-8", errors="replace")
    lines = [line for line in text.split("\n")[:-1] if "\0" not in line]  # what no line end follows is torn
    header, *rows = csv.reader(lines) if lines else [[]]
    named = [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
    return [row for row in named if row.get("step", "").isdecimal()]


def keep_rows(path: Path, steps: int) -> None:
    """Leave the rows of the first `steps` steps in a metrics.csv; without any the file goes."""
    if not path.is_file():
        return
    rows = [row for row in read_rows(path) if int(row["step"]) < steps]
    if rows:
        _write(path, list(rows[0]), rows)
    else:
        path.unlink()


def _header(path: Path) -> list[str]:
    rows = read_rows(path)
    return sorted(rows[0]) if rows else []


def _write(path: Path, names: Sequence[str], rows: Iterable[dict[str, str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=names)
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
