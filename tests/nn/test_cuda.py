"""The networks on a GPU: the published numbers, and the CPU's. See also tests/predict/test_forward.py."""

import copy

import pytest
import torch
import torch.nn.functional as F
from goldens import assert_equals_reference, case, published_weights, reference_input

from rs_biformer.nn.attention import bra
from rs_biformer.nn.attention.bra import METHODS, BiLevelRoutingAttention, route, use_method
from rs_biformer.nn.attention.msda import MultiScaleDilatedAttention
from rs_biformer.nn.blocks import IRFFN
from rs_biformer.nn.encoders import biformer, coat, cswin
from rs_biformer.nn.model import create_model
from rs_biformer.nn.weights import load_published_weights

pytestmark = [
    pytest.mark.gpu,
    # of torch 2.11 in its own compiler and its own backward pass
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS, but there was no current CUDA context:UserWarning"),
]

SMALLEST = [
    "resnet18_biformer",
    "resnet50_biformer2_msda2",
    "biformer_tiny",
    "cswin_tiny",
    "coat_lite_tiny",
    "resnet18",
]


@pytest.fixture(autouse=True)
def exact():
    """Products in float32 and not in TensorFloat-32, which keeps ten bits."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


def biformer_tiny():
    network = biformer.VARIANTS["biformer_tiny"]().double()
    load_published_weights(network, published_weights(case("biformer_tiny")["keys"]))
    return lambda x: network(x)[2:], network


def renamed(module, name):
    network = module.VARIANTS[name]().double()
    weights = published_weights(case(name)["keys"])
    network.load_state_dict({module.published_key(key): weight for key, weight in weights.items()})
    return lambda x: network(x)[2:], network


def one(name, module, channels_last):
    module.double()
    load_published_weights(module, published_weights(case(name)["keys"]))
    if channels_last:
        return lambda x: [module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)], module
    return lambda x: [module(x)], module


PUBLISHED = {
    "biformer_tiny": biformer_tiny,
    "cswin_tiny": lambda: renamed(cswin, "cswin_tiny"),
    "coat_lite_mini": lambda: renamed(coat, "coat_lite_mini"),
    "coat_tiny": lambda: renamed(coat, "coat_tiny"),
    "bra_nchw": lambda: one("bra_nchw", BiLevelRoutingAttention(64, 2, regions=8, topk=4, local_kernel=5), True),
    "msda_k3_d12": lambda: one("msda_k3_d12", MultiScaleDilatedAttention(64, 4, kernel_size=3, dilations=(1, 2)), True),
    "irffn": lambda: one("irffn", IRFFN(64, 256), False),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
@pytest.mark.parametrize("name", list(PUBLISHED))
def test_features_equal_the_published_implementation(name, dtype, tolerance):
    call, network = PUBLISHED[name]()
    network.eval().to("cuda", dtype)
    reference = case(name)
    with torch.no_grad():
        features = call(reference_input(reference["input"]).to("cuda", dtype))
    for feature, expected in zip(features, reference["features"], strict=True):
        assert_equals_reference(feature.cpu(), expected, tolerance)


@pytest.mark.parametrize("name", SMALLEST)
def test_a_training_step_is_that_of_the_cpu(name):
    torch.manual_seed(0)
    steady = {} if name == "resnet18" else {"drop_path": 0.0}  # chance differs between devices
    here = create_model(name, classes=3, **steady).double().train()
    there = copy.deepcopy(here).cuda()
    x, y = torch.randn(2, 3, 96, 96, dtype=torch.float64), torch.randint(3, (2, 96, 96))
    losses = []
    for model, device in ((here, "cpu"), (there, "cuda")):
        loss = F.cross_entropy(model(x.to(device)), y.to(device))
        loss.backward()
        losses.append(loss.detach().cpu())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-9, atol=0)
    gradients = dict(there.named_parameters())
    for key, parameter in here.named_parameters():
        if parameter.grad is not None:
            scale = max(1e-6, float(parameter.grad.abs().max()))
            torch.testing.assert_close(
                gradients[key].grad.cpu(), parameter.grad, rtol=0, atol=1e-7 * scale, msg=lambda m, k=key: f"{k}: {m}"
            )


@pytest.mark.parametrize("name", SMALLEST)
def test_bfloat16_on_a_gpu_is_near_float32(name):
    torch.manual_seed(0)
    model = create_model(name, classes=3).eval().to("cuda", memory_format=torch.channels_last)
    x = torch.randn(2, 3, 128, 128, device="cuda").contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        wanted = model(x)
        with torch.autocast("cuda", torch.bfloat16):
            found = model(x).float()
    assert (found - wanted).std() < 0.1 * wanted.std()


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize(("size", "topk"), [((64, 64), 1), ((32, 32), 4), ((50, 70), 4), ((8, 8), 3)])
def test_every_way_to_attend_gives_the_values_and_gradients_of_the_cpu(method, size, topk):
    torch.manual_seed(0)
    here = BiLevelRoutingAttention(64, 2, regions=8 if size[0] > 8 else 4, topk=topk).double()
    x = torch.randn(2, *size, 64, dtype=torch.float64)
    wanted = attended(here, x)
    there = copy.deepcopy(here).to("cuda", torch.float32)
    use_method(there, method)
    found = attended(there, x.to("cuda", torch.float32))
    tolerance = 0.02 if method == "flex" else 1e-4  # Triton multiplies float32 in TensorFloat-32
    for given, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(
            given.cpu().double(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())
        )


def attended(module, x):
    x = x.clone().requires_grad_()
    out = module(x)
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out))
    return out.detach(), x.grad, module.qkv.weight.grad


def test_autocast_on_a_gpu_routes_as_float32(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    module, x = BiLevelRoutingAttention(64, 2, topk=4).cuda(), torch.randn(4, 64, 64, 64, device="cuda")
    x = x + 30  # means that are much alike, as in a trained model
    seen = []
    monkeypatch.setattr(bra, "route", lambda *given: seen.append(route(*given).sort(-1).values) or seen[-1])
    with torch.no_grad():
        module(x)
        with torch.autocast("cuda", torch.bfloat16):
            module(x)
    same = (seen[0] == seen[1]).all(-1).double().mean()
    assert same > 0.99
