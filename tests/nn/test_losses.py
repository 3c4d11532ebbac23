import math

import pytest
import torch
from segmentation_models_pytorch.losses import LovaszLoss
from torch import nn

from rs_biformer.errors import ConfigError
from rs_biformer.nn import losses
from rs_biformer.nn.losses import TERMS, create_loss

LOG3 = math.log(3.0)


@pytest.fixture(params=["counted", "masked"])
def way(request, monkeypatch):
    """Both ways of leaving pixels out: counted as on a CPU, and masked as on a GPU, which must not be waited for."""
    if request.param == "masked":
        monkeypatch.setattr(losses, "_can_be_counted", lambda device: False)
    return request.param


def two_pixels() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose softmax is (3/4, 1/4) at a pixel of class 0 and (1/2, 1/2) at a pixel of class 1."""
    logits = torch.tensor([[[[LOG3, 0.0]], [[0.0, 0.0]]]])  # (B, K, H, W): the logit of class 0, then of class 1
    return logits, torch.tensor([[[0, 1]]])


# Worked by hand for p(true) = 3/4 and 1/2:
#   cross-entropy  (ln 4/3 + ln 2) / 2
#   focal          ((1/4)^2 ln 4/3 + (1/2)^2 ln 2) / 2
#   dice, class 0: 2 * 3/4 / (3/4 + 1/2 + 1) = 2/3; class 1: 2 * 1/2 / (1/4 + 1/2 + 1) = 4/7; 1 - (2/3 + 4/7) / 2 = 8/21
#   Lovász, class 0: errors 1/2 (background) and 1/4 (foreground). Jaccard losses of the error sets are 1/2 for the
#     first alone and 1 for both: 1/2 * 1/2 + 1/4 * 1/2 = 3/8. Class 1: errors 1/2 (foreground), then 1/4: the loss is
#     already 1 after the first: 1/2. Mean 7/16.
#   boundary, either class: the true outline is its own pixel, (1, 0) or (0, 1), the predicted one takes 1/4 there (what
#     the neighbour has less) and 0 beside. All of it lies near the true one: precision 1, recall 1/4, 1 - 2/4 / (5/4).
BY_HAND = {
    "cross_entropy": (math.log(4 / 3) + math.log(2)) / 2,
    "focal": (math.log(4 / 3) / 16 + math.log(2) / 4) / 2,
    "dice": 8 / 21,
    "lovasz": 7 / 16,
    "boundary": 3 / 5,
}


@pytest.mark.parametrize("term", TERMS)
def test_a_term_has_the_value_worked_by_hand(term, way):
    logits, target = two_pixels()
    assert create_loss(term)(logits, target).item() == pytest.approx(BY_HAND[term], rel=1e-6)


def test_terms_add_up_by_their_weights(way):
    logits, target = two_pixels()
    loss = create_loss({"cross_entropy": 0.5, "dice": 2.0, "lovasz": 1.0, "focal": 3.0})(logits, target)
    expected = 0.5 * BY_HAND["cross_entropy"] + 2 * BY_HAND["dice"] + BY_HAND["lovasz"] + 3 * BY_HAND["focal"]
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("term", TERMS)
def test_a_step_down_the_gradient_of_a_term_lowers_it(term, way):
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 5, 6, requires_grad=True)
    target = torch.randint(0, 4, (2, 5, 6))
    loss = create_loss(term)
    before = loss(logits, target)
    (gradient,) = torch.autograd.grad(before, logits)
    reached = (gradient.abs().sum(1) > 0).float().mean()  # a term through an argmax would have none
    assert reached > 0.9
    assert loss(logits - 0.1 * gradient / gradient.norm(), target) < before


@pytest.mark.parametrize("term", TERMS)
def test_ignored_pixels_change_neither_the_value_nor_the_gradient(term, way):
    torch.manual_seed(1)
    logits, target = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    wide = torch.full((1, 3, 4, 8), math.nan)
    wide[..., :4] = logits
    wide.requires_grad_()
    wide_target = torch.full((1, 4, 8), 255)
    wide_target[..., :4] = target
    loss = create_loss(term)
    value = loss(wide, wide_target)
    assert value.item() == pytest.approx(loss(logits, target).item(), rel=1e-6)
    value.backward()
    assert (wide.grad[..., 4:] == 0).all()
    assert wide.grad.isfinite().all()


@pytest.mark.parametrize("ignore_index", [255, -100, 0])
@pytest.mark.parametrize("term", TERMS)
def test_a_batch_without_labels_gives_zero_and_zero_gradients(term, ignore_index, way):
    network = nn.Conv2d(3, 5, 1)
    target = torch.full((2, 4, 4), ignore_index)
    value = create_loss(term, ignore_index=ignore_index)(network(torch.randn(2, 3, 4, 4)), target)
    value.backward()
    assert value.shape == ()
    assert value.item() == 0.0
    assert all((parameter.grad == 0).all() for parameter in network.parameters())


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"class_weights": (1.0, 2.0, 3.0)}])
def test_a_batch_without_labels_gives_zero_whatever_the_options(options, way):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    value = create_loss("cross_entropy", **options)(logits, torch.full((1, 4, 4), 255))
    value.backward()
    assert value.item() == 0.0 and (logits.grad == 0).all()


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"class_weights": (1.0, 2.0, 3.0, 0.5)}])
@pytest.mark.parametrize("term", TERMS)
def test_no_term_waits_for_a_gpu(term, options):
    """Tensors without values stand for those that a GPU has not computed yet: whoever asks for one is refused."""
    if options and term != "cross_entropy":
        pytest.skip("of cross_entropy alone")
    loss = create_loss(term, **options).to("meta")
    logits = torch.empty(2, 4, 16, 16, device="meta", requires_grad=True)
    value = loss(logits, torch.empty(2, 16, 16, dtype=torch.long, device="meta"))
    value.backward()
    assert logits.grad.shape == logits.shape and value.shape == ()
    for waits in (lambda: logits.flatten().nonzero(), value.item, lambda: bool(value > 0)):
        with pytest.raises((NotImplementedError, RuntimeError)):  # the trap works
            waits()


def test_lovasz_is_that_of_its_publishers():
    torch.manual_seed(3)
    logits = torch.randn(2, 4, 9, 7, requires_grad=True)
    target = torch.randint(0, 3, (2, 9, 7))  # class 3 is absent
    target[:, :2] = 255
    expected = LovaszLoss("multiclass", ignore_index=255)(logits, target)
    found = create_loss("lovasz")(logits, target)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (expected, found)]
    torch.testing.assert_close(*gradients)


def test_labels_that_do_not_fit_make_the_loss_nan_where_it_cannot_raise(monkeypatch):
    monkeypatch.setattr(losses, "_can_be_counted", lambda device: False)
    assert create_loss("cross_entropy")(torch.zeros(1, 3, 4, 4), torch.full((1, 4, 4), 3)).isnan()


def test_the_outline_that_is_too_far_away_is_missed_and_the_near_one_is_met():
    truth = torch.zeros(1, 12, 24, dtype=torch.long)
    truth[..., 12:] = 1
    loss = create_loss("boundary")

    def predicted_edge_at(column: int) -> float:
        logits = torch.zeros(1, 2, 12, 24)
        logits[:, 0, :, :column] = logits[:, 1, :, column:] = 60.0
        return loss(logits, truth).item()

    assert predicted_edge_at(12) == pytest.approx(0.0, abs=1e-6)
    assert predicted_edge_at(14) == pytest.approx(0.0, abs=1e-6)  # two pixels off
    assert predicted_edge_at(15) == pytest.approx(1.0, abs=1e-6)


def test_an_ignored_area_makes_no_outline(way):
    target = torch.zeros(1, 8, 8, dtype=torch.long)
    target[..., 4:] = 255
    assert create_loss("boundary")(torch.randn(1, 2, 8, 8), target).item() == 0.0


@pytest.mark.parametrize("term", [term for term in TERMS if term != "boundary"])  # a single class has no outline
def test_a_batch_of_a_single_class_can_be_learnt(term, way):
    logits = torch.zeros(1, 3, 2, 2, requires_grad=True)
    target = torch.full((1, 2, 2), 2)
    loss = create_loss(term)
    loss(logits, target).backward()
    assert (logits.grad[:, 2] < 0).all()
    right = torch.zeros(1, 3, 2, 2)
    right[:, 2] = 40.0
    assert loss(right, target).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("term", TERMS)
def test_a_term_is_computed_in_float32_under_autocast(term, dtype, way):
    torch.manual_seed(2)
    logits = (torch.randn(1, 3, 16, 16) * 4).to(dtype).requires_grad_()
    target = torch.randint(0, 3, (1, 16, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = create_loss(term)(logits, target)
    assert value.dtype == torch.float32
    assert value.item() == create_loss(term)(logits.float(), target).item()
    value.backward()
    assert logits.grad.dtype == dtype
    assert logits.grad.isfinite().all()


def test_class_weights_give_the_weighted_mean_of_the_pixels(way):
    logits, target = two_pixels()
    easy, hard = math.log(4 / 3), math.log(2)
    weighted = create_loss("cross_entropy", class_weights=(1.0, 3.0))(logits, target)
    assert weighted.item() == pytest.approx((easy + 3 * hard) / 4, rel=1e-6)
    focal = create_loss("focal", class_weights=(1.0, 3.0))(logits, target)
    assert focal.item() == pytest.approx((easy / 16 + 3 * hard / 4) / 4, rel=1e-6)


def test_smoothing_spreads_a_share_of_the_label_over_all_classes():
    logits, target = two_pixels()
    value = create_loss("cross_entropy", label_smoothing=0.2)(logits, target)
    first = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)
    assert value.item() == pytest.approx((first + math.log(2)) / 2, rel=1e-6)


def test_class_weights_follow_the_module_but_are_not_saved():
    loss = create_loss("cross_entropy", class_weights=(1.0, 2.0))
    assert loss.state_dict() == {}
    assert loss.to("meta").class_weights.device.type == "meta"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"terms": "cross_entrpy"}, "did you mean 'cross_entropy'"),
        ({"terms": {"lovash": 1.0}}, "did you mean 'lovasz'"),
        ({"terms": "xyz"}, "terms are cross_entropy"),
        ({"terms": {}}, "at least one term"),
        ({"terms": {"dice": 0.0}}, "must be positive"),
        ({"terms": {"dice": math.nan}}, "must be positive"),
        ({"terms": "dice", "label_smoothing": 0.1}, "cross_entropy alone"),
        ({"terms": "cross_entropy", "label_smoothing": 1.0}, r"lie in \[0, 1\)"),
        ({"terms": "dice", "class_weights": (1.0, 1.0)}, "cross_entropy and focal"),
        ({"terms": "focal", "class_weights": (1.0, 0.0)}, "positive"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        create_loss(**arguments)


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        ((1, 3, 4, 4), torch.zeros(1, 4, 5, dtype=torch.long), "same B, H, W"),
        ((1, 1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long), "class of its own"),
        ((1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long), "3 class weights for logits of 2"),
        ((1, 3, 4, 4), torch.full((1, 4, 4), 3), "class index 3"),
        ((1, 3, 4, 4), torch.full((1, 4, 4), -1), "class index -1"),
    ],
)
def test_shapes_and_labels_that_do_not_fit_are_refused(logits, target, message):
    with pytest.raises(ConfigError, match=message):
        create_loss("cross_entropy", class_weights=(1.0, 1.0, 1.0))(torch.zeros(logits), target)
