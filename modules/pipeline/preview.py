"""A latent as a small picture, while sampling runs: one linear map from latent channels to colours, fitted to the VAE at hand."""
from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from modules.families.base import Model
from modules.imaging import convert
from modules.pipeline import latents

CELLS = 8                                                   # width of the latent that the map is fitted on


@torch.inference_mode()
def colours(model: Model) -> Tensor:
    """(channels + 1, 3): least squares from latents (and a constant) to the mean colour that this VAE decodes there, -1..1.

    Fitted once a VAE on one small random latent with its own generator, so that no seed is touched.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    latent = torch.randn(1, model.latent.channels, CELLS, CELLS, generator=generator)
    pixels = latents.decode(model, latent.to(model.device))
    seen = torch.nn.functional.avg_pool2d(pixels.float().cpu(), model.latent.downscale)
    rows = latent.flatten(2)[0].T
    known = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    return torch.linalg.lstsq(known, seen.flatten(2)[0].T).solution


def draw(latent: Tensor, map_: Tensor, size: tuple[int, int]) -> Image.Image:
    """The first picture of a latent (B, C, h, w) as a PIL image of `size` (width, height) in pixels."""
    flat = latent[:1].float().cpu().flatten(2)[0].T
    pixels = torch.cat([flat, torch.ones(len(flat), 1)], dim=1) @ map_
    small = convert.to_images(pixels.T.reshape(1, 3, *latent.shape[-2:]))[0]
    return small.resize(size, Image.Resampling.BICUBIC)
