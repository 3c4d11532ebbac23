"""What runs on a worker of a Dask cluster: a share, if the worker has the caller's versions and sees the same files."""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from rs_biformer.distribution import __version__
from rs_biformer.errors import ConfigError, RasterError, RsBiformerError
from rs_biformer.shares.here import Result, Task, whole


@dataclass(frozen=True)
class Seen:
    """The files of a share as the caller sees them: each with its size in bytes, None where it has none itself.

    What is reached by a URL is everybody's.
    """

    sizes: tuple[tuple[Path, int | None], ...]

    @classmethod
    def of(cls, files: Sequence[Path | str]) -> Self:
        """Of files as a Scene or Source names them."""
        return cls(tuple((path.absolute(), _size(path)) for path in files if isinstance(path, Path)))

    def difference(self, address: str) -> str | None:
        """What the worker at `address`, which is this one, sees otherwise, in words; None for nothing."""
        for path, size in self.sizes:
            found = _size(path)
            if found is None:
                there = "" if size is None else ", which is there where the command runs"
                return f"worker {address} cannot open {path}{there}"
            if found != size:
                return f"worker {address} has another file under {path}, of {found} bytes and not {size}"
        return None

    def require(self, address: str) -> None:
        """Raise RasterError unless the worker at `address` sees the same files."""
        if what := self.difference(address):
            raise RasterError(
                f"{what}; workers need the scenes under the same paths, on a file system that all share, or as URLs "
                "(see docs/cluster.md)"
            )


@contextmanager
def errors_alone() -> Iterator[None]:
    """Let go of what an error of ours came from: errors of GDAL do not pickle, and would take ours with them."""
    try:
        yield
    except RsBiformerError as error:
        error.__cause__ = error.__context__ = None
        raise


def difference(files: Seen, dask_worker: Any) -> str | None:
    """`Seen.difference`, as an answer to a question to all workers. Dask fills in `dask_worker` by its name."""
    return files.difference(dask_worker.address)


def do_share(function: Callable[[Task], Result], task: Task, files: Seen, wanted: Mapping[str, str]) -> Result:
    """A share. Raises ConfigError on a worker with other versions, RasterError on one that does not see a file."""
    from distributed import get_worker

    address = get_worker().address
    with errors_alone():
        require_versions(wanted, versions(), address)
        files.require(address)
        return whole(function, task)


@cache
def versions() -> dict[str, str]:
    """What both ends must have alike: pickles are read by Python and the package, pixels by numpy and rasterio."""
    return {
        "rs_biformer": __version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "numpy": version("numpy"),
        "rasterio": version("rasterio"),
    }


def require_versions(wanted: Mapping[str, str], found: Mapping[str, str], address: str) -> None:
    """Raise ConfigError when a worker's versions are not those of the caller."""
    wrong = [
        f"{name} {found.get(name, 'absent')} and not {own}" for name, own in wanted.items() if found.get(name) != own
    ]
    if wrong:
        raise ConfigError(
            f"the worker at {address} has {', '.join(wrong)}: install the same everywhere (pip install -c "
            "constraints.txt) and start the workers again"
        )


def _size(path: Path) -> int | None:
    """Bytes of a file; 0 for a folder, which some formats are; None for nothing."""
    if path.is_file():
        return path.stat().st_size
    return 0 if path.exists() else None
