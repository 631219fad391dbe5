"""The miniatures that other tests stand on: true names, the same every time, alive in every block."""
import ast
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modules.families.sd1 import build
from tests import tiny


@pytest.fixture(scope="module")
def spreads():
    """Standard deviation of what each block of the three networks gives, by name; and the decoded picture's in steps of 1/255."""
    model, found = build(tiny.sd1()), {}
    for network in (model.unet, model.vae, model.text[0]):
        for name, module in network.named_modules():
            if type(module).__name__ in ("Stage", "ResBlock", "SpatialTransformer", "ResnetBlock", "AttnBlock", "Layer"):
                module.register_forward_hook(lambda module, inputs, output, name=name: found.__setitem__(name, float(output.std())))
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        context = model.text[0].encode(torch.randint(0, 49406, (1, 77), generator=generator))[0]
        noise = model.unet(torch.randn(1, 4, 16, 16, generator=generator), torch.tensor([500.0]), context)
        picture = model.vae.decode(torch.randn(1, 4, 16, 16, generator=generator) / model.latent.scale)
        latent, _ = model.vae.encode(picture.clamp(-1, 1))
    found |= {"noise": float(noise.std()), "latent": float(latent.std()) * model.latent.scale}
    return found, float((picture.clamp(-1, 1) * 127.5).std())


def test_every_block_of_a_miniature_is_alive(spreads):
    assert {name: spread for name, spread in spreads[0].items() if not 0.3 <= spread <= 3} == {}


def test_a_decoded_picture_has_a_spread_of_30_steps_at_least(spreads):
    assert spreads[1] >= 30


def test_no_tensor_is_zero():
    assert all(tensor.any() for tensor in tiny.sd1().values())


def test_a_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    first, again = tiny.save_sd1(tmp_path / "a.safetensors"), tiny.save_sd1(tmp_path / "b.safetensors")
    assert first.read_bytes() == again.read_bytes()
    other = tiny.sd1(seed=1, dtype=torch.float16)
    assert not any(torch.equal(tensor, other[name]) for name, tensor in load_file(first).items()
                   if name.startswith(("model.", "first_", "cond_")) and "position_ids" not in name)


def test_a_miniature_has_the_names_of_the_published_model():
    published = tiny.sd1_shapes(width=320, vae_width=128, text_width=768, mult=(1, 2, 4, 4))
    assert tiny.sd1_shapes().keys() == published.keys()


def test_the_miniatures_know_nothing_of_our_networks():
    nodes = list(ast.walk(ast.parse(Path(tiny.__file__).read_text(encoding="utf-8"))))
    imported = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    assert not any(name.startswith("modules") for name in imported)
