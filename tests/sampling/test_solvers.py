"""What one sampler promises beyond the table: exact weights, its special cases, steps of its own choosing, guidance kept out of the noise."""
import math

import numpy as np
import pytest
import torch

from modules.core.errors import Cancelled, ScheduleError
from modules.sampling import catalogue, schedule
from modules.sampling.conditioning import Conditioning
from modules.sampling.denoise import denoise, first_latent
from modules.sampling.noise import Brownian, Draws
from modules.sampling.prediction import Prediction, scaled_linear_alphas
from modules.sampling.samplers import Denoised, cfgpp, dpm_solver, few_step, multistep, restart
from modules.sampling.samplers.exponential import weights
from modules.sampling.schedule import karras
from tests.sampling.test_samplers import ENTRIES, MEAN, SPREAD, Counting, error, gaussian, sampler_of, silent, walk, width

SD1 = Prediction("eps", scaled_linear_alphas())


def integral(function, end):
    """Over 0..end by 64 Gauss points."""
    nodes, shares = np.polynomial.legendre.leggauss(64)
    at = end / 2 * (nodes + 1)
    return end / 2 * float((shares * function(at)).sum())


@pytest.mark.parametrize("h, decay", [(0.05, 1.0), (0.4, 2.0), (1.5, 1.36), (0.3, -1.0), (6.0, 2.0), (1e-5, 1.0)])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_exponential_weights_are_exact_for_polynomials(h, decay, count):
    nodes = [0.0, -0.7 * h, -1.9 * h, h][:count]
    found = weights(nodes, h, decay)
    for power in range(count):
        exact = integral(lambda s, power=power: decay * np.exp(-decay * (h - s)) * (s / h) ** power, h)
        assert sum(weight * (node / h) ** power for weight, node in zip(found, nodes, strict=True)) == pytest.approx(exact, rel=1e-9)


def test_multistep_weights_are_exact_for_polynomials_in_their_own_variable():
    levels, end = [2.0, 2.7, 3.1, 4.0], 1.4
    for power in range(4):
        exact = (end ** (power + 1) - levels[0] ** (power + 1)) / (power + 1)
        assert sum(w * s**power for w, s in zip(multistep.lagrange(levels, end), levels, strict=True)) == pytest.approx(exact)
        exact = -integral(lambda u, power=power: np.log(2.0 - u) ** power, 0.6)
        assert sum(w * math.log(s) ** power for w, s in zip(multistep.logarithmic(levels, end), levels, strict=True)) == pytest.approx(exact)


def test_even_weights_are_those_of_lagrange_on_even_levels():
    for count in range(1, 5):
        levels = [2.0 + 0.5 * k for k in range(count)]
        assert multistep.even(levels, 1.5) == pytest.approx(multistep.lagrange(levels, 1.5))


def test_ipndm_v_is_lms_above_zero_and_eulers_step_to_zero():
    sigmas = karras(9, 0.03, 14.6)
    x = torch.full((1, 1, 2, 2), 9.0)
    a, b = (multistep_end(sampler, x, sigmas[:-1]) for sampler in (multistep.lms, multistep.ipndm_v))
    assert torch.equal(a, b) and not torch.allclose(multistep_end(multistep.lms, x, sigmas), multistep_end(multistep.ipndm_v, x, sigmas))


def multistep_end(sampler, x, sigmas):
    return sampler(gaussian, x, sigmas, silent, noise=lambda a, b: torch.zeros_like(x))


def test_unipc_is_of_fourth_order_where_its_last_steps_are_not_lowered():
    assert error("UniPC", 40, lower_order_final=False) / error("UniPC", 80, lower_order_final=False) == pytest.approx(16, rel=0.1)
    assert error("UniPC", 40, variant="bh2") / error("UniPC", 80, variant="bh2") == pytest.approx(4, rel=0.1)


def test_dpm_fast_is_of_third_order_where_its_last_step_is_not_the_first():
    assert error("DPM fast", 95) / error("DPM fast", 191) == pytest.approx(8, rel=0.1)


