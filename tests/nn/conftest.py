import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def same_numbers_in_every_run():
    torch.manual_seed(0)
