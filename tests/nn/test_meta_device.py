import pytest
import timm
import torch
from torch import nn

from rs_biformer.errors import ConfigError
from rs_biformer.nn.count import count_model
from rs_biformer.nn.encoders import library, plain, published
from rs_biformer.nn.meta_device import without_memory
from rs_biformer.nn.model import create_encoder


def test_what_needs_no_numbers_takes_no_memory():
    assert without_memory(lambda: nn.Linear(10**6, 10**6)).weight.device.type == "meta"


def looks_at_its_numbers():
    return nn.Linear(int(torch.ones(3).sum()), 2)


def lacks_an_operation():
    if torch.get_default_device().type == "meta":
        raise NotImplementedError("aten::_unique2")
    return nn.Linear(3, 2)


def lacks_it_inside():
    try:
        return lacks_an_operation()
    except NotImplementedError as error:
        raise ConfigError("cannot make encoder") from error


@pytest.mark.parametrize("make", [looks_at_its_numbers, lacks_an_operation, lacks_it_inside])
def test_what_the_device_cannot_do_is_done_with_numbers_and_draws_none_of_the_random_ones(make):
    torch.manual_seed(3)
    made = without_memory(make)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert made.weight.device.type == "cpu" and made.weight.shape == (2, 3) and torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize(
    ("cause", "error"),
    [
        (RuntimeError("shapes cannot be multiplied"), RuntimeError),
        (None, ConfigError),
        (ValueError("meta"), ConfigError),
    ],
)
def test_what_fails_by_itself_is_not_tried_with_memory(cause, error):
    tried = []

    def work():
        tried.append(torch.get_default_device().type)
        if error is RuntimeError:
            raise cause
        raise ConfigError("no") from cause

    with pytest.raises(error):
        without_memory(work)
    assert tried == ["meta"]


@pytest.fixture
def without_a_kernel(monkeypatch):
    """A release of torch that cannot make timm's networks on the meta device, as 2.11 cannot make RegNets."""
    create = timm.create_model

    def refuse(*arguments, **options):
        if torch.get_default_device().type == "meta":
            raise NotImplementedError("aten::_unique2: attempted to run this operator with Meta tensors")
        return create(*arguments, **options)

    monkeypatch.setattr(timm, "create_model", refuse)


def test_networks_that_the_device_cannot_make_are_told_apart_and_sized_as_the_others(without_a_kernel):
    assert plain.is_plain_transformer.__wrapped__("test_vit") and not plain.is_plain_transformer.__wrapped__("resnet18")
    assert plain._takes_any_size.__wrapped__("test_vit")
    takes = library._takes.__wrapped__
    assert takes("hiera_tiny_224", None, 224, 224) and not takes("hiera_tiny_224", None, 96, 64)


def test_networks_that_the_device_cannot_make_are_counted_as_the_others(monkeypatch, without_a_kernel):
    found = count_model("tu-test_resnet", "fpn", size=64)
    monkeypatch.undo()
    assert found == count_model("tu-test_resnet", "fpn", size=64)


def test_the_parameters_of_networks_that_the_device_cannot_make_have_their_published_names(without_a_kernel):
    encoder = create_encoder("tu-regnetx_002")
    whole = published._whole_network.__wrapped__("regnetx_002", None)
    assert {value.device.type for value in whole.state_dict().values()} == {"meta"}
    assert published.inner_names(encoder)["s1.b1.conv1.conv.weight"] == "model.s1.b1.conv1.conv.weight"