def test_er_sde_that_renews_no_noise_is_of_second_order_on_the_noise_free_equation():
    assert error("ER SDE", 80, scaling=lambda sigma: sigma) / error("ER SDE", 160, scaling=lambda sigma: sigma) == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("calls, orders", [(1, [1]), (2, [2]), (3, [2, 1]), (4, [3, 1]), (6, [3, 2, 1]), (8, [3, 3, 2])])
def test_dpm_fast_calls_the_model_as_often_as_the_ladder_has_intervals(calls, orders):
    count, sigmas = Counting((1, 1, 2, 2)), torch.logspace(1, -1, calls + 1)
    dpm_solver.dpm_fast(count.denoise, torch.ones(1, 1, 2, 2), sigmas, count.on_step, noise=count.noise)
    assert (count.calls, count.steps, count.draws) == (calls, list(range(len(orders))), len(orders))
    assert dpm_solver._orders(calls) == orders


def adaptive(x, noise=None, **knobs):
    count = Counting(x.shape)
    end = dpm_solver.dpm_adaptive(count.denoise, x, torch.logspace(1, -1, 5, dtype=torch.float64), count.on_step,
                                  noise=noise or count.noise, **knobs)
    return end, count


def test_dpm_adaptive_comes_as_close_as_its_tolerance_asks():
    x = torch.tensor([[[[3.0, -2.0, 11.0]]]], dtype=torch.float64)
    exact = MEAN + (x - MEAN) * width(0.1) / width(10)
    coarse, few = adaptive(x, eta=0.0)
    fine, many = adaptive(x, eta=0.0, rtol=1e-4, atol=1e-5)
    assert float((coarse - exact).abs().max()) < 0.05 and float((fine - exact).abs().max()) < 1e-3
    assert few.calls < many.calls
    assert few.draws == len(few.steps) and few.steps == list(range(len(few.steps)))


def test_dpm_adaptive_does_not_care_for_the_ladder_between_its_ends():
    x = torch.full((1, 1, 2, 2), 9.0, dtype=torch.float64)
    ends = [multistep_end(dpm_solver.dpm_adaptive, x, torch.logspace(1, -1, n, dtype=torch.float64)) for n in (3, 40)]
    assert torch.allclose(*ends, rtol=1e-12)


def test_dpm_adaptive_ends_where_the_model_gives_no_numbers():
    def broken(x, sigma):
        return Denoised(torch.full_like(x, math.nan))

    end = dpm_solver.dpm_adaptive(broken, torch.ones(1, 1, 2, 2), karras(5, 0.03, 14.6), silent, noise=lambda a, b: torch.zeros(1, 1, 2, 2))
    assert not bool(end.isfinite().any())


def test_dpm_adaptive_is_stopped_after_the_step_it_is_in():
    def stop(i, denoised):
        raise Cancelled("Stopped by the user.")

    count = Counting((1, 1, 2, 2))
    with pytest.raises(Cancelled):
        dpm_solver.dpm_adaptive(count.denoise, torch.ones(1, 1, 2, 2), karras(5, 0.03, 14.6), stop, noise=count.noise)
    assert count.calls == 3


@pytest.mark.parametrize("steps, turns, length", [(10, 0, 0), (19, 0, 0), (20, 1, 9), (35, 1, 9), (36, 2, 9), (50, 2, 12)])
def test_restart_turns_back_near_a_tenth_to_near_two_and_takes_as_many_steps_as_asked(steps, turns, length):
    sigmas = karras(steps, 0.0291675, 14.6146)
    walked = restart.intervals(sigmas)
    back = [i for i in range(1, steps) if walked[i][0] > walked[i - 1][1]]
    assert len(walked) == steps and len(back) == turns
    assert walked[0][0] == pytest.approx(14.6146) and walked[-1][1] == 0
    for i in back:
        levels = karras(steps - turns * length, 0.0291675, 14.6146)
        assert walked[i - 1][1] == float(min(levels, key=lambda level: abs(float(level) - 0.1)))
        assert walked[i][0] == pytest.approx(float(min(levels, key=lambda level: abs(float(level) - 2))), rel=1e-6)
        assert walked[i + length - 1][1] == walked[i - 1][1]


