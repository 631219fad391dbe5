"""What models are told beside the words: a picture and a mask as further channels of the latent, sizes and scores as a vector."""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.core.errors import RequestError
from modules.families.base import Framing, Model
from modules.networks.unet import timestep_embedding
from modules.sampling.conditioning import Conditioning
from modules.sampling.prediction import scaled_linear_alphas

MOST_NOISE = 350                                            # that the x4 upscaler was trained with
UPSCALER_BETAS = (0.0001, 0.02)                             # of that noise, and of its latents


def inpainting(model: Model, framing: Framing) -> Conditioning:
    """The mask (1 = to be painted anew) and the latent of the picture with mid-grey in the hole: concat (1, 1 + C, h, w).

    Rombach et al. 2022, arXiv:2112.10752, 4.5. Without a picture all is a hole.
    """
    image, mask = _image(model, framing), _mask(model, framing)
    known = image * (1 - framing.mask_weight * (mask >= 0.5).to(image.dtype))
    return Conditioning(concat=torch.cat((_nearest(mask, framing, model), latent_of(model, known, framing)), dim=1))


def signed_inpainting(model: Model, framing: Framing) -> Conditioning:
    """The latent of the picture with black in the hole, and the mask as -1 and 1: concat (1, C + 1, h, w), as the first models had it."""
    image, mask = _image(model, framing), _mask(model, framing)
    hole = (mask >= 0.5).to(image.dtype)
    known = ((1 - hole) * (image + 1) / 2) * 2 - 1
    return Conditioning(concat=torch.cat((latent_of(model, known, framing), 2 * _nearest(hole, framing, model) - 1), dim=1))


def editing(model: Model, framing: Framing) -> Conditioning:
    """The latent of the picture to edit, not scaled: concat (1, C, h, w). Brooks et al. 2023, arXiv:2211.09800, 3.2. None is zeros."""
    if framing.image is None:
        return Conditioning(concat=_zeros(model, framing, model.latent.channels))
    return Conditioning(concat=_encoded(model, framing.image))


def scaled_editing(model: Model, framing: Framing) -> Conditioning:
    """As `editing`, with the latent scaled (CosXL Edit)."""
    if framing.image is None:
        return Conditioning(concat=_zeros(model, framing, model.latent.channels))
    return Conditioning(concat=latent_of(model, framing.image, framing))


def depths(model: Model, framing: Framing) -> Conditioning:
    """The depth map stretched to -1..1: concat (1, 1, h, w). Ranftl et al. 2020, arXiv:1907.01341 made those of the training.

    Raises RequestError without one.
    """
    if framing.depth is None:
        raise RequestError("This model redraws a picture by its depth; give it a picture and a depth map of it.", "depth")
    low, high = framing.depth.amin(), framing.depth.amax()
    return Conditioning(concat=(2 * (framing.depth.float() - low) / (high - low).clamp(min=1e-6) - 1).to(model.device))


def enlarging(model: Model, framing: Framing) -> Conditioning:
    """The small picture itself, of the latent's size: concat (1, 3, h, w). Raises RequestError without one."""
    if framing.image is None:
        raise RequestError("This model enlarges pictures and cannot begin from words alone; give it a picture.", "checkpoint")
    size = (framing.height // model.latent.downscale, framing.width // model.latent.downscale)
    small = framing.image.float()
    if tuple(small.shape[-2:]) != size:
        small = F.interpolate(small, size=size, mode="bicubic", antialias=True).clamp(-1, 1)
    return Conditioning(concat=small.to(model.device))


def noisy_enlarging(model: Model, framing: Framing) -> Conditioning:
    """The small picture with noise of a told level on it: concat (1, 3, h, w), label (1,). Ho et al. 2021, arXiv:2106.15282, 4."""
    small = enlarging(model, framing).concat
    assert small is not None
    level = min(max(framing.noise_level, 0), MOST_NOISE)
    alpha = float(scaled_linear_alphas(*UPSCALER_BETAS)[level])
    noise = torch.zeros_like(small) if framing.noise is None else framing.noise.to(small)
    return Conditioning(concat=alpha ** 0.5 * small + (1 - alpha) ** 0.5 * noise,
                        label=torch.tensor([level], dtype=torch.int64, device=model.device))


def sizes(model: Model, framing: Framing, negative: bool) -> Conditioning:
    """Original size, crop and target size of the picture: vector (1, 6 D). Podell et al. 2023, arXiv:2307.01952, 2.2."""
    height, width = framing.height, framing.width
    return _numbers(model, (height, width, *framing.crop, height, width))


def scores(model: Model, framing: Framing, negative: bool) -> Conditioning:
    """Original size, crop and aesthetic score: vector (1, 5 D); the refiner's (Podell et al. 2023, 2.5)."""
    return _numbers(model, (framing.height, framing.width, *framing.crop, framing.aesthetic[negative]))


def _numbers(model: Model, numbers: Sequence[float]) -> Conditioning:
    pooled = model.text[-1].config.projection
    each = (model.unet.config.label - pooled) // len(numbers)       # type: ignore[union-attr,operator]
    return Conditioning(vector=timestep_embedding(torch.tensor(numbers, dtype=torch.float32), each).flatten()[None].to(model.device))


def no_image(model: Model, framing: Framing) -> Conditioning:
    """No picture's meaning and no noise on it: vector (1, D) of zeros; unCLIP without a picture (Ramesh et al. 2022, arXiv:2204.06125)."""
    return Conditioning(vector=torch.zeros(1, model.unet.config.label, device=model.device))     # type: ignore[union-attr,arg-type]


def latent_of(model: Model, pixels: Tensor, framing: Framing) -> Tensor:
    """pixels (1, 3, H, W) in -1..1 -> the mean latent (1, C, h, w) as the U-Net knows it, float32."""
    return model.latent.to_model(_encoded(model, pixels))


@torch.no_grad()
def _encoded(model: Model, pixels: Tensor) -> Tensor:
    dtype = next(model.vae.parameters()).dtype
    mean: Tensor = model.vae.encode(pixels.to(model.device, dtype))[0]       # type: ignore[operator]
    return mean.float()


def _image(model: Model, framing: Framing) -> Tensor:
    """The picture, or mid-grey."""
    if framing.image is not None:
        return framing.image.to(model.device, torch.float32)
    return torch.zeros(1, 3, framing.height, framing.width, device=model.device)


def _mask(model: Model, framing: Framing) -> Tensor:
    if framing.mask is not None:
        return framing.mask.to(model.device, torch.float32)
    return torch.ones(1, 1, framing.height, framing.width, device=model.device)


def _nearest(mask: Tensor, framing: Framing, model: Model) -> Tensor:
    size = (framing.height // model.latent.downscale, framing.width // model.latent.downscale)
    return F.interpolate((mask >= 0.5).float(), size=size, mode="nearest")


def _zeros(model: Model, framing: Framing, channels: int) -> Tensor:
    return torch.zeros(1, channels, framing.height // model.latent.downscale, framing.width // model.latent.downscale, device=model.device)
