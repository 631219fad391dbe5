"""Networks of every family against other people's with identical weights; deliberate mistakes must fail the same comparison."""
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from modules.families.base import Framing
from modules.families.catalogue import family_of
from modules.families.shapes import shapes_of
from modules.networks import unet as our_unet
from modules.networks.layers import KINDS, chooser
from modules.networks.layers import replace as replace_layers
from tests.oracles import published_families as oracles
from tests.oracles import published_vae
from tests.oracles.published import relative_error
from tests.tiny_families import FAMILIES

BOUND = 1e-4                                                # of the oracle's standard deviation
GATE = f"<= {BOUND}"
SQUARE, WIDE = (16, 16), (8, 24)                            # latent cells; WIDE halves three times
SIZES = {"LDM churches": ((16, 16), (32, 16))}              # five levels
WHOLE = {                                                   # the miniature whose other parts stand around a U-Net, where named otherwise
    "SD2 unCLIP L": "SD2 unCLIP", "SD2 unCLIP H": "SD2 unCLIP", "Vega": "SDXL", "KOALA-700M": "KOALA", "KOALA-1B": "KOALA",
    "LDM cin256-v2": "LDM cin256",
}
FRAME = Framing(width=1216, height=832, crop=(16, 48))
SMALL_FRAME = Framing(width=152, height=104, crop=(16, 48))  # for those that are told a picture, which is encoded
U = oracles.PREFIX


@cache
def weights_of(name):
    """A whole miniature with the U-Net that the oracles know; cin256's older form has four channels."""
    parts = FAMILIES[WHOLE.get(name, name)]()
    parts = {key: tensor for key, tensor in parts.items() if not key.startswith(U)}
    if name == "LDM cin256":
        parts = {key: tensor for key, tensor in parts.items() if not key.startswith("first_stage_model.")}
        vae = published_vae.draw(published_vae.shapes(width=32, mult=(1, 2, 2), latent=4, codes=64))
        parts |= {f"first_stage_model.{key}": tensor for key, tensor in vae.items()}
    return {**parts, **oracles.draw_unet(name)}


def built(name):
    """Made anew each time, over the same tensors: a test may spoil it."""
    weights = weights_of(name)
    return family_of(shapes_of(weights)).build(weights)


@cache
def oracle_of(name):
    return oracles.unet(weights_of(name), oracles.sizes(name, small=True))


