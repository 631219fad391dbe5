"""DPM-Solver on the noise the model sees: so many calls in all, or as many as a tolerance asks for. Lu et al. 2022, arXiv:2206.00927.

Both choose levels of their own, even or adapted in -log sigma, between the ladder's first and its smallest above 0, and end at that one.
"""
import math
from collections.abc import Callable

import torch
from torch import Tensor

from modules.sampling.samplers import Denoise, Noise, OnStep
from modules.sampling.samplers.euler import ancestral

SHORTEST = 1e-3                                             # in -log sigma: no adaptive step is refused below this

Seen = Callable[[Tensor, float], Tensor]                    # (x, level) -> the noise in it, (x - denoised) / level


def dpm_fast(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise,
             eta: float = 1.0, s_noise: float = 1.0) -> Tensor:
    """As many model calls as the ladder has intervals, in steps of three calls and shorter last ones; a draw of noise a step.

    x: (B, C, H, W) at noise level sigmas[0]. Returns (B, C, H, W) at the smallest level above 0. Section 3.4, "DPM-Solver-fast".
    eta: 0 = no new noise. A ladder of one interval that ends at 0 gives the model's guess.
    """
    first, last, calls = *_range(sigmas), len(sigmas) - 1
    if first == last:
        denoised = denoise(x, sigmas[0]).value
        on_step(0, denoised)
        return denoised
    orders = _orders(calls)
    levels = torch.linspace(-math.log(first), -math.log(last), len(orders) + 1, dtype=torch.float64).neg().exp().tolist()
    levels[0], levels[-1] = first, last
    guess = x

    def seen(x: Tensor, level: float) -> Tensor:
        nonlocal guess
        guess = denoise(x, sigmas.new_tensor(level)).value
        return (x - guess) / level

    for i, (order, sigma, sigma_next) in enumerate(zip(orders, levels[:-1], levels[1:], strict=True)):
        sigma_down, sigma_up = _down(sigma, sigma_next, eta, last)
        x = _step(seen, x, sigma, sigma_down, order, seen(x, sigma))
        on_step(i, guess)
        x = x + noise(sigmas.new_tensor(sigma), sigmas.new_tensor(sigma_next)) * (s_noise * sigma_up)
    return x


def dpm_adaptive(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0,
                 rtol: float = 0.05, atol: float = 0.0078, h_init: float = 0.05, accept_safety: float = 0.81) -> Tensor:
    """Steps of third order, three model calls each, as long as the second-order answer within them agrees: Algorithm 3, "DPM-Solver-23".

    x: (B, C, H, W) at noise level sigmas[0]. Returns (B, C, H, W) at the smallest level above 0. A draw of noise a step that is accepted,
    and on_step then too. The picture that agrees least decides for all of a batch; alone it may take other steps.
    rtol, atol: what disagreement is let pass, relative and absolute, as the root of its mean square over a picture. h_init: the first step,
    in -log sigma. accept_safety: a step is taken whose successor would be at least so many times as long.
    """
    level, last = _range(sigmas)
    step, h, before, guess = 0, h_init, x, x

    def seen(x: Tensor, level: float) -> Tensor:
        nonlocal guess
        guess = denoise(x, sigmas.new_tensor(level)).value
        return (x - guess) / level

    if level == last:
        x = x - level * seen(x, level)
        on_step(0, x)
    now = seen(x, level) if level > last else x
    while math.log(level / last) > 1e-5:
        sigma_next = max(last, level * math.exp(-h))
        sigma_down, sigma_up = _down(level, sigma_next, eta, last)
        third = sigma_down ** (1 / 3) * level ** (2 / 3)
        ahead = seen(_first(x, level, third, now), third)
        low = _first(x, level, sigma_down, now) + 1.5 * (level - sigma_down) * (now - ahead)
        high = _step(seen, x, level, sigma_down, 3, now, ahead)
        allowed = (rtol * torch.maximum(low.abs(), before.abs())).clamp(min=atol)
        disagreement = float(((low - high) / allowed).square().flatten(1).mean(1).sqrt().max())
        if not math.isfinite(disagreement):
            return high                                     # not numbers: no step would ever be short enough
        factor = 1 + math.atan((disagreement + 1e-8) ** -(1 / (1.5 if eta else 3)) - 1)      # 1.5: the order in the presence of noise
        if factor >= accept_safety or h < SHORTEST:
            on_step(step, guess)
            x = high + noise(sigmas.new_tensor(level), sigmas.new_tensor(sigma_next)) * (s_noise * sigma_up)
            before, level, step = low, sigma_next, step + 1
            if math.log(level / last) > 1e-5:
                now = seen(x, level)
        h *= factor
    return x


def _range(sigmas: Tensor) -> tuple[float, float]:
    """The first level of the ladder and the smallest above 0."""
    return float(sigmas[0]), float(sigmas[-1] if sigmas[-1] > 0 else sigmas[-2])


def _orders(calls: int) -> list[int]:
    """Orders of the steps that together take so many model calls: threes, and at the end 2 and 1, or 1, or 2."""
    threes, rest = divmod(calls, 3)
    return [3] * threes + [rest] if rest else [3] * (threes - 1) + [2, 1]


def _down(sigma: float, sigma_next: float, eta: float, last: float) -> tuple[float, float]:
    """(sigma_down, sigma_up) of an ancestral step that goes no lower than `last`."""
    sigma_down = max(last, ancestral(sigma, sigma_next, eta)[0])
    return sigma_down, math.sqrt(max(sigma_next ** 2 - sigma_down ** 2, 0.0))


def _first(x: Tensor, sigma: float, sigma_next: float, seen_noise: Tensor) -> Tensor:
    return x + (sigma_next - sigma) * seen_noise


def _step(seen: Seen, x: Tensor, sigma: float, sigma_next: float, order: int, now: Tensor, third: Tensor | None = None) -> Tensor:
    """x one step down, to the order given. now: the noise seen in x at sigma; third: what was seen after a third of the step, where known.

    Algorithms 1, 4 and 5 with alpha = 1: order 2 looks at the middle of the step in log sigma, order 3 at its thirds.
    """
    h = math.log(sigma / sigma_next)
    way = sigma_next - sigma                                # -sigma_next * (exp(h) - 1)
    if order == 1 or h == 0:
        return _first(x, sigma, sigma_next, now)
    if order == 2:
        middle = math.sqrt(sigma * sigma_next)
        return _first(x, sigma, sigma_next, seen(_first(x, sigma, middle, now), middle))
    one, two = (sigma * math.exp(-h * share) for share in (1 / 3, 2 / 3))
    if third is None:
        third = seen(_first(x, sigma, one, now), one)
    bend = 2 * two * (math.expm1(2 * h / 3) / (2 * h / 3) - 1)
    ahead = seen(_first(x, sigma, two, now) - bend * (third - now), two)
    return x + way * now - 1.5 * sigma_next * (math.expm1(h) / h - 1) * (ahead - now)
