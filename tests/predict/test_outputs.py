"""The maps of blended probabilities, pixel by pixel against what they are defined as."""

from math import log

import numpy as np
import pytest
import torch

from rs_biformer.errors import ConfigError
from rs_biformer.predict.arrays import NumpyArrays
from rs_biformer.predict.outputs import SCORES, Layers
from rs_biformer.predict.tensors import TorchArrays
from rs_biformer.raster.metadata import SCORE_LEVELS
from rs_biformer.schema import IGNORE, PRESETS

CPU = torch.device("cpu")
ALL = ("classes", *SCORES)


def maps(scores: list[list[float]], dtype: str = "float16", names: tuple[str, ...] = ALL) -> dict[str, np.ndarray]:
    """The maps of a row of pixels, each a list of probabilities, whose views disagree by 0.5: torch's and numpy's."""
    layers = Layers(names, len(scores[0]), dtype)
    planes = np.array([[*pixel, 0.5] for pixel in scores], np.float32).T[:, None]
    found = []
    for arrays in (TorchArrays(CPU), NumpyArrays()):
        made = layers.empty(1, len(scores), arrays)
        layers.fill(made, arrays.placed(planes))
        found.append({name: arrays.on_host(layer)[..., 0, :] for name, layer in made.items()})
    for name in names:
        np.testing.assert_allclose(*(one[name].astype(float) for one in found), rtol=1e-3)
    return found[1]


def test_each_map_says_what_it_is_defined_as():
    found = maps([[0.5, 0.25, 0.25], [0, 0, 1], [1 / 3, 1 / 3, 1 / 3]])
    assert found["classes"].tolist() == [0, 2, 0]
    np.testing.assert_allclose(found["probabilities"].T[0], [0.5, 0.25, 0.25])
    np.testing.assert_allclose(found["confidence"], [0.5, 1, 1 / 3], atol=1e-3)
    np.testing.assert_allclose(found["margin"], [0.25, 1, 0], atol=1e-3)
    np.testing.assert_allclose(found["entropy"], [1.5 * log(2) / log(3), 0, 1], atol=1e-3)
    np.testing.assert_allclose(found["disagreement"], [0.5] * 3)


def test_the_first_of_equal_classes_wins():
    assert maps([[0.2, 0.4, 0.4], [0.4, 0.2, 0.4]])["classes"].tolist() == [1, 0]


def test_one_class_is_certain():
    found = maps([[1.0]])
    assert (found["classes"], found["confidence"], found["margin"], found["entropy"]) == (0, 1, 1, 0)


def test_many_classes_are_told_apart():
    scores = torch.rand(254, 9, 7)
    made = Layers(("classes",), 254).empty(9, 7, TorchArrays(CPU))
    Layers(("classes",), 254).fill(made, scores)
    assert torch.equal(made["classes"], scores.argmax(0).to(torch.uint8))


def test_steps_of_a_250th_leave_room_for_nodata():
    found = maps([[1.0, 0.0], [0.5, 0.5]], dtype="uint8")
    assert found["confidence"].tolist() == [SCORE_LEVELS, SCORE_LEVELS / 2]
    assert found["probabilities"].tolist() == [[SCORE_LEVELS, SCORE_LEVELS / 2], [0, SCORE_LEVELS / 2]]
    assert all(layer.dtype == np.uint8 for layer in found.values())


def test_maps_that_are_not_asked_for_are_not_made():
    assert set(maps([[0.5, 0.5]], names=("classes", "margin"))) == {"classes", "margin"}


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_nodata_is_255_and_not_a_number(dtype: str):
    layers = Layers(ALL, 2, dtype)
    made = {name: np.zeros_like(layer) for name, layer in layers.empty(2, 3, NumpyArrays()).items()}
    valid = np.array([[True, False, True], [True, True, True]])
    layers.mask(made, valid)
    for name, layer in made.items():
        nodata = layer == IGNORE if name == "classes" or dtype == "uint8" else np.isnan(layer)
        np.testing.assert_array_equal(nodata, np.broadcast_to(~valid, layer.shape))


def test_bytes_and_planes_are_counted():
    assert (Layers(("classes",), 6).pixel_bytes, Layers(("classes",), 6).planes) == (1, 6)
    everything = Layers(ALL, 6, "float16")
    assert everything.pixel_bytes == 1 + 2 * (6 + 4)
    assert everything.planes == 7


def test_a_writer_is_told_what_a_map_holds():
    schema = PRESETS["vaihingen"]
    layers = Layers(ALL, len(schema), "float16")
    assert layers.writer_options("classes", schema) == {"schema": schema, "descriptions": ["class"]}
    assert layers.writer_options("probabilities", schema)["count"] == len(schema)
    assert np.isnan(layers.writer_options("entropy", schema)["nodata"])
    assert Layers(ALL, 6).writer_options("entropy", schema)["tags"]["SCALE"] == "value / 250"


def test_another_dtype_is_refused():
    with pytest.raises(ConfigError, match="uint8, float16"):
        Layers(("classes",), 3, "float64")
