"""The seam for other implementations of layers, and the attention call."""
import pytest
import torch
from torch import nn

from modules.families.keys import UNET
from modules.families.sd1 import build
from modules.networks import layers
from modules.networks.attention import BACKENDS, attend
from tests import tiny


@pytest.fixture(scope="module")
def weights():
    return tiny.sd1(buffers=False)


def picture(unet):
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        x, context = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 77, 64, generator=generator)
        return unet(x, torch.tensor([400.0]), context)


def test_with_nothing_chosen_every_bit_stays(weights):
    unet = build(weights).unet
    before, modules = picture(unet), list(unet.modules())
    assert layers.replace(unet, lambda shape: None) == 0
    assert list(unet.modules()) == modules
    assert torch.equal(picture(unet), before)


def test_a_chooser_is_asked_about_each_convolution_and_linear_layer_once_by_its_true_shape(weights):
    unet, asked = build(weights).unet, []
    layers.replace(unet, asked.append)
    expected = [name for name, module in unet.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert sorted(shape.name for shape in asked) == sorted(expected)
    by_name = {shape.name: shape for shape in asked}
    assert by_name["input_blocks.3.0.op"] == layers.LayerShape("input_blocks.3.0.op", "conv", 32, 32, 3, 2)
    assert by_name["time_embed.0"] == layers.LayerShape("time_embed.0", "linear", 32, 128)


def test_what_a_chooser_names_runs_in_the_place_of_the_layer(weights):
    class Doubled(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return 2 * self.layer(x)

    unet = build(weights).unet
    before = picture(unet)
    assert layers.replace(unet, lambda shape: Doubled if shape.name == "out.2" else None) == 1
    assert torch.equal(picture(unet), 2 * before)


@pytest.mark.parametrize("mode", ["channels_last", "packed"])
def test_channels_are_innermost_in_every_value_between_convolutions(weights, mode):
    unet = build(weights).unet
    layers.replace(unet, layers.chooser(mode))
    strangers = []
    for name, module in unet.named_modules():
        if isinstance(module, (nn.Conv2d, layers.PackedConv2d, nn.GroupNorm)):
            module.register_forward_hook(lambda module, inputs, output, name=name: strangers.append(name) if not output.is_contiguous(
                memory_format=torch.channels_last) else None)
    picture(unet)
    assert strangers == []


@pytest.mark.parametrize("mode", ["plain", "channels_last"])
def test_the_order_in_memory_changes_no_weight(weights, mode):
    unet = build(weights).unet
    layers.replace(unet, layers.chooser(mode))
    for name, tensor in unet.state_dict().items():
        assert torch.equal(tensor, weights[UNET + name]), name


@pytest.mark.parametrize("change", [{}, {"stride": 2}, {"padding": 0}, {"padding": (0, 1)}, {"dilation": 2}, {"bias": False}, {"kernel_size": 1}])
@pytest.mark.parametrize("size", [(8, 8), (5, 24), (33, 7)])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_packed_convolution_is_the_convolution(change, size, memory):
    torch.manual_seed(0)
    layer = nn.Conv2d(**{"in_channels": 20, "out_channels": 36, "kernel_size": 3, "padding": 1} | change)
    x = torch.randn(2, 20, *size).to(memory_format=memory)
    with torch.inference_mode():
        assert torch.allclose(layers.Packing()(layers.shape_of("", layer))(layer)(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("change", [{"groups": 2}, {"padding_mode": "circular"}, {"padding": "same"}])
def test_what_cannot_be_packed_stays_as_it_is(change):
    layer = nn.Conv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3} | change)
    assert layers.Packing()(layers.shape_of("", layer))(layer) is layer


def test_packing_is_for_single_precision_on_a_cpu():
    assert layers.usual(torch.device("cpu"), torch.float32) == "packed"
    assert layers.usual(torch.device("cuda"), torch.float32) == layers.usual(torch.device("cpu"), torch.bfloat16) == "channels_last"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [False, True])
def test_every_backend_of_attention_follows_the_formula(backend, causal):
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 3, 7, 5, generator=generator) for _ in range(3))
    scores = torch.einsum("bhtd,bhsd->bhts", q.double(), k.double()) / 5 ** 0.5
    if causal:
        scores += torch.full((7, 7), float("-inf"), dtype=torch.float64).triu(1)
    expected = torch.einsum("bhts,bhsd->bhtd", scores.softmax(-1), v.double())
    assert torch.allclose(attend(q, k, v, causal=causal, backend=backend).double(), expected, atol=1e-6)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["plain", "channels_last"])
@pytest.mark.parametrize("mean", [0.0, 3.0, 100.0])
def test_a_group_norm_is_exact_whatever_the_mean_and_the_order_in_memory(mean, order):
    """A variance taken as E[x^2] - E[x]^2 would be off by 0.001 at a mean of 10 and by 0.1 at a mean of 100."""
    x = torch.randn(1, 64, 33, 47, generator=torch.Generator().manual_seed(2)) + mean
    expected = nn.functional.group_norm(x.double(), 32, eps=1e-6)
    norm = layers.GroupNorm(32, 64, eps=1e-6)
    assert (norm(x.to(memory_format=order)) - expected).abs().max() < 5e-5
