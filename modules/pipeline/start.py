"""Where a batch begins: its ladder of noise levels, its first latent, and the noise of its steps."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from modules.families.base import Model
from modules.pipeline.plan import Batch
from modules.pipeline.request import Request
from modules.sampling import catalogue, schedule
from modules.sampling.denoise import first_latent
from modules.sampling.noise import Brownian, Draws
from modules.sampling.samplers import Noise


@dataclass(frozen=True, kw_only=True, eq=False)
class Begin:
    """x (B, C, h, w) float32 on the model's device at noise level sigmas[0]; sigmas on the CPU; noise for the steps on x's device."""

    x: Tensor
    sigmas: Tensor
    noise: Noise


def ladder(request: Request, model: Model) -> Tensor:
    """The noise levels of the request's sampler and schedule for this model, falling, on the CPU. Raises ScheduleError."""
    return schedule.ladder(
        request.scheduler, request.sampler, request.steps, model.prediction, rho=request.schedule_rho,
        sigma_min=request.schedule_sigma_min, sigma_max=request.schedule_sigma_max,
        discard=request.discard_penultimate_sigma, sdxl=model.family.sdxl_ladder)


def start(batch: Batch, model: Model) -> Begin:
    """Pure noise of the pictures' own seeds at the first level. A Brownian sampler's path knows the seeds alone: no ENSD, no variation."""
    request, entry = batch.request, catalogue.sampler(batch.request.sampler)
    sigmas = ladder(request, model)
    shape = (model.latent.channels, request.height // model.latent.downscale, request.width // model.latent.downscale)
    seeds = [slot.seed for slot in batch.slots]
    draws = Draws(
        seeds, [slot.subseed for slot in batch.slots], request.subseed_strength, shape, source=request.randn_source,
        ensd=request.eta_noise_seed_delta, resize_from=(request.seed_resize_from_w, request.seed_resize_from_h),
        downscale=model.latent.downscale)
    x = first_latent(draws.first().to(model.device), sigmas[0], entry, request.sgm_noise_multiplier)
    source: Noise = draws
    if entry.brownian:
        levels = sigmas[sigmas > 0]
        source = Brownian(seeds, shape, float(levels.min()), float(levels.max()), source=request.randn_source)
    return Begin(x=x, sigmas=sigmas, noise=lambda sigma, sigma_next: source(sigma, sigma_next).to(x.device))


def knobs(request: Request) -> dict[str, Any]:
    """What the request says about eta and churn, as the samplers know it. s_tmax 0 means no upper end."""
    entry = catalogue.sampler(request.sampler)
    eta = entry.default_eta if request.eta is None else request.eta
    values = {"eta": eta, "s_churn": request.s_churn, "s_tmin": request.s_tmin, "s_noise": request.s_noise,
              "s_tmax": request.s_tmax or float("inf")}
    return {name: values[name] for name in entry.knobs}
