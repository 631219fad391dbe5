"""Where a batch begins: its ladder of noise levels, its first latent, the noise of its steps, and what of a picture is kept."""
from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modules.families.base import Model
from modules.imaging.mask import latent_sized
from modules.pipeline.opening import Opening
from modules.pipeline.plan import Batch
from modules.pipeline.request import InitImage, Request
from modules.sampling import catalogue, schedule
from modules.sampling.denoise import first_latent
from modules.sampling.levels import levels_of
from modules.sampling.masked import Mask, blended, hard, soft
from modules.sampling.noise import Brownian, Draws, Generator
from modules.sampling.samplers import Noise

MOST_STRENGTH = 0.999                                       # a denoising strength above it counts as this one
STEPS_OF_ITS_OWN = "ddim_timesteps"                         # ladders of indices, which published seeds entered one index lower


@dataclass(frozen=True, kw_only=True, eq=False)
class Begin:
    """x (B, C, h, w) float32 on the model's device at noise level sigmas[0]; sigmas on the CPU; noise for the steps on x's device.

    mask: what is kept of a picture; None = nothing.
    """

    x: Tensor
    sigmas: Tensor
    noise: Noise
    mask: Mask | None = None


def ladder(request: Request, model: Model) -> Tensor:
    """The noise levels of the request's sampler and schedule for this model, falling, on the CPU. Raises ScheduleError."""
    return schedule.ladder(
        request.scheduler, request.sampler, request.steps, model.prediction, rho=request.schedule_rho,
        sigma_min=request.schedule_sigma_min, sigma_max=request.schedule_sigma_max,
        discard=request.discard_penultimate_sigma, alpha=request.schedule_alpha, beta=request.schedule_beta,
        sdxl=model.family.sdxl_ladder, levels=levels_of(request.schedule_levels), skip=request.uni_pc_skip_type)


def start(batch: Batch, model: Model, opening: Opening | None = None) -> Begin:
    """Noise of the pictures' own seeds: alone at the first level, or on a picture at the level at which its ladder is entered.

    A Brownian sampler's path spans the whole ladder and knows the seeds alone: no ENSD, no variation. Models that enlarge a picture
    are told it and begin from noise alone.
    """
    request, entry = batch.request, catalogue.sampler(batch.request.sampler)
    init = request.init if opening is not None and model.variant != "upscale" else None
    levels, entered, after = ladder(request, model), 0, 0
    if init is not None:
        levels, entered, after = entry_of(request, init, model)
    shape = (model.latent.channels, request.height // model.latent.downscale, request.width // model.latent.downscale)
    seeds = [slot.seed for slot in batch.slots]
    draws = Draws(
        seeds, [slot.subseed for slot in batch.slots], request.subseed_strength, shape, source=request.randn_source,
        ensd=request.eta_noise_seed_delta, resize_from=(request.seed_resize_from_w, request.seed_resize_from_h),
        downscale=model.latent.downscale)
    first = draws.first().to(model.device)
    source: Noise = draws
    if entry.brownian:
        above = levels[levels > 0]
        source = Brownian(seeds, shape, float(above.min()), float(above.max()), source=request.randn_source)
    mask = None
    if init is not None and opening is not None:
        mask = _mask(batch, model, opening, levels[entered], entry.start == "vp")
        latent = mask.latent if mask else opening.latent(model).expand(len(seeds), -1, -1, -1)
        x = on_picture(latent, first, init, float(levels[entered]), float(levels[after]))
    else:
        x = first_latent(first, levels[0], entry, request.sgm_noise_multiplier)
    return Begin(x=x, sigmas=levels[after:], noise=lambda sigma, sigma_next: source(sigma, sigma_next).to(x.device), mask=mask)


def entry_of(request: Request, init: InitImage, model: Model) -> tuple[Tensor, int, int]:
    """(ladder, place whose level the first noise has, place from which it is walked): one place but for ladders of indices.

    Of S steps int(strength * S) + 1 are walked; with img2img_fix_steps all S, on a ladder of S / strength.
    """
    steps, strength = request.steps, min(init.denoising_strength, MOST_STRENGTH)
    count = int(strength * steps)
    if init.img2img_fix_steps and strength > 0:
        request, count = dataclasses.replace(request, steps=int(steps / strength)), steps - 1
    levels = ladder(request, model)
    if STEPS_OF_ITS_OWN in catalogue.sampler(request.sampler).own_schedule:
        count = min(max(count, 2), len(levels) - 1)         # fewer would be no step at all
        return levels, len(levels) - 1 - count, len(levels) - count
    first = max(0, request.steps - count - 1)
    return levels, first, first


def on_picture(latent: Tensor, noise: Tensor, init: InitImage, sigma: float, walked: float) -> Tensor:
    """The first latent (B, C, h, w): noise of the level `sigma` on a picture's latent, taken to stand at the level `walked`.

    Where the two differ, what is carried over is z = x / sqrt(1 + sigma^2), which samplers of such ladders walk.
    """
    x = latent + noise * (init.initial_noise_multiplier * sigma) + noise * init.img2img_extra_noise
    return x * (math.hypot(1.0, walked) / math.hypot(1.0, sigma)) if walked != sigma else x


def _mask(batch: Batch, model: Model, opening: Opening, level: Tensor, unit: bool) -> Mask | None:
    """What is kept of the picture, with what the request wants to stand under the mask; None without a mask."""
    found, init = opening.of(model), batch.request.init
    if found is None or init is None or found.mask is None:
        return None
    latent = opening.latent(model)
    height, width = latent.shape[-2:]
    rounded = init.mask_round and not init.soft_inpainting
    paint = torch.from_numpy(latent_sized(found.mask, width, height, binary=rounded))[None, None].to(latent)
    under = latent.expand(len(batch.slots), -1, -1, -1)
    if init.inpainting_fill == 2:
        own = [Generator(slot.seed, batch.request.randn_source).randn(tuple(latent.shape[1:])) for slot in batch.slots]
        under = blended(torch.stack(own).to(latent), under, paint)
    elif init.inpainting_fill == 3:
        under = under * (1 - paint)
    return Mask(latent=under, paint_at=soft(paint, model.prediction, level) if init.soft_inpainting else hard(paint), unit=unit)


def knobs(request: Request) -> dict[str, Any]:
    """What the request says about eta, churn and UniPC, as the samplers know it. s_tmax 0 means no upper end."""
    entry = catalogue.sampler(request.sampler)
    eta = entry.default_eta if request.eta is None else request.eta
    values = {"eta": eta, "s_churn": request.s_churn, "s_tmin": request.s_tmin, "s_noise": request.s_noise,
              "s_tmax": request.s_tmax or float("inf"), "order": request.uni_pc_order, "variant": request.uni_pc_variant,
              "lower_order_final": request.uni_pc_lower_order_final}
    return {name: values[name] for name in entry.knobs}
