"""From the first noisy latent to the last: a network, a ladder, what stands around the model, and a sampler."""
from __future__ import annotations

import contextlib
import itertools
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from modules.core.errors import Cancelled, NanError
from modules.sampling.catalogue import SamplerEntry
from modules.sampling.guidance import ConditioningAt, Rows, RowsDenoise, Skip, cfg
from modules.sampling.prediction import Prediction
from modules.sampling.samplers import Denoise, Denoised, Noise, OnStep

WrapModel = Callable[[RowsDenoise], RowsDenoise]
Wrap = Callable[[Denoise], Denoise]


@dataclass(frozen=True, eq=False)
class Denoising:
    """latent: (B, C, h, w) float32 on x's device. complete False: stopped early; the latent is the model's last guess of the clean one."""

    latent: Tensor
    complete: bool


@dataclass(frozen=True, eq=False)
class Relay:
    """Another network takes over at the first call whose noise level is at most `sigma`. take: gives it, its prediction, its texts."""

    sigma: float
    take: Callable[[], tuple[nn.Module, Prediction, ConditioningAt]]


@torch.no_grad()                                            # not inference_mode: a wrap may ask for gradients (enable_grad)
def denoise(unet: nn.Module, prediction: Prediction, x: Tensor, sigmas: Tensor, entry: SamplerEntry, *,
            conditioning_at: ConditioningAt, cfg_scale: float, noise: Noise, knobs: Mapping[str, Any] = MappingProxyType({}),
            wrap_models: Sequence[WrapModel] = (), wraps: Sequence[Wrap] = (), on_step: OnStep | None = None,
            check: Callable[[], None] | None = None, batch_rows_limit: int | None = None, relay: Relay | None = None,
            image_cfg_scale: float | None = None, skip: Skip | None = None, guided_model: bool = True) -> Denoising:
    """Walk the ladder `sigmas` from x (B, C, h, w), which is at noise level sigmas[0] (see first_latent), with the sampler of `entry`.

    unet(x, timesteps, context) is called in the type and on the device of its own weights; the sampler's state stays float32 on x's.
    conditioning_at(call): the texts of each picture at this call, see guidance.py; best kept on the network's device already.
    noise(sigma, sigma_next): noise.Draws, or noise.Brownian where entry.brownian. knobs: may hold more than the sampler has; None and a
    missing eta mean its default, s_tmax 0 means no upper end. wrap_models, wraps: the first is innermost. image_cfg_scale, skip: see cfg.
    guided_model: False = there is no "without words" to tell it; the scale is 1 whatever was asked.
    on_step(i, denoised): once a step. check(): before every network call. Either may raise Cancelled: then the last step's guess is given,
    with complete=False; before the first step is done Cancelled goes on to the caller. Raises NanError for values that are no numbers.
    """
    calls = itertools.count()

    def guided(network: nn.Module, kind: Prediction, texts: ConditioningAt) -> Denoise:
        rows_denoise = network_rows(network, kind, check)
        for wrap_model in wrap_models:
            rows_denoise = wrap_model(rows_denoise)
        return cfg(rows_denoise, texts, cfg_scale if guided_model else 1.0, image_cfg_scale=image_cfg_scale, skip=skip,
                   always_uncond=entry.takes_uncond and guided_model, batch_rows_limit=batch_rows_limit, calls=calls)

    outer = guided(unet, prediction, conditioning_at)
    if relay:
        outer = _relayed(outer, relay, guided)
    for wrap in wraps:
        outer = wrap(outer)
    guesses: list[Tensor] = []

    def after_step(i: int, denoised: Tensor) -> None:
        guesses[:] = [denoised]
        if on_step is not None:
            on_step(i, denoised)

    def draw(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return noise(sigma, sigma_next).to(x.device)

    sampler = pkgutil.resolve_name(entry.function)
    try:
        latent = sampler(outer, x.float(), sigmas.to("cpu", torch.float32), after_step, noise=draw, **sampler_arguments(entry, knobs))
    except Cancelled:
        if not guesses:
            raise
        return Denoising(_finite(guesses[0]), complete=False)
    return Denoising(_finite(latent / _unit(sigmas[-1]) if entry.start == "vp" else latent), complete=True)


def _relayed(first: Denoise, relay: Relay, guided: Callable[[nn.Module, Prediction, ConditioningAt], Denoise]) -> Denoise:
    """The first denoiser down to the relay's level, the second from there on; a sampler that goes up again does not wake the first."""
    runs = [first]

    def denoise_(x: Tensor, sigma: Tensor) -> Denoised:
        if len(runs) == 1 and float(sigma) <= relay.sigma:
            runs.append(guided(*relay.take()))
        return runs[-1](x, sigma)

    return denoise_


def first_latent(noise: Tensor, sigma: Tensor | float, entry: SamplerEntry, sgm_noise_multiplier: bool = False) -> Tensor:
    """The latent a picture begins with at the level sigma: unit noise (B, C, h, w) times sigma, or times sqrt(1 + sigma^2).

    The root stands for a clean latent of unit variance below the noise: asked for by sgm_noise_multiplier, and the rule for samplers that
    walk latents of unit variance (entry.start "vp"), whose own first latent is the noise itself.
    """
    return noise * (_unit(sigma) if sgm_noise_multiplier or entry.start == "vp" else float(sigma))


def network_rows(unet: nn.Module, prediction: Prediction, check: Callable[[], None] | None = None) -> RowsDenoise:
    """The network as RowsDenoise: rows in, clean latents out, in x's own type and device."""
    weight = next(unet.parameters())
    device, dtype = weight.device, weight.dtype

    def rows_denoise(rows: Rows) -> Tensor:
        if check is not None:
            check()
        told = rows.conditioning.to(device, dtype)

        def network(x: Tensor, timesteps: Tensor) -> Tensor:
            x_in = x.to(device, dtype)
            if told.concat is not None:
                x_in = torch.cat((x_in, told.concat), dim=1)
            extra = {name: value for name, value in (("vector", told.vector), ("label", told.label)) if value is not None}
            with contextlib.ExitStack() as inside:
                for change in rows.changes:
                    inside.enter_context(change(unet, x.shape[-2:]))
                return unet(x_in, seen_timesteps(timesteps.to(device), dtype), told.cross, **extra).to(x.device, x.dtype)

        return prediction.denoised(network, rows.x, rows.sigma)

    return rows_denoise


def seen_timesteps(timesteps: Tensor, dtype: torch.dtype) -> Tensor:
    """Timesteps as a network of this type is told them, float32. Half precision rounds them (700.3 -> 700.5): published seeds hold it so.

    bfloat16 would round to multiples of 4, so there they stay exact.
    """
    return timesteps.half().float() if dtype == torch.float16 else timesteps.float()


def sampler_arguments(entry: SamplerEntry, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of the entry's function: those of `knobs` that it declares, its default eta, and what the entry fixes."""
    given = {name: knobs[name] if isinstance(knobs[name], str | int) else float(knobs[name])
             for name in entry.knobs if knobs.get(name) is not None}
    if "s_tmax" in given and given["s_tmax"] == 0:
        given["s_tmax"] = math.inf
    if "eta" in entry.knobs:
        given.setdefault("eta", entry.default_eta)
    return {**given, **dict(entry.fixed)}


def _unit(sigma: Tensor | float) -> float:
    return math.hypot(1.0, float(sigma))


def _finite(latent: Tensor) -> Tensor:
    if not bool(latent.isfinite().all()):
        raise NanError("The model gave values that are not numbers while sampling; try another checkpoint or a lower CFG scale.")
    return latent
