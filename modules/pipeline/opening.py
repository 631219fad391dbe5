"""What a request begins from: its pictures opened, fitted to the size that is drawn, and masked; and the result put back into them."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy
import torch
from PIL import Image
from torch import Tensor

from modules.core.errors import RequestError
from modules.families.base import Framing, Model
from modules.imaging import convert, mask, match, resize
from modules.imaging.color import on_colour
from modules.imaging.mask import Box
from modules.pipeline import latents
from modules.pipeline.plan import Slot
from modules.pipeline.request import InitImage, Request
from modules.sampling.noise import Generator

OTHER_STREAM = 1 << 63                                      # added to a seed: noise that no draw of the picture itself repeats


@dataclass(frozen=True, kw_only=True, eq=False)
class Overlay:
    """What lies over the result: the original (RGB) where `mask` (L, as large) is black.

    box: where in the original the result belongs; None = the whole of it.
    """

    image: Image.Image
    mask: Image.Image
    box: Box | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """Pictures ready for a model. image: RGB as the model gets it; whole: RGB as it came in; mask: L, as large as what is drawn."""

    image: Image.Image
    whole: Image.Image
    mask: Image.Image | None = None
    overlay: Overlay | None = None
    depth: Image.Image | None = None
    notices: tuple[str, ...] = ()


class Opening:
    """The init of one request. Pictures are read when the first model asks, and encoded once for all batches."""

    def __init__(self, request: Request, read: Callable[[str], Image.Image]) -> None:
        self.request, self.init = request, request.init
        self._read = read
        self._opened: dict[int, Opened] = {}
        self._latent: tuple[Model, Tensor] | None = None

    @property
    def notices(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(notice for one in self._opened.values() for notice in one.notices))

    @property
    def image_cfg_scale(self) -> float | None:
        return self.init.image_cfg_scale if self.init else None

    def of(self, model: Model) -> Opened | None:
        """The pictures at the size that this model draws; None without an init. Raises RequestError, NotFoundError, ImageMetaError."""
        if self.init is None:
            return None
        cell = model.latent.downscale
        if cell not in self._opened:
            size = (self.request.width // cell * cell, self.request.height // cell * cell)
            self._opened[cell] = opened(self.init, self._read, size, cell)
        return self._opened[cell]

    def latent(self, model: Model) -> Tensor:
        """The mean latent (1, C, h, w) of the picture, float32 on the model's device: no draw, so one picture has one latent."""
        found = self.of(model)
        assert found is not None and self.init is not None
        if self._latent is None or self._latent[0] is not model:
            with model.at_work(model.vae):
                latent = latents.encode(model, convert.to_pixels(found.image).to(model.device))
            if self.init.resize_mode == resize.LATENT:
                size = (self.request.height // model.latent.downscale, self.request.width // model.latent.downscale)
                latent = torch.nn.functional.interpolate(latent, size=size, mode="bilinear")
            self._latent = (model, latent)
        return self._latent[1]

    def framing(self, model: Model, slot: Slot) -> Framing:
        """What the model is told of this picture beside its words."""
        request, init, found = self.request, self.init, self.of(model)
        if found is None or init is None:
            return Framing(width=request.width, height=request.height)
        cell = model.latent.downscale
        cells = (request.width // cell, request.height // cell)
        image = convert.to_pixels(found.image)
        noise = None
        if model.variant == "upscale":
            image = convert.to_pixels(resize.fitted(found.whole, *cells, init.resize_mode))
            noise = Generator(slot.seed + OTHER_STREAM, request.randn_source).randn(tuple(image.shape[1:]))[None]
        elif init.resize_mode == resize.LATENT and not found.overlay:
            image = convert.to_pixels(resize.fitted(found.whole, cells[0] * cell, cells[1] * cell))
        return Framing(
            width=request.width, height=request.height, image=image, mask=_grey(found.mask) if found.mask else None,
            mask_weight=init.inpainting_mask_weight, noise_level=init.noise_level, noise=noise,
            depth=_grey(found.depth.resize(cells, Image.Resampling.BICUBIC)) if found.depth else None)


def _grey(image: Image.Image) -> Tensor:
    """(1, 1, H, W) float32 in 0..1."""
    return torch.from_numpy(numpy.array(image.convert("L"), dtype=numpy.float32) / 255)[None, None]


def opened(init: InitImage, read: Callable[[str], Image.Image], size: tuple[int, int], cell: int) -> Opened:
    """The pictures of an init for a model that draws `size` (width, height) pixels in cells of so many.

    Raises RequestError for a mask or a depth map of another size, and what `read` raises.
    """
    whole = on_colour(read(init.image), init.img2img_background_color)
    map_ = _sized(read(init.depth).convert("L"), whole, "depth") if init.depth else None
    fit = resize.STRETCH if init.resize_mode == resize.LATENT else init.resize_mode
    placed = resize.fitted(whole, *size, fit)
    given = placed
    if init.resize_mode == resize.LATENT:
        given = whole.crop((0, 0, whole.width // cell * cell, whole.height // cell * cell))
    depth = resize.fitted(map_, *size, fit) if map_ else None
    if not init.mask:
        return Opened(image=given, whole=whole, depth=depth)
    soft = _soft_mask(init, read(init.mask), whole)
    if init.inpaint_full_res:
        box = mask.crop_region(soft, init.inpaint_full_res_padding)
        if box is None:
            return Opened(image=placed, whole=whole, depth=depth, notices=("The mask is black all over, so the whole picture was drawn.",))
        box = mask.expanded(box, size, whole.size)
        paint, placed = (resize.fitted(one.crop(box), *size, resize.CONTAIN) for one in (soft, whole))
        given, overlay = placed, Overlay(image=whole, mask=soft, box=box)
        if map_ is not None:
            depth = resize.fitted(map_.crop(box), *size, resize.CONTAIN)
    else:
        paint = resize.fitted(soft, *size, resize.CONTAIN if init.resize_mode == resize.LATENT else init.resize_mode)
        overlay = Overlay(image=placed, mask=mask.doubled(paint))
    if init.inpainting_fill == 0:
        given = mask.filled(placed, paint)
    return Opened(image=given, whole=whole, mask=paint, overlay=overlay, depth=depth)


def _soft_mask(init: InitImage, image: Image.Image, whole: Image.Image) -> Image.Image:
    """The mask as large as the picture: what is asked for inverted, then blurred."""
    found = mask.mask_of(image, binary=init.mask_round and not init.soft_inpainting)
    found = _sized(found, whole, "mask")
    if init.inpainting_mask_invert:
        found = mask.inverted(found)
    return mask.blurred(found, init.mask_blur_x, init.mask_blur_y)


def _sized(image: Image.Image, whole: Image.Image, what: str) -> Image.Image:
    if image.size != whole.size:
        raise RequestError(f"The {what} has {image.width} × {image.height} pixels and the picture {whole.width} × {whole.height}; "
                           f"give it the picture's size.", field=what)
    return image


def closed(image: Image.Image, found: Opened, init: InitImage) -> Image.Image:
    """The decoded picture, given the colours it began from where asked for, and pasted back: where the mask is black nothing changes."""
    if init.img2img_color_correction:
        image = match.matched(image, found.image)
    over = found.overlay
    if over is None or not init.overlay_inpaint:
        return image
    if over.box is not None:
        left, top, right, bottom = over.box
        canvas = over.image.copy()
        canvas.paste(resize.fitted(image, right - left, bottom - top, resize.COVER), (left, top))
        image = canvas
    return Image.composite(image, over.image, over.mask)
