"""What training writes is a Stable Diffusion 1 file like any other."""
import pytest
import torch

from modules.checkpoints import load, read
from modules.core.errors import NanError
from modules.training import checkpoint, scratch
from modules.training.checkpoint import Networks
from modules.training.ema import LitEma
from modules.training.recipe import Recipe
from modules.training.schedule import register_schedule
from tests import tiny

RECIPE = {"model": {"vae": "x"}, "unet": {"channels": 32, "multiply": list(tiny.MULT)}, "vae": {"channels": 32, "multiply": list(tiny.MULT), "res_blocks": 2},
          "text": {"width": 64, "layers": 4}}


@pytest.fixture(scope="module")
def networks():
    recipe = Recipe.of(RECIPE)
    with scratch.seeded(0):
        made = Networks(unet=scratch.unet(recipe, context=64, latent=4), vae=scratch.vae(recipe), text=scratch.text(recipe), scale_factor=0.7)
        for parameter in made.unet.parameters():
            torch.nn.init.normal_(parameter, std=0.05)      # a U-Net from scratch gives zeros
    return made


@pytest.fixture
def path(networks, tmp_path):
    return checkpoint.write(tmp_path / "x.safetensors", networks, register_schedule(), kind="eps", title="Tiny", size=64, dtype=torch.float32)


def told():
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([3.0, 900.0]), torch.randint(49406, (2, 77), generator=generator),
            torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1)


@torch.no_grad()
def answers(unet, vae, text):
    x, t, ids, pixels = told()
    return unet(x, t, text.encode(ids)[0]), *vae.encode(pixels), vae.decode(x)


def test_its_names_and_shapes_are_those_of_the_published_layout(path):
    header = read.header(path)
    expected = tiny.sd1_shapes()
    assert {name: shape for name, shape in header.items() if name in expected} == expected
    rest = set(header) - set(expected)
    assert rest == {*register_schedule().buffers(), "scale_factor", checkpoint.POSITION_IDS}
    assert header["scale_factor"] == () and header[checkpoint.POSITION_IDS] == (1, 77)


def test_it_gives_the_same_outputs_when_it_is_loaded_again(path, networks):
    model = load.load(path, device="cpu", dtype=torch.float32, kind="plain")
    for found, before in zip(answers(model.unet, model.vae, model.text[0]), answers(networks.unet, networks.vae, networks.text), strict=True):
        assert torch.equal(found, before) and float(before.std()) > 0
    assert torch.equal(model.prediction.alphas_cumprod, register_schedule().alphas_cumprod)


def test_the_scale_of_the_file_is_the_scale_of_the_model(path):
    assert load.load(path, device="cpu", dtype=torch.bfloat16).latent.scale == pytest.approx(0.7)


def test_half_precision_changes_the_outputs_by_its_rounding_only(networks, tmp_path):
    path = checkpoint.write(tmp_path / "half.safetensors", networks, register_schedule(), kind="eps", title="Tiny", size=64)
    model = load.load(path, device="cpu", dtype=torch.float32, kind="plain")
    assert path.stat().st_size < 0.51 * 4 * sum(tensor.numel() for part in (model.unet, model.vae, model.text[0]) for tensor in part.parameters())
    for found, before in zip(answers(model.unet, model.vae, model.text[0]), answers(networks.unet, networks.vae, networks.text), strict=True):
        assert float((found - before).std() / before.std()) < 5e-3
    stored = read.weights(path, lambda name: name in ("alphas_cumprod", "scale_factor"))
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_training_goes_on_from_such_a_file_with_its_scale(path, networks):
    again = checkpoint.networks_of(path)
    assert again.scale_factor == pytest.approx(0.7) and all(parameter.requires_grad for parameter in again.unet.parameters())
    assert all(torch.equal(one, other) for one, other in zip(again.unet.parameters(), networks.unet.parameters(), strict=True))
    vae = checkpoint.vae_of(path)
    assert all(torch.equal(one, other) for one, other in zip(vae.parameters(), networks.vae.parameters(), strict=True))


def test_a_file_with_its_running_mean_loads_by_its_plain_weights(networks, tmp_path):
    named = {f"diffusion_model.{name}": tensor for name, tensor in networks.unet.named_parameters()}
    path = checkpoint.write(tmp_path / "both.safetensors", networks, register_schedule(), kind="eps", title="Tiny", size=64,
                            dtype=torch.float32, extra=LitEma(named).published())
    assert sum(name.startswith("model_ema.") for name in read.header(path)) == len(named) + 2 > 100
    model = load.load(path, device="cpu", dtype=torch.float32, kind="plain")
    assert torch.equal(next(model.unet.parameters()), next(networks.unet.parameters()))


def test_a_vae_alone_lies_in_root_names_and_loads_as_the_vae_of_a_model(path, networks, tmp_path):
    alone = checkpoint.write_vae(tmp_path / "vae.safetensors", networks.vae, title="Tiny", size=64, dtype=torch.float32)
    assert set(read.header(alone)) == set(tiny.vae_shapes())
    model = load.load(path, device="cpu", dtype=torch.float32, kind="plain", vae_path=alone)
    assert model.vae_name == "vae.safetensors" and torch.equal(next(model.vae.parameters()), next(networks.vae.parameters()))


def test_a_weight_that_half_precision_cannot_hold_is_a_sentence_and_no_file(networks, tmp_path):
    bias = networks.unet.out[2].bias
    before = bias.detach().clone()
    bias.data[0] = 1e6
    try:
        with pytest.raises(NanError, match=r"out\.2\.bias"):
            checkpoint.write(tmp_path / "x.safetensors", networks, register_schedule(), kind="eps", title="Tiny", size=64)
    finally:
        bias.data.copy_(before)
    assert list(tmp_path.iterdir()) == []
