"""Ladders of noise levels: (steps, sigma_min, sigma_max) -> sigmas, falling; length and last value are the schedule's own.

Every function gives float32 on the CPU, computed in float64 and rounded once, so that a ladder is the same on every machine.
"""
from __future__ import annotations

import math
import pkgutil
from collections.abc import Sequence

import torch
from torch import Tensor

from modules.core.errors import ScheduleError
from modules.sampling import catalogue
from modules.sampling.levels import MOST_STEPS
from modules.sampling.prediction import Prediction
from modules.sampling.quantiles import beta_quantile


def ladder(scheduler_name: str, sampler_name: str, steps: int, prediction: Prediction, *, rho: float = 0.0, sigma_min: float = 0.0,
           sigma_max: float = 0.0, discard: bool = False, alpha: float = 0.6, beta: float = 0.6, sdxl: bool = False,
           levels: Sequence[float] = (), skip: str = "time_uniform") -> Tensor:
    """The noise levels a sampler walks: (n + 1,) float32 on the CPU, falling.

    scheduler_name: "Automatic" is the sampler's own schedule, or Uniform. A sampler that can walk only one ladder (DDIM) ignores the name.
    rho, sigma_min, sigma_max: 0 = the schedule's and the model's own; for schedules that have them. alpha, beta: of Beta.
    sdxl: tables that were measured for SD1 and for SDXL are SDXL's. skip: in what UniPC's own ladder is even.
    discard: leave out the smallest level above the end, as some samplers always do; one more level is built, so the steps stay as many.
    levels: the ladder itself, walked as it stands instead of the schedule; `steps` and all the others then have no say.
    Raises ScheduleError for numbers of which no ladder can be made, NotFoundError for unknown names.
    """
    sampler, schedule = catalogue.sampler(sampler_name), catalogue.schedule(scheduler_name)
    if len(levels):
        return _given(levels, sampler)
    low, high = sigma_min or prediction.sigma_min, sigma_max or prediction.sigma_max
    _check(steps, low, high, rho, prediction)
    if sampler.own_schedule:
        more = {"skip": skip} if "skip" in sampler.own_needs else {}
        return pkgutil.resolve_name(sampler.own_schedule)(steps, low, high, prediction, **more)
    if schedule.name == "automatic":
        schedule = catalogue.schedule(sampler.default_schedule or "uniform")
    discard = discard or sampler.discard
    told = {"prediction": prediction, "rho": rho or schedule.default_rho, "alpha": alpha, "beta": beta, "sdxl": sdxl}
    sigmas = pkgutil.resolve_name(schedule.function)(steps + discard, low, high, **{name: told[name] for name in schedule.needs})
    if discard:
        sigmas = torch.cat((sigmas[:-2], sigmas[-1:]))
    if not _falls(sigmas):
        raise ScheduleError(f"{schedule.label} cannot make {steps} different noise levels from {high:g} down to {low:g}; use fewer steps"
                            " or another range.")
    return sigmas


