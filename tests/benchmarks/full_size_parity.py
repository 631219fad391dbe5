"""Full-size Stable Diffusion 1.5 with random weights, our networks against diffusers and transformers.

    python -m tests.benchmarks.full_size_parity [--seed 0] [--file KEEP.safetensors]

The weights pass through a half-precision safetensors file in the published layout, which both sides read and compute in float32.
Printed: the largest absolute difference in standard deviations of the oracle's answer, beside the bound. Takes about 10 GB of memory and
a few minutes on two cores. The exit status is 1 where a bound is broken.
"""
from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from modules.checkpoints.load import load
from tests import tiny
from tests.oracles import published

SIZES = {"width": 320, "vae_width": 128, "text_width": 768, "text_layers": 12, "mult": (1, 2, 4, 4)}
BOUND = 1e-4
LATENTS = ((32, 32), (32, 48))                              # cells, height and width


def draws(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def part(path: Path, prefix: str) -> dict[str, Tensor]:
    """One part of the file in float32, names with prefix."""
    return {name: tensor.float() for name, tensor in load_file(path).items() if name.startswith(prefix)}


@torch.inference_mode()
def rows(path: Path) -> Iterator[tuple[str, float]]:
    """What was compared, and the relative error; one oracle in memory at a time."""
    model = load(path, device="cpu", dtype=torch.float32)
    theirs = published.text(part(path, "cond_stage_model."), published.clip_settings())
    ids = torch.randint(0, 49406, (2, 77), generator=torch.Generator().manual_seed(0))
    context = theirs(ids).last_hidden_state
    yield "text, 2 x 77 tokens", published.relative_error(model.text[0].encode(ids)[0], context)
    states = theirs(ids, output_hidden_states=True).hidden_states
    norm = getattr(theirs, "text_model", theirs).final_layer_norm
    yield "text, clip skip 2", published.relative_error(model.text[0].encode(ids, 2)[0], norm(states[-2]))
    theirs = published.unet(part(path, "model.diffusion_model."), published.unet_settings())
    gc.collect()
    timesteps = torch.tensor([981.0, 20.5])
    for size in LATENTS:
        x = draws(2, 4, *size)
        error = published.relative_error(model.unet(x, timesteps, context), theirs(x, timesteps, context).sample)
        yield f"U-Net, 2 x {size[0]} x {size[1]}", error
    theirs = published.vae(part(path, "first_stage_model."), published.vae_settings())
    gc.collect()
    for size in LATENTS:
        z = draws(1, 4, *size) / model.latent.scale
        yield f"VAE decode, {size[0]} x {size[1]}", published.relative_error(model.vae.decode(z), theirs.decode(z).sample)
        pixels = draws(1, 3, 8 * size[0], 8 * size[1]).clamp(-1, 1)
        mean, logvar = model.vae.encode(pixels)
        distribution = theirs.encode(pixels).latent_dist
        yield f"VAE encode mean, {8 * size[0]} x {8 * size[1]}", published.relative_error(mean, distribution.mean)
        yield f"VAE encode log variance, {8 * size[0]} x {8 * size[1]}", published.relative_error(logvar, distribution.logvar)


def run(path: Path, seed: int) -> bool:
    """Print the table; whether every bound holds."""
    if not path.exists():
        tiny.save_sd1(path, seed=seed, **SIZES)
    holds = True
    print(f"{'against diffusers and transformers':40} {'error / std':>12} {'bound':>8}")
    for what, error in rows(path):
        holds &= error <= BOUND
        print(f"{what:40} {error:12.2e} {BOUND:8.0e}  {'ok' if error <= BOUND else 'BROKEN'}", flush=True)
    return holds


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", type=Path, help="where to keep the checkpoint; an existing one is used")
    chosen = parser.parse_args(arguments)
    if chosen.file:
        return 0 if run(chosen.file, chosen.seed) else 1
    with tempfile.TemporaryDirectory() as folder:
        return 0 if run(Path(folder) / "sd15.safetensors", chosen.seed) else 1


if __name__ == "__main__":
    sys.exit(main())
