"""Names of rasters: files, URLs and what else GDAL opens; a raster read from a server that answers range requests."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from range_server import ask, serving

from rs_biformer.errors import RasterError
from rs_biformer.geometry import Window
from rs_biformer.raster.paths import folder_of, gdal_name, identity, is_remote, locate, stem_of, without_access
from rs_biformer.raster.scene import Scene

REMOTE = [
    ("https://host/a/scene.tif", "scene", "https://host/a", "/vsicurl/https://host/a/scene.tif"),
    ("https://host/a.b/s.1.tif?sig=x/y.z", "s.1", "https://host/a.b", "/vsicurl/https://host/a.b/s.1.tif?sig=x/y.z"),
    ("s3://bucket/key/scene.tif", "scene", "s3://bucket/key", "/vsis3/bucket/key/scene.tif"),
    ("gs://bucket/scene.tif", "scene", "gs://bucket", "/vsigs/bucket/scene.tif"),
    ("az://box/scene.tif", "scene", "az://box", "/vsiaz/box/scene.tif"),
    ("/vsicurl/https://host/scene.tif", "scene", "/vsicurl/https://host", "/vsicurl/https://host/scene.tif"),
    ("/vsizip/area.zip/scene.tif", "scene", "/vsizip/area.zip", "/vsizip/area.zip/scene.tif"),
    ('NETCDF:"data/a.nc":height', "a_nc_height", 'NETCDF:"data', 'NETCDF:"data/a.nc":height'),
]


@pytest.mark.parametrize(("name", "short", "place", "opened"), REMOTE)
def test_what_only_gdal_reaches_stays_text(name, short, place, opened):
    assert is_remote(name)
    assert locate(name) == name
    assert (stem_of(name), folder_of(name), gdal_name(name)) == (short, place, opened)


@pytest.mark.parametrize("name", ["a.tif", "in/scene.x.tif", "/data/a.vrt", "C:a.tif", "odd:name.tif"])
def test_a_file_is_a_path(name):
    assert not is_remote(name)
    assert locate(name) == Path(name)
    assert (stem_of(locate(name)), folder_of(locate(name))) == (Path(name).stem, str(Path(name).parent))
    assert gdal_name(name) == name


@pytest.fixture(scope="module")
def folder_served(tmp_path_factory) -> Iterator[tuple[Path, str]]:
    root = tmp_path_factory.mktemp("served")
    with serving(root) as url:
        yield root, url


@pytest.mark.parametrize("prefix", ["", "/vsicurl/"])
def test_a_scene_is_read_from_a_server_by_ranges(write_raster, folder_served, prefix):
    root, url = folder_served
    image = np.random.default_rng(0).integers(0, 256, (3, 1024, 1024), np.uint8)
    mask = np.ones((1024, 1024), bool)
    mask[:100] = False
    name = f"{'b' if prefix else 'a'}.tif"  # GDAL remembers what it has read from an address
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        path = write_raster(name, image, photometric="RGB", tiled=True, blockxsize=64, blockysize=64, mask=mask)
    for file in (path, path.with_name(f"{name}.msk")):
        file.rename(root / file.name)
    before = int(ask(f"{url}/_sent"))
    with Scene(f"{prefix}{url}/{name}") as scene:
        assert (scene.name, scene.path) == (name[0], f"{prefix}{url}/{name}")
        assert scene.paths == (scene.path,)
        pixels, valid = scene.read(Window(90, 200, 64, 64))
    assert np.array_equal(pixels, image[:, 90:154, 200:264])
    assert np.array_equal(valid, mask[90:154, 200:264])
    assert 0 < int(ask(f"{url}/_sent")) - before < (root / name).stat().st_size / 4


def test_what_a_server_lacks_is_refused_in_one_line(folder_served):
    with pytest.raises(RasterError, match=r"http://127.*/nowhere\.tif cannot be opened: .*404") as caught:
        Scene(f"{folder_served[1]}/nowhere.tif")
    assert "\n" not in str(caught.value)


def test_a_server_that_is_busy_is_asked_again(write_raster, folder_served):
    root, url = folder_served
    write_raster("busy.tif", np.full((1, 8, 8), 7, np.uint8)).rename(root / "busy.tif")
    ask(f"{url}/_busy?2")
    with rasterio.Env(GDAL_HTTP_RETRY_DELAY="0.05"), Scene(f"{url}/busy.tif") as scene:
        assert (scene.read(Window(0, 0, 8, 8))[0] == 7).all()


def test_a_server_that_is_not_there_is_refused():
    with (
        pytest.raises(RasterError, match=r"http://127\.0\.0\.1:9/a\.tif cannot be opened"),
        rasterio.Env(GDAL_HTTP_MAX_RETRY="0"),
    ):
        Scene("http://127.0.0.1:9/a.tif")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("https://host/a.tif?X-Amz-Signature=KEY&X-Amz-Expires=60", "https://host/a.tif"),
        ("https://box.blob/a.tif?sv=2020&st=now&se=later&sr=b&sp=r&sig=KEY%2Fy", "https://box.blob/a.tif"),
        ("https://me:KEY@host/a.tif", "https://host/a.tif"),
        ("s3://bucket/a.tif", "s3://bucket/a.tif"),
        ("odd?sig=name.tif", "odd?sig=name.tif"),
        ("/vsicurl?url=https%3A%2F%2Fhost%2Fa.tif%3Fsig%3DKEY", "/vsicurl?url=https://host/a.tif"),
        ('NETCDF:"https://host/a.nc?sig=KEY":t2m', 'NETCDF:"https://host/a.nc":t2m'),
    ],
)
def test_a_raster_is_the_same_under_a_new_signature(name, shown):
    assert identity(name) == shown
    assert identity(name.replace("KEY", "OTHER")) == shown


@pytest.mark.parametrize(
    "name",
    [
        "https://host/get?id=7&subscription=KEY",
        "/vsicurl/https://me:KEY@host/get?id=7&auth=KEY#KEY",
        "/vsicurl?header.Authorization=KEY&url=https%3A%2F%2Fhost%2Fget%3Fid%3D7",
        'NETCDF:"https://host/get?id=7&k=KEY":t2m',
        "PG:dbname=gis password=KEY table=t7",
    ],
)
def test_the_identity_of_a_raster_holds_no_key_and_tells_it_from_others(name):
    known = identity(name)
    assert "KEY" not in known and "id=7" not in known
    assert identity(name) == known != identity(name.replace("7", "8")) != identity("https://host/get")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("predict https://host/a.tif?X-Amz-Signature=KEY --out maps", "predict https://host/a.tif --out maps"),
        ("https://box.blob/a.tif?sv=2020&anything=KEY#KEY", "https://box.blob/a.tif"),
        ("--scene=https://me:KEY@host:8443/a.tif", "--scene=https://host:8443/a.tif"),
        ("old=http://KEY@host/a.tif?k", "old=http://host/a.tif"),
        ("s3://KEY:KEY@bucket/a.tif?versionId=KEY", "s3://bucket/a.tif"),
        ("/vsicurl/https://me:KEY@host/a.tif?token=KEY", "/vsicurl/https://host/a.tif"),
        ("/vsizip//vsicurl/https://host/a.zip?sig=KEY", "/vsizip//vsicurl/https://host/a.zip"),
        ("/vsicurl?max_retry=2&url=https%3A%2F%2Fhost%2Fa.tif%3Fsig%3DKEY", "/vsicurl?url=https://host/a.tif"),
        ("/vsicurl?header.Authorization=KEY", "/vsicurl"),
        ("/vsiaz/box/a.tif?sv=1&sig=KEY", "/vsiaz/box/a.tif"),
        ('NETCDF:"https://host/a.nc?sig=KEY":t2m', 'NETCDF:"https://host/a.nc":t2m'),
        ("'https://me:KEY@host/a.tif?sig=KEY' cannot be opened: 403", "'https://host/a.tif' cannot be opened: 403"),
        ("PG:dbname=gis user=me password=KEY mode=2", "PG:dbname=gis user=me password=... mode=2"),
        ("postgresql://me:KEY@host/db tls://a:KEY@b:8786", "postgresql://host/db tls://b:8786"),
        ("AWS_SECRET_ACCESS_KEY=KEY rs-biformer", "AWS_SECRET_ACCESS_KEY=... rs-biformer"),
        ("images/tile_?.tif labels/{stem}.tif --window 256", "images/tile_?.tif labels/{stem}.tif --window 256"),
        ("https:/me:KEY@host/w.pth?x=KEY does not exist", "https:/host/w.pth does not exist"),
        ("what? is --token meant", "what? is --token meant"),
    ],
)
def test_texts_for_others_hold_no_key(text, shown):
    assert without_access(text) == shown
