"""What cannot be written, or is no figure, is told before the work."""

from pathlib import Path

import pytest

from rs_biformer.demo import make_pair
from rs_biformer.errors import ConfigError
from rs_biformer.jobs import Outputs


@pytest.mark.parametrize("name", [".", "/", ""])
def test_figures_go_to_a_file_with_a_name(name):
    with pytest.raises(ConfigError, match=r"a folder; give the name of a file, such as metrics.json"):
        Outputs(Path(name))


def test_a_scene_goes_to_a_file_with_a_name():
    with pytest.raises(ConfigError, match=r"--scene is \., a folder"):
        make_pair(Path("."), size=64, seed=0, gsd=0.1)


@pytest.mark.parametrize("content", [b"", b"\x00\xff,a\n1", b"epoch,step\n1,2\n", b"a,b\nx,y\n"])
def test_curves_that_are_none_are_refused_before_anything_is_measured(tmp_path, content):
    curves = tmp_path / "metrics.csv"
    curves.write_bytes(content)
    with pytest.raises(ConfigError, match="training curves"):
        Outputs(tmp_path / "m.json", report=tmp_path / "r.html", curves=curves)
    curves.write_bytes(b"epoch,train_loss\n0,1.5\n1,1.2\n")
    Outputs(tmp_path / "m.json", report=tmp_path / "r.html", curves=curves)
