"""What the published implementations give for weights and inputs that are made here: `reference/*.json`.

reference_outputs.json: the authors' own code (BiFormer with 8 regions per side and a layer norm after each stage, its
attention alone; CSWin's backbone for dense prediction; CoaT with intermediate outputs; DilateFormer's attention; CMT's
feed-forward network), run once in float64, in eval mode. Per case: `keys`, the names and shapes of its state dict;
`input`, the shape of an NCHW input; per output its shape, mean, unbiased deviation, and the `values` at `index` of the
flattened NCHW tensor; `params`, the number of its parameters, BiFormer's with the 1000-class head. Weights and inputs
are made of random numbers whose seeds are in the functions below, so that nothing large is stored.

published_checkpoint_keys.json: names and shapes in the ImageNet checkpoints that the authors publish; `container` is
the key of the state dict in the file.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

REFERENCE = Path(__file__).parent / "reference"


def case(name: str) -> dict:
    return json.loads((REFERENCE / "reference_outputs.json").read_text())[name]


def published_checkpoint(name: str) -> tuple[str, dict[str, list[int]]]:
    """The key of the state dict in a published checkpoint, and the shapes in it by name."""
    layout = json.loads((REFERENCE / "published_checkpoint_keys.json").read_text())[name]
    return layout["container"], layout["keys"]


def published_weights(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {key: _weight(key, shape) for key, shape in shapes.items()}


def _weight(key: str, shape: list[int]) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    x = np.asarray(np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape))
    if key.endswith("running_var"):
        x = 1 + 0.1 * abs(x)
    elif key.endswith("running_mean"):
        x = 0.1 * x
    elif len(shape) <= 1:
        x = (1 if key.endswith("weight") else 0) + 0.1 * x
    elif key.startswith("cls_token"):
        x = 0.02 * x
    else:
        x = x / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(x)


def reference_input(shape: list[int]) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape))


def assert_equals_reference(output: Tensor, reference: dict, tolerance: float = 1e-9) -> None:
    """`output` (NCHW) has the shape, statistics and sampled values of the published implementation.

    The tolerance, relative to the largest value, is for float64.
    """
    assert list(output.shape) == reference["shape"]
    values, output = np.array(reference["values"]), output.double()
    largest = abs(values).max()
    np.testing.assert_allclose(output.flatten()[reference["index"]], values, rtol=tolerance, atol=tolerance * largest)
    np.testing.assert_allclose(
        output.mean(), reference["mean"], rtol=tolerance, atol=tolerance / 1000 * max(1, largest)
    )
    np.testing.assert_allclose(output.std(), reference["std"], rtol=tolerance)
