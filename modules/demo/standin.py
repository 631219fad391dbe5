"""A miniature Stable Diffusion 1 with random weights in the published single-file layout: `python -m modules.demo.standin` writes it again.

Its pictures are noise. It stands where the trained model will stand, so that a fresh Easel works from Generate to PNG.
"""
from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from modules.families.keys import TEXT, UNET, VAE
from modules.networks.autoencoder import AutoencoderConfig, AutoencoderKL
from modules.networks.clip import ClipConfig, ClipText
from modules.networks.unet import Level, UNet, UNetConfig

FILE = Path(__file__).with_name("stand-in.safetensors")
CONTEXT = 32                                                # width of a text token; the vocabulary's 49,408 rows are most of the file
METADATA = {
    "modelspec.title": "Stand-in", "modelspec.prediction_type": "epsilon", "easel.standin": "true", "modelspec.resolution": "128x128",
    "modelspec.description": "Random weights in the true layout. Its pictures are noise until the embedded model is trained.",
}


def weights(seed: int = 0) -> dict[str, Tensor]:
    """float16 tensors under the published names: a U-Net of 32 channels, a VAE of 32, a text tower of one layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        levels = tuple(Level(channels=32 * factor, down=(depth,), up=(depth,) * 2) for factor, depth in ((1, 1), (1, 1), (2, 1), (2, 0)))
        unet = UNet(UNetConfig(in_channels=4, out_channels=4, channels=32, levels=levels, middle_depth=1, context=CONTEXT))
        vae = AutoencoderKL(AutoencoderConfig(channels=32, levels=(32, 32, 32, 64), res_blocks=1, z=4, latent=4))
        text = ClipText(ClipConfig(width=CONTEXT, layers=1, inner=4 * CONTEXT, vocabulary=49408, positions=77, heads=1))
        text.text_model.embeddings.token_embedding.weight.data.normal_()
        _louder(vae.decoder.conv_out)
    named = {UNET: unet, VAE: vae, TEXT: text}
    return {prefix + name: tensor.half().contiguous() for prefix, part in named.items() for name, tensor in part.state_dict().items()}


def _louder(last: nn.Conv2d) -> None:
    """Random convolutions average to grey; a gain on the last one gives its pictures colours to look at."""
    last.weight.data *= 4


if __name__ == "__main__":
    save_file(weights(), FILE, metadata=METADATA)
    print(f"{FILE.name}: {FILE.stat().st_size / 2**20:.1f} MiB")
