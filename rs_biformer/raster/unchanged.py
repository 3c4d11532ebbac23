"""Whether files are still those that they were when their reading began: no result is of two versions of one."""

from collections.abc import Iterable
from pathlib import Path

from rs_biformer.errors import RasterError
from rs_biformer.raster.paths import PathLike
from rs_biformer.raster.remote import local_file

_BESIDE = (".aux.xml", ".ovr")
"""What programs write beside a raster that others read: statistics and overviews change no pixel."""


class Watched:
    """The files of this machine behind names, as they are now; others are not watched. It may be sent elsewhere."""

    def __init__(self, names: Iterable[PathLike | None]) -> None:
        found = [local_file(name) for name in names if name is not None and not str(name).endswith(_BESIDE)]
        self._states = {path: _state(path) for path in dict.fromkeys(one.absolute() for one in found if one)}

    def require_unchanged(self) -> None:
        """Raise RasterError where one of them has another size or time of change, or is gone."""
        for path, before in self._states.items():
            if _state(path) != before:
                raise RasterError(
                    f"{path} was changed while it was read, so the result would be of two versions of it; run the same "
                    "command again when nothing writes to it any more (predict with --restart)"
                )


def _state(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns
