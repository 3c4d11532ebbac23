"""The figures of the explanations show what their captions say, worked out by hand."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
specification = importlib.util.spec_from_file_location("figures", DOCS / "figures.py")
figures = importlib.util.module_from_spec(specification)
specification.loader.exec_module(figures)


@pytest.fixture(scope="module")
def seen():
    """Name of a kind of attention -> which pixels of the map (H, W) the drawn pixel depends on."""
    x = torch.randn(1, figures.SIDE, figures.SIDE, figures.CHANNELS, generator=torch.Generator().manual_seed(3))
    return {name: figures.influence(attend, x) > 0 for name, attend in figures.attentions().items()}


def around(reach: int, step: int = 1) -> np.ndarray:
    row, col = figures.AT
    shown = np.zeros((figures.SIDE, figures.SIDE), bool)
    shown[row - reach : row + reach + 1 : step, col - reach : col + reach + 1 : step] = True
    return shown


def test_routing_shows_four_whole_regions_and_the_convolution(seen):
    side = figures.SIDE // figures.REGIONS
    whole = seen["bra"].reshape(figures.REGIONS, side, figures.REGIONS, side).all((1, 3))
    assert whole.sum() == figures.TOPK
    assert (seen["bra"] == (np.kron(whole, np.ones((side, side), bool)) | around(2))).all()


def test_dilated_attention_shows_two_grids_of_three_by_three(seen):
    assert (seen["msda"] == (around(1) | around(2, 2))).all() and seen["msda"].sum() == 17


def test_cross_shaped_attention_shows_two_stripes(seen):
    stripes = np.zeros((figures.SIDE, figures.SIDE), bool)
    stripes[12:14], stripes[:, 18:20] = True, True
    assert (seen["cross_shaped"] == stripes).all()


def test_factorised_attention_shows_everything(seen):
    assert seen["conv_attention"].all()


@pytest.mark.parametrize("name", ["bra", "msda", "cross_shaped", "conv_attention"])
def test_each_kind_has_its_figure_on_a_page(name):
    with Image.open(DOCS / f"images/attention_{name}.png") as drawn:
        assert drawn.size == (2 * figures.CELL * figures.SIDE,) * 2
    assert f"images/attention_{name}.png" in (DOCS / "explanations/attention.md").read_text(encoding="utf-8")