@pytest.mark.parametrize("steps, calls, draws", [(25, 49, 1), (40, 79, 2)])
def test_restart_draws_noise_at_its_turns_alone(steps, calls, draws):
    count = Counting((1, 1, 2, 2))
    restart.restart(count.denoise, torch.ones(1, 1, 2, 2), karras(steps, 0.03, 14.6), count.on_step, noise=count.noise)
    assert (count.calls, count.draws, count.steps) == (calls, draws, list(range(steps)))


def test_restart_with_few_steps_is_heun():
    assert torch.allclose(walk(restart.restart), walk(sampler_of("Heun")), atol=1e-5)


def test_lcm_with_a_consistent_model_ends_in_the_distribution_of_the_data_in_four_steps():
    """The model that jumps to the end of the exact path, for data of one known width."""
    def consistent(x, sigma):
        return Denoised(MEAN + (x - MEAN) * SPREAD / width(sigma))

    generator = torch.Generator().manual_seed(6)
    x = MEAN + width(14.6) * torch.randn(1, 1, 1, 60_000, generator=generator)
    end = few_step.lcm(consistent, x, karras(4, 0.03, 14.6), silent, noise=lambda a, b: torch.randn(x.shape, generator=generator))
    assert float(end.mean()) == pytest.approx(MEAN, abs=0.01) and float(end.std()) == pytest.approx(SPREAD, rel=0.015)


def test_tcd_is_euler_without_gamma_and_lcm_with_all_of_it():
    assert torch.allclose(walk(few_step.tcd, eta=0.0), walk(sampler_of("Euler")), atol=1e-5)
    assert torch.allclose(walk(few_step.tcd, eta=1.0), walk(few_step.lcm), atol=1e-5)


def test_ddpm_is_euler_a_with_the_same_noise():
    assert torch.allclose(walk(few_step.ddpm), walk(sampler_of("Euler a")), atol=1e-4)


@pytest.mark.parametrize("name, plain", [
    ("DPM2 a", "DPM2"), ("RES multistep a", "RES multistep"), ("DPM++ SDE", "DPM++ 2S a"), ("DPM++ 2S a CFG++", "DPM++ 2S a"),
    ("Euler a CFG++", "Euler a"), ("DDIM CFG++", "DDIM"), ("SEEDS 2", "DPM++ 2S a")])
def test_without_new_noise_samplers_of_one_family_are_one(name, plain):
    eta = {"eta": 0.0} if "eta" in ENTRIES[plain].knobs else {}
    assert torch.allclose(walk(sampler_of(name), eta=0.0), walk(sampler_of(plain), **eta), atol=2e-5)


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if "s_noise" in entry.knobs])
def test_s_noise_scales_the_noise_that_comes_in(name):
    """No noise is let in with 0, and what 2 changes is twice what 1 changes, for a model that is linear."""
    entry = ENTRIES[name]
    fixed = {"s_churn": 20.0} if "s_churn" in entry.knobs else {}
    x, sigmas = torch.full((1, 1, 2, 2), 9.0, dtype=torch.float64), torch.logspace(1, -1, 12, dtype=torch.float64)
    drawn = torch.randn(99, 1, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def end(s_noise):
        given = iter(drawn)
        return sampler_of(name)(gaussian, x, sigmas, silent, noise=lambda a, b: next(given), s_noise=s_noise, **fixed)

    none, once, twice = end(0.0), end(1.0), end(2.0)
    assert not torch.allclose(once, none) and torch.allclose(twice - none, 2 * (once - none), rtol=1e-9)


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if "eta" in entry.knobs and name != "DPM adaptive"])
def test_eta_changes_the_picture_and_may_be_more_than_one(name):
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    ends = [walk(sampler_of(name), eta=eta, noise=lambda a, b: noise) for eta in (0.0, 0.5, 1.0, 1.5)]
    assert all(bool(end.isfinite().all()) for end in ends)
    assert not torch.allclose(ends[0], ends[1]) and not torch.allclose(ends[1], ends[2])


