"""Between tensors and pictures. Pixels are (B, 3, H, W) in -1..1, as the autoencoder takes and gives them."""
from __future__ import annotations

import numpy
import torch
from PIL import Image
from torch import Tensor

from modules.core.errors import NanError


def to_images(pixels: Tensor) -> list[Image.Image]:
    """pixels: (B, 3, H, W), -1..1 and beyond, any dtype and device. Returns B RGB pictures, clamped and truncated (not rounded) to 0..255.

    Raises NanError if a single value is not finite.
    """
    values = pixels.detach().to(device="cpu", dtype=torch.float32)
    if not bool(values.isfinite().all()):
        raise NanError("The picture holds values that are not numbers; try another VAE or full precision.")
    levels = ((values + 1.0) / 2.0).clamp_(0.0, 1.0).mul_(255.0).to(torch.uint8)
    return [Image.fromarray(picture) for picture in levels.permute(0, 2, 3, 1).contiguous().numpy()]


def to_pixels(image: Image.Image) -> Tensor:
    """A picture of any mode as (1, 3, H, W) float32 in -1..1 on the CPU; transparency is dropped (see color.on_colour)."""
    levels = torch.from_numpy(numpy.array(image.convert("RGB")))
    return (levels.permute(2, 0, 1).unsqueeze(0).float() / 255.0 * 2.0 - 1.0).contiguous()
