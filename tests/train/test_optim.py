import math

import pytest
import torch
from torch import nn

from rs_biformer.errors import ConfigError
from rs_biformer.nn.model import create_model
from rs_biformer.train.config import OptimizerConfig, ScheduleConfig
from rs_biformer.train.optim import (
    class_weights,
    create_optimizer,
    create_schedule,
    learning_rate_factor,
    moving_average,
)


def factors(steps: int = 100, **options) -> list[float]:
    return [learning_rate_factor(step, steps, ScheduleConfig(**options)) for step in range(steps + 1)]


def test_layers_of_a_plain_transformer_decay_from_its_end_to_its_beginning():
    network = create_model("test_vit", classes=2, width=16)
    blocks = len(network.encoder.transformer.blocks)
    options = OptimizerConfig(learning_rate=0.5, layer_decay=0.5, multipliers={"encoder.levels": 0.1})
    optimizer = create_optimizer(network, options)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: rates[id(p)] for name, p in network.named_parameters()}
    assert found["encoder.transformer.norm.weight"] == found["head.weight"] == 0.5
    for place in range(blocks):
        assert found[f"encoder.transformer.blocks.{place}.attn.qkv.weight"] == 0.5 * 0.5 ** (blocks - 1 - place)
    assert found["encoder.transformer.pos_embed"] == 0.5 * 0.5**blocks
    assert found["encoder.levels.0.0.weight"] == pytest.approx(0.05)
    with pytest.raises(ConfigError, match="no plain transformer whose layers could decay"):
        create_optimizer(nn.Linear(2, 2), options)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_only_matrices_and_kernels_decay(name):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    optimizer = create_optimizer(network, OptimizerConfig(name=name, weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {id(p): 0.3 if p.ndim > 1 else 0.0 for p in network.parameters()}


def test_class_tokens_are_vectors_too():
    network = nn.ParameterDict({"token": torch.zeros(1, 1, 8), "kernel": torch.zeros(8, 1, 3, 3)})
    optimizer = create_optimizer(network, OptimizerConfig(weight_decay=0.3))
    assert [(len(g["params"]), g["weight_decay"]) for g in optimizer.param_groups] == [(1, 0.3), (1, 0.0)]
    assert optimizer.param_groups[1]["params"][0] is network["token"]


def test_parts_of_the_network_have_rates_of_their_own_and_the_longest_name_counts():
    network = nn.ModuleDict({"encoder": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), "head": nn.Linear(2, 2)})
    options = OptimizerConfig(learning_rate=0.1, multipliers={"encoder": 0.1, "encoder.1": 0.5})
    optimizer = create_optimizer(network, options)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    expected = {**dict.fromkeys(network["encoder"][0].parameters(), 0.01)}
    expected |= dict.fromkeys(network["encoder"][1].parameters(), 0.05)
    expected |= dict.fromkeys(network["head"].parameters(), 0.1)
    assert rates == {id(p): pytest.approx(rate) for p, rate in expected.items()}
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    schedule = create_schedule(optimizer, 10, ScheduleConfig(name="poly", power=1.0))
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups[::2]] == pytest.approx([0.05, 0.025, 0.005])


def test_a_multiplier_of_nothing_is_refused_naming_the_parts():
    network = nn.ModuleDict({"encoder": nn.Linear(2, 2), "encoder2": nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match="names enc, .* it has encoder, encoder2"):
        create_optimizer(network, OptimizerConfig(multipliers={"enc": 0.1}))


def test_frozen_parameters_are_not_trained():
    network = nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    optimizer = create_optimizer(network, OptimizerConfig())
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


def test_a_constant_schedule_is_one_throughout():
    assert set(factors(name="constant")) == {1.0}


def test_poly_follows_its_formula():
    assert factors(name="poly", power=0.9)[:100] == pytest.approx([(1 - step / 100) ** 0.9 for step in range(100)])


@pytest.mark.parametrize("name", ["poly", "cosine", "onecycle"])
def test_schedules_peak_after_the_warm_up_and_end_at_their_final_share(name):
    values = factors(name=name, warmup=0.2, final=0.05)
    assert values.index(max(values)) == 20 and max(values) == pytest.approx(1)
    assert values[-1] == pytest.approx(0.05)
    assert all(a < b for a, b in zip(values[:20], values[1:21], strict=True))
    assert all(a > b for a, b in zip(values[20:-1], values[21:], strict=True))
    assert 0 < values[0] < 0.1


def test_steps_beyond_the_end_keep_the_last_rate():
    options = ScheduleConfig(name="cosine", final=0.1)
    assert learning_rate_factor(500, 100, options) == pytest.approx(0.1)


def test_the_schedule_drives_the_optimizer():
    optimizer = create_optimizer(nn.Linear(2, 2), OptimizerConfig(learning_rate=0.5))
    schedule = create_schedule(optimizer, 10, ScheduleConfig(name="cosine"))
    rates = []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(11)])


def test_an_endless_run_needs_a_constant_schedule():
    optimizer = create_optimizer(nn.Linear(2, 2), OptimizerConfig())
    create_schedule(optimizer, math.inf, ScheduleConfig())
    with pytest.raises(ConfigError, match="no last step"):
        create_schedule(optimizer, math.inf, ScheduleConfig(name="poly"))


def test_class_weights_by_hand():
    # 4 : 1 in frequency is 1 : 2 in inverse square roots; 0.8 * w + 0.2 * 2 w = 1
    assert class_weights([0.8, 0.2], 0.5) == pytest.approx([1 / 1.2, 2 / 1.2])
    assert class_weights([0.8, 0.2], 0.0) is None


def test_a_class_without_a_pixel_weighs_as_much_as_the_rarest():
    weights = class_weights([0.9, 0.0, 0.1], 1.0)
    assert weights[1] == weights[2] > weights[0]


def test_the_moving_average_starts_as_a_plain_one_and_ends_at_its_decay():
    def averaged(updates) -> list[float]:
        tensors = [torch.zeros(2, 1), torch.full((), 4.0)]
        moving_average(0.9)(tensors, [torch.ones(2, 1), torch.zeros(())], updates)
        return [tensor.max().item() for tensor in tensors]

    assert averaged(0) == pytest.approx([1 - 1 / 10, 4 / 10])
    assert averaged(torch.tensor(10_000)) == pytest.approx([0.1, 3.6])


def test_counters_are_copied_and_not_averaged():
    counters = [torch.tensor(3), torch.tensor([4, 5])]
    moving_average(0.9)(counters, [torch.tensor(8), torch.tensor([6, 7])], 5)
    assert [counter.tolist() for counter in counters] == [8, [6, 7]]