CFGPP = [name for name in ENTRIES if "CFG++" in name]


def guided(x, sigma, scale=7.0):
    """Guidance towards data whose mean lies 2 higher."""
    plain = gaussian(x, sigma).value
    return Denoised(plain + scale * 2 * float(sigma) ** 2 / (SPREAD**2 + float(sigma) ** 2), plain)


@pytest.mark.parametrize("name", CFGPP)
def test_cfgpp_takes_a_part_of_the_guidance_and_a_step_to_zero_gives_the_guess_so_guided(name):
    seen, x = [], torch.full((1, 1, 2, 2), 9.0)
    end = sampler_of(name)(guided, x, torch.tensor([2.0, 0.0]), lambda i, d: seen.append(d), noise=lambda a, b: torch.zeros_like(x))
    expected = gaussian(x, 2.0).value + 7.0 / cfgpp.SCALE * 2 * 4 / (SPREAD**2 + 4)
    assert torch.allclose(end, expected) and torch.allclose(seen[0], expected)


@pytest.mark.parametrize("name", CFGPP)
def test_cfgpp_puts_the_noise_seen_without_the_prompt_on_the_guided_guess(name):
    x, eta = torch.full((1, 1, 2, 2), 9.0, dtype=torch.float64), {"eta": 0.0} if "eta" in ENTRIES[name].knobs else {}
    sigmas = torch.tensor([2.0, 1.999999], dtype=torch.float64)                 # so short a step tells the jump from the slope
    end = sampler_of(name)(guided, x, sigmas, silent, noise=lambda a, b: torch.zeros_like(x), **eta)
    seen = guided(x, 2.0)
    assert torch.allclose(end, x + (seen.value - seen.uncond) / cfgpp.SCALE, atol=1e-4)


@pytest.mark.parametrize("steps, intervals", [(1, 1), (2, 2), (10, 10), (20, 20), (30, 31), (1000, 1000)])
def test_the_unipc_ladder_goes_from_the_last_index_to_the_first(steps, intervals):
    sigmas = schedule.ladder("Karras", "UniPC", steps, SD1)
    assert len(sigmas) - 1 == intervals and bool((sigmas.diff() < 0).all())
    assert [float(sigmas[0]), float(sigmas[-1])] == pytest.approx([SD1.sigma_max, SD1.sigma_min], rel=1e-4)