def draws(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@torch.inference_mode()
def error_of(name, model, size):
    """Two rows at two noise levels, one of them between training indices; each row is told something else."""
    of, theirs = oracles.sizes(name, small=True), oracle_of(name)
    x, timesteps = draws(2, of.get("in_channels", 4), *size), torch.tensor([981.0, 20.5])
    if not of["context"]:
        return relative_error(model.unet(x, timesteps), theirs(x, timesteps).sample)
    context = draws(2, 1 if "cin256" in name else 77, of["context"])
    if "told" in of:
        return _error_with_sizes(name, model, x, timesteps, context)
    if "label" in of:
        vector = draws(2, of["label"])
        return relative_error(model.unet(x, timesteps, context, vector), theirs(x, timesteps, context, class_labels=vector).sample)
    if "classes" in of:
        level = torch.tensor([20, 350])
        return relative_error(model.unet(x, timesteps, context, label=level), theirs(x, timesteps, context, class_labels=level).sample)
    return relative_error(model.unet(x, timesteps, context), theirs(x, timesteps, context).sample)


def _error_with_sizes(name, model, x, timesteps, context):
    """SDXL: our vector of sizes goes to our network, the bare numbers to theirs."""
    pooled, frame = draws(2, 96), FRAME if model.variant == "" else SMALL_FRAME
    ours = torch.cat((pooled, torch.cat([model.family.beside(model, frame, negative).vector for negative in (False, True)])), dim=1)
    numbers = [oracles.size_numbers(oracle_of(name), 96, height=frame.height, width=frame.width, crop=frame.crop, score=score)
               for score in (frame.aesthetic if name == "SDXL refiner" else (None, None))]
    answer = oracles.told_vector(oracle_of(name), pooled, torch.stack(numbers), x, timesteps, context)[1]
    return relative_error(model.unet(x, timesteps, context, ours), answer)


@pytest.mark.parametrize("name", [name for name in oracles.UNETS if name != "SD1"])
def test_the_unet_of_this_family_gives_what_diffusers_gives(name, figure):
    model = built(name)
    for size in SIZES.get(name, (SQUARE, WIDE)):
        found = error_of(name, model, size)
        figure(f"U-Net of {name} against diffusers, standard deviations", found, GATE)
        assert found <= BOUND


@pytest.mark.parametrize("layers", [kind for kind in KINDS if kind != "plain"])
@pytest.mark.parametrize("name", ["SDXL", "SD2 x4 upscaler", "LDM cin256-v2", "LDM faces", "LDM churches", "LDM inpainting_big"])
def test_the_unet_gives_the_same_through_other_implementations_of_its_layers(name, layers, figure):
    model = built(name)
    replace_layers(model.unet, chooser(layers))
    found = error_of(name, model, SIZES.get(name, (SQUARE, WIDE))[1])
    figure(f"U-Net of {name} against diffusers, standard deviations", found, GATE)
    assert found <= BOUND


@pytest.mark.parametrize("name", oracles.UNETS)
def test_the_comparison_of_this_unet_is_not_empty(name):
    """No weight is zero, and each network's answer has a spread worth comparing."""
    of = oracles.sizes(name, small=True)
    assert all(bool((tensor != 0).any()) for tensor in weights_of(name).values() if tensor.dim() > 1 and len(tensor) > 8)
    with torch.inference_mode():
        x, given = draws(1, of.get("in_channels", 4), *SQUARE), {}
        if of["context"]:
            given["encoder_hidden_states"] = draws(1, 8, of["context"])
        if "told" in of:
            count = (of["label"] - 96) // of["told"]
            given["added_cond_kwargs"] = {"text_embeds": draws(1, 96), "time_ids": torch.arange(1.0, count + 1)[None]}
        elif "label" in of or "classes" in of:
            given["class_labels"] = draws(1, of["label"]) if "label" in of else torch.tensor([7])
        answer = oracle_of(name)(x, torch.tensor([500.0]), **given).sample
    assert 0.3 <= float(answer.std()) <= 3


def each(model, kind):
    return (module for module in model.unet.modules() if isinstance(module, kind))


def one_head(model, monkeypatch):
    for module in each(model, (our_unet.Attention, our_unet.AttentionBlock)):
        module.heads = 1


def twice_the_heads(model, monkeypatch):
    for module in each(model, (our_unet.Attention, our_unet.AttentionBlock)):
        module.heads *= 2


def keys_for_values(model, monkeypatch):
    for block in each(model, our_unet.TransformerBlock):
        block.attn2.to_k, block.attn2.to_v = block.attn2.to_v, block.attn2.to_k


def thirds_before_heads(model, monkeypatch):
    """q, k and v of all heads one behind the other, as the "new" order of these models had it."""
    def forward(self, x):
        q, k, v = self.qkv(self.norm(x).flatten(2)).chunk(3, dim=1)
        seen = our_unet.attend(*(part.unflatten(1, (self.heads, -1)).transpose(-1, -2) for part in (q, k, v)))
        return x + self.proj_out(seen.transpose(-1, -2).flatten(1, 2)).unflatten(2, x.shape[-2:])

    monkeypatch.setattr(our_unet.AttentionBlock, "forward", forward)


def epsilon_of_attention(model, monkeypatch):
    for block in each(model, our_unet.AttentionBlock):
        block.norm.eps = 1e-3


def first_attention_silent(model, monkeypatch):
    """As if the first attention of the levels that read the text twice were not there."""
    for block in each(model, our_unet.TransformerBlock):
        if block.text_only:
            block.attn1.forward = lambda x, context: 0


def label_not_told(model, monkeypatch):
    for parameter in model.unet.label_emb.parameters():
        parameter.data = torch.zeros_like(parameter)


def shift_before_scale(model, monkeypatch):
    for block in each(model, our_unet.ResBlock):
        layer = block.emb_layers[1]
        layer.weight.data, layer.bias.data = (part.roll(len(part) // 2, 0) for part in (layer.weight.data, layer.bias.data))


def shift_alone(model, monkeypatch):
    for block in each(model, our_unet.ResBlock):
        layer = block.emb_layers[1]
        layer.weight.data = torch.cat((0 * layer.weight.data[: len(layer.weight) // 2], layer.weight.data[len(layer.weight) // 2:]))


def smaller_behind_the_convolution(model, monkeypatch):
    def forward(self, x, time):
        h, x = (F.avg_pool2d(part, 2) for part in (self.in_layers(x), x))
        return self.skip_connection(x) + self._timed(h, time)

    monkeypatch.setattr(our_unet.DownBlock, "forward", forward)


def larger_behind_the_convolution(model, monkeypatch):
    def forward(self, x, time, size=None):
        h, x = (F.interpolate(part, size=size, mode="nearest") for part in (self.in_layers(x), x))
        return self.skip_connection(x) + self._timed(h, time)

    monkeypatch.setattr(our_unet.UpBlock, "forward", forward)


def every_second_cell(model, monkeypatch):
    def forward(self, x, time):
        norm, silu, conv = self.in_layers
        h, x = (part[..., ::2, ::2] for part in (silu(norm(x)), x))
        return self.skip_connection(x) + self._timed(conv(h), time)

    monkeypatch.setattr(our_unet.DownBlock, "forward", forward)


def width_before_height(model, monkeypatch):
    model.family = _family_of_framings(model, lambda frame: Framing(width=frame.height, height=frame.width, crop=frame.crop))


def left_before_top(model, monkeypatch):
    model.family = _family_of_framings(model, lambda frame: Framing(width=frame.width, height=frame.height, crop=frame.crop[::-1]))


def scores_exchanged(model, monkeypatch):
    model.family = _family_of_framings(
        model, lambda frame: Framing(width=frame.width, height=frame.height, crop=frame.crop, aesthetic=frame.aesthetic[::-1]))


def _family_of_framings(model, change):
    right = model.family.beside
    return replace(model.family, beside=lambda model, frame, negative: right(model, change(frame), negative))


@pytest.mark.parametrize("name, spoil", [
    ("SD2", one_head), ("SD2", keys_for_values), ("SDXL", one_head), ("SDXL", label_not_told), ("SDXL", width_before_height),
    ("SDXL", left_before_top), ("SDXL refiner", scores_exchanged), ("SDXL refiner", one_head), ("SSD-1B", keys_for_values),
    ("SD2 unCLIP L", label_not_told), ("SD2 x4 upscaler", label_not_told), ("SD2 x4 upscaler", one_head),
    ("SD2 x4 upscaler", first_attention_silent),
    ("LDM text2img-large", one_head), ("LDM text2img256", one_head), ("LDM layout2img", one_head), ("LDM layout2img", keys_for_values),
    ("LDM cin256-v2", twice_the_heads), ("LDM cin256", one_head),
    ("LDM faces", one_head), ("LDM faces", thirds_before_heads), ("LDM faces", epsilon_of_attention),
    ("LDM churches", one_head), ("LDM churches", shift_before_scale), ("LDM churches", shift_alone),
    ("LDM churches", smaller_behind_the_convolution), ("LDM churches", larger_behind_the_convolution), ("LDM churches", every_second_cell),
    ("LDM bsr_sr", thirds_before_heads), ("LDM inpainting_big", one_head), ("LDM inpainting_big", smaller_behind_the_convolution),
])
def test_a_unet_with_this_mistake_fails_the_comparison(name, spoil, monkeypatch):
    """Mistakes are made in our network alone; its tensors and the oracle's are the same ones and stay as they are."""
    model = built(name)
    spoil(model, monkeypatch)
    assert error_of(name, model, SIZES.get(name, (SQUARE,))[0]) > BOUND


@pytest.mark.parametrize("eps, fits", [(1e-5, True), (1e-6, False)])
@torch.inference_mode()
def test_where_the_signal_is_quiet_the_epsilon_before_the_attention_of_cells_shows(eps, fits):
    """1e-5, not the 1e-6 of transformers; with activations near 0.001 one in place of the other shows."""
    quiet = {key: tensor * 1e-3 if "out_layers.3" in key or "input_blocks.0.0" in key else tensor
             for key, tensor in weights_of("LDM faces").items()}
    model, oracle = family_of(shapes_of(quiet)).build(quiet), oracles.unet(quiet, oracles.sizes("LDM faces", small=True))
    for block in each(model, our_unet.AttentionBlock):
        block.norm.eps = eps
    x, timesteps = draws(1, 3, *SQUARE), torch.tensor([500.0])
    assert (relative_error(model.unet(x, timesteps), oracle(x, timesteps).sample) <= BOUND) is fits