def karras(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Evenly spaced in sigma ** (1 / rho), then 0: (steps + 1,). Karras et al. 2022, arXiv:2206.00364, eq. 5."""
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _with_zero((first + _even(0, 1, steps) * (last - first)) ** rho)


def exponential(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Evenly spaced in log sigma, then 0: (steps + 1,)."""
    return polyexponential(steps, sigma_min, sigma_max)


def polyexponential(steps: int, sigma_min: float, sigma_max: float, rho: float = 1.0) -> Tensor:
    """log sigma falls as a ramp to the power rho, then 0: (steps + 1,). rho 1 is exponential."""
    ramp = _even(1, 0, steps) ** rho
    return _with_zero((ramp * (math.log(sigma_max) - math.log(sigma_min)) + math.log(sigma_min)).exp())


def uniform(steps: int, sigma_min: float, sigma_max: float, prediction: Prediction) -> Tensor:
    """Evenly spaced in the model's whole range of training indices, then 0: (steps + 1,). sigma_min and sigma_max have no say."""
    return _with_zero(prediction.sigma_of(_even(len(prediction.sigmas) - 1, 0, steps)))


def normal(steps: int, sigma_min: float, sigma_max: float, prediction: Prediction) -> Tensor:
    """Evenly spaced in the training index from that of sigma_max to that of sigma_min, then 0: (steps + 1,)."""
    return _with_zero(prediction.sigma_of(_even(float(prediction.t_of(sigma_max)), float(prediction.t_of(sigma_min)), steps)))


def sgm_uniform(steps: int, sigma_min: float, sigma_max: float, prediction: Prediction) -> Tensor:
    """As `normal` with one interval more, whose end is replaced by 0: (steps + 1,)."""
    return _with_zero(prediction.sigma_of(_even(float(prediction.t_of(sigma_max)), float(prediction.t_of(sigma_min)), steps + 1)[:-1]))


def simple(steps: int, sigma_min: float, sigma_max: float, prediction: Prediction) -> Tensor:
    """Entries of the model's own table at even distances from the top, then 0: (steps + 1,)."""
    count = len(prediction.sigmas)
    return _with_zero(prediction.sigmas[[count - 1 - int(i * count / steps) for i in range(steps)]])


def turbo(steps: int, sigma_min: float, sigma_max: float, prediction: Prediction) -> Tensor:
    """Entries of the model's own table at the ends of equal parts, as few-step models are distilled, then 0: (steps + 1,)."""
    count = len(prediction.sigmas)
    return _with_zero(prediction.sigmas[[min(max(round(k * count / steps - 1), 0), count - 1) for k in range(steps, 0, -1)]])


def kl_optimal(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Evenly spaced in arctan sigma: (steps + 1,), ending at sigma_min, not 0. Sabour et al. 2024, arXiv:2404.14507."""
    return _even(math.atan(sigma_max), math.atan(sigma_min), steps + 1).tan().float()


def ddim(steps: int, sigma_min: float, sigma_max: float, prediction: Prediction) -> Tensor:
    """Every k-th entry of the model's table from index 1 on, k = 1000 // steps, then 0. Can be longer than steps + 1: 30 give 32 levels."""
    return _with_zero(prediction.sigmas[1::max(len(prediction.sigmas) // steps, 1)].flip(0))


def beta(steps: int, sigma_min: float, sigma_max: float, alpha: float = 0.6, beta: float = 0.6) -> Tensor:
    """Quantiles of the beta distribution, stretched over the range of levels, then 0: (steps + 1,). Lee et al. 2024, arXiv:2407.12173.

    alpha, beta: its shape, 0.01 to 1; both below 1 crowd the levels at the two ends. The paper spaces timesteps; here the levels themselves
    are spaced, as web UIs do. Raises ScheduleError for another shape.
    """
    for name, shape in (("alpha", alpha), ("beta", beta)):
        if not 0.01 <= shape <= 1:
            raise ScheduleError(f"Beta scheduler {name} must be 0.01 to 1, and {shape:g} was asked for.")
    return _with_zero(sigma_min + beta_quantile(1 - _even(0, 1, steps), alpha, beta) * (sigma_max - sigma_min))


def laplace(steps: int, sigma_min: float, sigma_max: float, mean: float = 0.0, spread: float = 0.5) -> Tensor:
    """Quantiles of a Laplace distribution of log sigma, cut to the range, then 0: (steps + 1,). Hang et al. 2024, arXiv:2407.03297.

    mean, spread: of log sigma, so most levels lie around exp(mean). The ends of the distribution are cut at exp(mean ± 11.5 spread) too.
    """
    ramp = _even(0, 1, steps)
    tail = (1 - 2 * (ramp - 0.5).abs() + 1e-5).log()
    return _with_zero((mean - spread * torch.sign(0.5 - ramp) * tail).exp().clamp(sigma_min, sigma_max))


def linear_quadratic(steps: int, sigma_min: float, sigma_max: float, threshold: float = 0.025) -> Tensor:
    """The first half of the steps falls evenly by `threshold` of sigma_max, the rest as a parabola down to 0: (steps + 1,).

    Polyak et al. 2024, arXiv:2410.13720 (Movie Gen), made for flows from 1 to 0. Halves meet at one slope; sigma_min has no
    say. One step goes from sigma_max to 0.
    """
    straight = steps // 2
    slope = threshold / straight if straight else 0.0
    begun = slope * straight
    curve = (1 - begun - slope * (steps - straight)) / (steps - straight) ** 2
    place = _even(0, steps, steps + 1)
    beyond = (place - straight).clamp(min=0)
    return _with_zero((1 - slope * place - curve * beyond ** 2)[:-1] * sigma_max)


def ddim_timesteps(steps: int, sigma_min: float, sigma_max: float, prediction: Prediction) -> Tensor:
    """The only ladder of the DDIM sampler: levels of the indices 1, 1 + k, 1 + 2k ..., k = 1000 // steps, from the top, ending above 0.

    20 steps give 20 levels, that is 19 intervals; 30 give 31 levels. Above 500 steps the two uppermost levels are the same.
    Raises ScheduleError where there would be no interval at all.
    """
    count = len(prediction.sigmas)
    if not 2 <= steps <= count:
        raise ScheduleError(f"DDIM takes 2 to {count} steps, and {steps} were asked for.")
    return prediction.sigmas[[min(t + 1, count - 1) for t in range(0, count, count // steps)]].flip(0)


def _given(levels: Sequence[float], sampler: catalogue.SamplerEntry) -> Tensor:
    """A ladder that was given as numbers, if it is one."""
    if sampler.own_schedule:
        raise ScheduleError(f"{sampler.name} walks only its own noise levels; choose another sampler for a list of them.")
    if not 2 <= len(levels) <= MOST_STEPS + 1:
        raise ScheduleError(f"A list of noise levels has 2 to {MOST_STEPS + 1} numbers, and {len(levels)} were given.")
    sigmas = torch.tensor(levels, dtype=torch.float64).float()
    if not _falls(sigmas) or float(sigmas[-1]) < 0:
        raise ScheduleError("A list of noise levels must fall from number to number and end at 0 or above.")
    return sigmas


def _falls(sigmas: Tensor) -> bool:
    return bool((sigmas[1:] < sigmas[:-1]).all()) and bool(sigmas.isfinite().all())


def _check(steps: int, sigma_min: float, sigma_max: float, rho: float, prediction: Prediction) -> None:
    if not 1 <= steps <= MOST_STEPS:
        raise ScheduleError(f"Sampling steps must be 1 to {MOST_STEPS}, and {steps} were asked for.")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ScheduleError(
            f"Schedule min sigma must be above 0 and below Schedule max sigma (0 means the model's own, {prediction.sigma_min:.6g} and "
            f"{prediction.sigma_max:.6g}), and {sigma_min:g} to {sigma_max:g} was asked for.")
    if rho and not 0.1 <= rho <= 1000:
        raise ScheduleError(f"Schedule rho must be 0.1 to 1000, or 0 for the schedule's own, and {rho:g} was asked for.")


def _even(first: float, last: float, count: int) -> Tensor:
    return torch.linspace(first, last, count, dtype=torch.float64)


def _with_zero(sigmas: Tensor) -> Tensor:
    return torch.cat((sigmas.float(), torch.zeros(1)))