def test_unipc_refuses_more_steps_than_the_model_has_levels():
    with pytest.raises(ScheduleError, match="UniPC takes"):
        schedule.ladder("Automatic", "UniPC", 1001, SD1)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.8))

    def forward(self, x, timesteps, context):
        return torch.tanh(self.weight * x + torch.cos(timesteps / 300)[:, None, None, None]) + context.mean(dim=(1, 2))[:, None, None, None]


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("steps", [1, 2, 3, 25])
def test_one_step_or_many_give_numbers_for_models_of_noise_and_of_velocity(name, kind, steps):
    prediction, entry, shape = Prediction(kind, scaled_linear_alphas()), catalogue.sampler(name), (4, 4, 4)
    if "ddim_timesteps" in entry.own_schedule and steps == 1:
        return                                              # refused by its ladder
    sigmas = schedule.ladder("Automatic", name, steps, prediction)
    draws = Draws([5], [5], 0.0, shape)
    x = first_latent(draws.first(), sigmas[0], entry)
    positive = sigmas[sigmas > 0]
    noise = Brownian([5], shape, float(positive.min()), float(positive.max())) if entry.brownian else draws
    one, other = Conditioning(cross=torch.full((1, 77, 8), 0.1)), Conditioning(cross=torch.zeros(1, 77, 8))
    taken = []
    done = denoise(Network(), prediction, x, sigmas, entry, conditioning_at=lambda call: [([(1.0, one)], other)], cfg_scale=7.0,
                   noise=noise, on_step=lambda i, d: taken.append(i))
    assert bool(done.latent.isfinite().all()) and taken == list(range(len(taken)))
    assert name in ("DPM fast", "DPM adaptive") or len(taken) == len(sigmas) - 1


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_cfgpp_is_the_timestep_method_whose_direction_is_that_without_the_prompt(eta):
    """z of unit variance at indices 1, 51, 101 ...: the guided guess with the scale over 12.5, the noise seen without the prompt."""
    sigmas = schedule.ladder("Automatic", "DDIM CFG++", 20, SD1).double()
    alphas = [1 / (1 + float(sigma) ** 2) for sigma in sigmas]
    drawn = torch.randn(20, 1, 4, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = drawn[-1]
    for a, a_next, fresh in zip(alphas[:-1], alphas[1:], drawn[:-1], strict=True):
        seen = guided(z / math.sqrt(a), math.sqrt((1 - a) / a))
        direction = (z - math.sqrt(a) * seen.uncond) / math.sqrt(1 - a)
        clean = seen.uncond + (seen.value - seen.uncond) / 12.5
        new = eta * math.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next))
        z = math.sqrt(a_next) * clean + math.sqrt(1 - a_next - new**2) * direction + new * fresh
    given = iter(drawn)
    end = cfgpp.ddim_cfgpp(guided, drawn[-1] / math.sqrt(alphas[0]), sigmas, silent, noise=lambda a, b: next(given), eta=eta)
    assert torch.allclose(end * math.sqrt(alphas[-1]), z, rtol=1e-6, atol=1e-6)


class Path:
    """Unit noise from one Brownian path over the levels: the way to a step's middle is a part of the way to its end."""

    def __init__(self, shape):
        self._generator, self._shape = torch.Generator().manual_seed(8), shape
        self._begin, self._middle, self._gone = math.inf, math.inf, torch.zeros(shape)

    def __call__(self, sigma, sigma_next):
        fresh, begin, end = torch.randn(self._shape, generator=self._generator), float(sigma), float(sigma_next)
        if begin != self._begin:
            self._begin, self._middle, self._gone = begin, end, fresh * math.sqrt(begin - end)
            return fresh
        return (self._gone + fresh * math.sqrt(self._middle - end)) / math.sqrt(begin - end)


@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_dpmpp_sde_on_one_brownian_path_ends_in_the_distribution_of_the_data(eta):
    sigmas, shape = torch.logspace(1, -1.5, 200), (1, 1, 1, 60_000)
    x = MEAN + width(sigmas[0]) * torch.randn(shape, generator=torch.Generator().manual_seed(5))
    end = sampler_of("DPM++ SDE")(gaussian, x, sigmas, silent, noise=Path(shape), eta=eta)
    assert float(end.mean()) == pytest.approx(MEAN, abs=0.015) and float(end.std()) == pytest.approx(width(sigmas[-1]), rel=0.025)


def test_sa_solver_corrects_a_level_with_the_guess_made_there():
    """Over the same calls the corrected path comes closer than the predictor alone."""
    assert error("SA-Solver", 40, predictor=2, corrector=3) < error("SA-Solver", 40, predictor=2, corrector=2) / 2


@pytest.mark.parametrize("name", ENTRIES)
def test_calls_that_prompt_editing_counts_are_those_that_are_made_but_for_the_ends_of_the_ladder(name):
    if name in ("DPM fast", "DPM adaptive"):
        return                                              # their ladder is counted as if each level were a step
    count = Counting((1, 1, 2, 2))
    sampler_of(name)(count.denoise, torch.ones(1, 1, 2, 2), karras(12, 0.03, 14.6), count.on_step, noise=count.noise)
    assert 0 <= ENTRIES[name].calls(12) - count.calls <= 3 or (name, count.calls) == ("PLMS", 13)
