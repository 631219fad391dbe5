"""Sheets of pictures that show how far a training has come; made by the samplers that everybody else uses."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from modules.imaging.convert import to_images
from modules.imaging.grid import grid
from modules.sampling import catalogue, schedule
from modules.sampling.conditioning import Conditioning
from modules.sampling.denoise import denoise, first_latent
from modules.sampling.noise import Draws
from modules.sampling.prediction import Prediction
from modules.training.autoencoder import Autoencoder
from modules.training.diffusion import Diffusion

SAMPLER, SCHEDULER = "DPM++ 2M", "Karras"
BESIDE = 8                                                  # pictures on a VAE's sheet


@torch.no_grad()
def pictures(task: Diffusion, prompts: Sequence[str], *, seed: int, steps: int, cfg_scale: float) -> list[Image.Image]:
    """One picture a prompt, with the weights as they are now; the n-th from seed + n. Raises NanError."""
    objective, networks = task.recipe.objective, task.networks
    prediction = Prediction(objective.prediction, task.schedule.alphas_cumprod.cpu())     # type: ignore[arg-type]
    entry = catalogue.sampler(SAMPLER)
    sigmas = schedule.ladder(SCHEDULER, SAMPLER, steps, prediction)
    cells = task.recipe.data.size // networks.vae.config.downscale
    noise = Draws([seed + n for n in range(len(prompts))], [0] * len(prompts), 0.0, (networks.vae.config.latent, cells, cells))
    texts = _texts(task, ("", *prompts))
    told = [(((1.0, Conditioning(cross=texts[n + 1:n + 2])),), Conditioning(cross=texts[:1])) for n in range(len(prompts))]
    x = first_latent(noise.first().to(task.device), sigmas[0], entry)
    found = denoise(networks.unet, prediction, x, sigmas, entry, conditioning_at=lambda call: told, cfg_scale=cfg_scale, noise=noise)
    return to_images(networks.vae.decode(found.latent / (task.scale_factor or 1.0)))


def _texts(task: Diffusion, prompts: Sequence[str]) -> Tensor:
    if task.reads_text:
        return task.encoded(prompts)
    return torch.zeros(len(prompts), 1, task.networks.text.width, device=task.device)


def sheet(task: Diffusion) -> Image.Image:
    """The recipe's prompts on one picture."""
    wish = task.recipe.samples
    return grid(pictures(task, wish.prompts, seed=wish.seed, steps=wish.steps, cfg_scale=wish.cfg_scale))


@torch.no_grad()
def reconstructions(task: Autoencoder) -> Image.Image:
    """Pictures of the first batch above what the VAE gives back of them (from the mean of the latent)."""
    pixels = task.batch(0).pixels[:BESIDE].to(task.device)
    mean, _ = task.vae.encode(pixels)
    return grid([*to_images(pixels), *to_images(task.vae.decode(mean))], rows=2)
