"""Tiny rasters and paths that many tests share. Nothing here is downloaded; `../shared` is optional."""

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import settings
from pieces import SHARED
from rasterio.transform import Affine, from_origin

# A slow or busy machine must not fail a property.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")

# Where a shell runs the tests in the background, SIGINT is ignored, also in the processes that tests start, and Ctrl-C
# could not be tried.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The demo trains for minutes: begun first, no process is left alone with it at the end."""
    items.sort(key=lambda item: item.path.stem != "test_demo")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real scenes that lies beside a developer's checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: real scenes are not part of the project")
    return SHARED


@pytest.fixture
def write_raster(tmp_path: Path) -> Callable[..., Path]:
    """Write a (bands, rows, cols) array as a GeoTIFF below tmp_path and return its path."""

    def write(
        name: str,
        array: np.ndarray,
        *,
        crs: str | None = "EPSG:25832",
        transform: Affine | None = None,
        nodata: float | None = None,
        descriptions: tuple[str, ...] | None = None,
        mask: np.ndarray | None = None,
        **profile: object,
    ) -> Path:
        array = np.atleast_3d(array) if array.ndim == 3 else array[None]
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=array.shape[1],
            width=array.shape[2],
            count=array.shape[0],
            dtype=array.dtype,
            crs=crs,
            transform=transform or from_origin(500_000.0, 5_400_000.0, 0.5, 0.5),
            nodata=nodata,
            **profile,
        ) as sink:
            sink.write(array)
            if descriptions:
                sink.descriptions = descriptions
            if mask is not None:
                sink.write_mask(mask)
        return path

    return write
