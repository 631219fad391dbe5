"""Samplers by their mathematics: Gaussian data has a closed form, stochastic samplers must end in the right distribution."""
import functools
import math
import pkgutil

import pytest
import torch

from modules.core.errors import Cancelled
from modules.sampling import catalogue
from modules.sampling.noise import Brownian, Draws
from modules.sampling.samplers import Denoised
from modules.sampling.samplers.dpmpp import dpmpp_2m, dpmpp_2m_sde
from modules.sampling.samplers.euler import ancestral, churn, churned, euler, euler_ancestral
from modules.sampling.schedule import karras

MEAN, SPREAD = 0.7, 0.5                                     # of the data
ENTRIES = {entry.name: entry for entry in catalogue.SAMPLERS}
NOT_ITS_GUESS = ("LMS", "PLMS", "IPNDM", "DPM fast", "DPM adaptive")     # the first three weigh earlier slopes to the end, two end above 0
CALLS_A_STEP = {"PLMS": 4 / 3, "DPM fast": 3}               # over the first three steps, where it is not what the catalogue counts


def sampler_of(name):
    return functools.partial(pkgutil.resolve_name(ENTRIES[name].function), **dict(ENTRIES[name].fixed))


def gaussian(x, sigma):
    """The best guess of a latent that is normal with MEAN and SPREAD, seen through noise."""
    return Denoised((x * SPREAD**2 + MEAN * sigma**2) / (SPREAD**2 + sigma**2))


def width(sigma):
    return math.sqrt(SPREAD**2 + float(sigma) ** 2)


def silent(i, denoised):
    pass


class Counting:
    """A denoiser and a noise that count their calls."""

    def __init__(self, shape):
        self.calls, self.draws, self.steps, self.shape = 0, 0, [], shape
        self._generator = torch.Generator().manual_seed(0)

    def denoise(self, x, sigma):
        self.calls += 1
        return gaussian(x, sigma)

    def noise(self, sigma, sigma_next):
        assert sigma_next < sigma
        self.draws += 1
        return torch.randn(self.shape, generator=self._generator)

    def on_step(self, i, denoised):
        self.steps.append(i)


def rung(steps, gentle=False):
    """Levels 10 to 0.1, evenly in their logarithm. gentle: the first step is replaced by short ones, each twice as long as the one before.

    A multistep method begins with one step of Euler, whose error would hide the order of all the others.
    """
    exponents = torch.linspace(1, -1, steps + 1, dtype=torch.float64)
    if gentle:
        first = exponents[1] - exponents[0]
        exponents = torch.cat((exponents[:1], exponents[0] + first / 2.0 ** torch.arange(12, 0, -1), exponents[1:]))
    return 10 ** exponents


def error(name, steps, gentle=False, **knobs):
    """Distance from the exact end of the path, for a ladder that ends above zero."""
    sigmas = rung(steps, gentle)
    x = torch.tensor([[[[3.0, -2.0, 11.0]]]], dtype=torch.float64)
    exact = MEAN + (x - MEAN) * width(sigmas[-1]) / width(sigmas[0])
    knobs = {"eta": 0.0, **knobs} if "eta" in ENTRIES[name].knobs else knobs
    end = sampler_of(name)(gaussian, x, sigmas, silent, noise=lambda a, b: torch.zeros_like(x), **knobs)
    return float((end - exact).abs().max())


@pytest.mark.parametrize("name, order", [(entry.name, entry.order) for entry in catalogue.SAMPLERS if entry.order])
def test_halving_the_step_divides_the_error_by_two_to_the_order(name, order, figure):
    """For Gaussian data the exact path is known: x - mean falls as sqrt(spread ** 2 + sigma ** 2)."""
    steps = 80 if order <= 2 else 320
    found = error(name, steps, gentle=order > 2) / error(name, 2 * steps, gentle=order > 2)
    figure(f"order of {name} on the Gaussian closed form", math.log2(found), f"= {order}")
    assert found == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("name, order", [
    ("DPM++ 2M SDE", 2), ("DPM++ 2M SDE Heun", 2), ("Euler a", 1), ("DPM++ SDE", 2), ("DPM++ 2S a", 2), ("DPM++ 3M SDE", 2), ("DPM2 a", 2),
    ("TCD", 1), ("RES multistep a", 2), ("SA-Solver", 2), ("SEEDS 2", 2), ("SEEDS 3", 3), ("Euler a CFG++", 1), ("DPM++ 2S a CFG++", 2)])
def test_without_new_noise_the_stochastic_samplers_have_their_order_too(name, order):
    assert error(name, 80) / error(name, 160) == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("name, knobs, tolerance", [
    ("Euler a", {"eta": 1.0}, 0.02), ("Euler a", {"eta": 0.5}, 0.02),
    ("DPM++ 2M SDE", {"eta": 1.0}, 0.01), ("DPM++ 2M SDE", {"eta": 0.4}, 0.01),
    ("DPM++ 2M SDE Heun", {"eta": 1.0}, 0.01), ("DDIM", {"eta": 1.0}, 0.02),
    ("Euler", {"s_churn": 20.0}, 0.03), ("Heun", {"s_churn": 20.0}, 0.01), ("DPM2", {"s_churn": 20.0}, 0.01),
    ("DPM++ 2S a", {"eta": 1.0}, 0.01), ("DPM++ 2S a", {"eta": 0.5}, 0.01), ("DPM2 a", {"eta": 1.0}, 0.01), ("DPM++ 3M SDE", {"eta": 1.0}, 0.01),
    ("DPM fast", {"eta": 1.0}, 0.02), ("DPM fast", {"eta": 0.0}, 0.01), ("DPM adaptive", {"eta": 1.0}, 0.03), ("Restart", {}, 0.01),
    ("DDIM CFG++", {"eta": 1.0}, 0.02), ("DDPM", {}, 0.02), ("ER SDE", {}, 0.01),
    ("RES multistep a", {"eta": 1.0}, 0.01), ("SA-Solver", {"eta": 1.0}, 0.01), ("SA-Solver", {"eta": 0.5}, 0.01),
    ("SEEDS 2", {"eta": 1.0}, 0.01), ("SEEDS 3", {"eta": 1.0}, 0.01), ("SEEDS 3", {"eta": 0.5}, 0.01),
    ("Euler a CFG++", {"eta": 1.0}, 0.02), ("DPM++ 2S a CFG++", {"eta": 1.0}, 0.01),
])
def test_a_stochastic_sampler_ends_in_the_distribution_of_the_data(name, knobs, tolerance):
    """60,000 independent one-cell pictures, 200 steps; the bound is five standard errors (1.5 %) and the method's own error."""
    generator = torch.Generator().manual_seed(5)
    sigmas = torch.cat((torch.logspace(1, -1.5, 200), torch.zeros(1)))[:-1]
    x = MEAN + width(sigmas[0]) * torch.randn(1, 1, 1, 60_000, generator=generator)
    end = sampler_of(name)(gaussian, x, sigmas, silent, noise=lambda a, b: torch.randn(x.shape, generator=generator), **knobs)
    assert float(end.mean()) == pytest.approx(MEAN, abs=5 * SPREAD / math.sqrt(60_000) + tolerance * SPREAD)
    assert float(end.std()) == pytest.approx(width(sigmas[-1]), rel=0.015 + tolerance)


@pytest.mark.parametrize("name, calls, draws", [
    ("Euler", 10, 10), ("Euler a", 10, 9), ("Heun", 19, 10), ("DPM++ 2M", 10, 0), ("DPM++ 2M SDE", 10, 9), ("DPM++ 2M SDE Heun", 10, 9),
    ("DDIM", 10, 10), ("DPM++ SDE", 19, 18), ("DPM++ 2S a", 19, 9), ("DPM++ 3M SDE", 10, 9), ("LMS", 10, 0), ("DPM2", 19, 10),
    ("DPM2 a", 19, 9), ("Restart", 19, 0), ("DDIM CFG++", 10, 10), ("PLMS", 11, 0), ("UniPC", 10, 0), ("LCM", 10, 9), ("TCD", 10, 9),
    ("DDPM", 10, 9), ("HeunPP2", 27, 0), ("IPNDM", 10, 0), ("IPNDM_V", 10, 0), ("DEIS", 10, 0), ("ER SDE", 10, 9), ("RES multistep", 10, 0),
    ("RES multistep a", 10, 9), ("SA-Solver", 10, 9), ("Gradient estimation", 10, 0), ("SEEDS 2", 19, 18), ("SEEDS 3", 28, 27),
    ("Euler CFG++", 10, 0), ("Euler a CFG++", 10, 9), ("DPM++ 2S a CFG++", 19, 9), ("DPM++ 2M CFG++", 10, 0),
])
def test_ten_steps_to_zero_take_this_many_model_calls_and_draws_of_noise(name, calls, draws):
    count = Counting((2, 1, 3, 3))
    sampler_of(name)(count.denoise, torch.ones(2, 1, 3, 3), karras(10, 0.03, 14.6), count.on_step, noise=count.noise)
    assert (count.calls, count.draws, count.steps) == (calls, draws, list(range(10)))


@pytest.mark.parametrize("name", [name for name in ENTRIES if name not in NOT_ITS_GUESS])
def test_a_step_to_zero_gives_the_models_guess(name):
    sigmas = karras(4, 0.03, 14.6)
    seen = []
    x = torch.full((1, 1, 2, 2), 9.0)
    end = sampler_of(name)(gaussian, x, sigmas, lambda i, d: seen.append(d), noise=lambda a, b: torch.zeros_like(x))
    assert torch.allclose(end, seen[-1], atol=1e-6)


@pytest.mark.parametrize("name", [name for name in ENTRIES if name != "DPM adaptive"])
def test_a_sampler_leaves_at_once_when_the_step_is_cancelled(name):
    count = Counting((1, 1, 2, 2))

    def stop(i, denoised):
        if i == 2:
            raise Cancelled("Stopped by the user.")

    with pytest.raises(Cancelled):
        sampler_of(name)(count.denoise, torch.ones(1, 1, 2, 2), karras(10, 0.03, 14.6), stop, noise=count.noise)
    assert count.calls == 3 * CALLS_A_STEP.get(name, ENTRIES[name].calls(1))


def walk(sampler, **knobs):
    generator = torch.Generator().manual_seed(2)
    x = 14.6 * torch.randn(1, 4, 8, 8, generator=generator)
    noise = knobs.pop("noise", lambda a, b: torch.randn(x.shape, generator=generator))
    curved = lambda x, sigma: Denoised(torch.tanh(x / (1 + sigma)) / (1 + 0.1 * sigma))       # noqa: E731
    return sampler(curved, x, karras(12, 0.03, 14.6), silent, noise=noise, **knobs)


def test_euler_a_and_ddim_without_eta_are_euler():
    assert torch.allclose(walk(euler_ancestral, eta=0.0), walk(euler), atol=1e-5)
    assert torch.allclose(walk(sampler_of("DDIM"), eta=0.0), walk(euler), atol=1e-5)


def test_ddim_with_eta_is_euler_a_with_the_same_noise():
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    a, b = (walk(sampler, eta=0.7, noise=lambda a, b: noise) for sampler in (sampler_of("DDIM"), euler_ancestral))
    assert torch.allclose(a, b, atol=1e-5)


def test_dpmpp_2m_sde_without_eta_is_dpmpp_2m():
    assert torch.allclose(walk(dpmpp_2m_sde, eta=0.0), walk(dpmpp_2m), atol=1e-5)
    assert not torch.allclose(walk(dpmpp_2m_sde, eta=0.0, solver_type="heun"), walk(dpmpp_2m), atol=1e-5)


def test_churn_outside_its_range_changes_nothing_and_inside_it_does():
    assert torch.equal(walk(euler, s_churn=30.0, s_tmin=100.0), walk(euler))
    assert torch.equal(walk(euler, s_churn=30.0, s_tmax=0.001), walk(euler))
    assert not torch.equal(walk(euler, s_churn=30.0), walk(euler))
    assert not torch.equal(walk(euler, s_churn=30.0, s_noise=1.1), walk(euler, s_churn=30.0))


@pytest.mark.parametrize("s_churn, sigma, gamma", [(0.0, 5.0, 0.0), (3.0, 5.0, 0.25), (12.0, 5.0, math.sqrt(2) - 1), (3.0, 0.05, 0.0),
                                                   (3.0, 11.0, 0.0), (3.0, 10.0, 0.25), (3.0, 0.1, 0.25)])
def test_churn_is_shared_among_the_steps_and_never_more_than_doubles_the_variance(s_churn, sigma, gamma):
    assert churn(torch.tensor(sigma, dtype=torch.float64), 12, s_churn, 0.1, 10.0) == pytest.approx(gamma)


def test_a_churned_latent_holds_the_noise_of_its_higher_level():
    x, sigma = churned(torch.zeros(1, 1, 1, 1), torch.tensor(2.0), 0.25, torch.full((1, 1, 1, 1), 1.5))
    assert float(sigma) == 2.5 and float(x) == pytest.approx(1.5 * math.sqrt(2.5**2 - 2.0**2))


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_the_two_parts_of_an_ancestral_step_make_up_the_level_asked_for(eta):
    down, up = ancestral(3.0, 2.0, eta)
    assert math.hypot(down, up) == pytest.approx(2.0)
    assert up == pytest.approx(eta * 2.0 * math.sqrt(5) / 3)


def ends(name, seeds, ensd=0):
    """Final latents, one a seed, with the noise a batch of these seeds has."""
    noise = Draws(seeds, seeds, 0.0, (4, 6, 6), ensd=ensd)
    first, sigmas = noise.first(), karras(6, 0.03, 14.6)
    used = Brownian(seeds, (4, 6, 6), 0.03, 14.6) if ENTRIES[name].brownian else noise
    return sampler_of(name)(gaussian, first * sigmas[0], sigmas, silent, noise=used)


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if not entry.alone])
def test_a_picture_is_the_same_to_the_bit_alone_and_in_a_batch(name):
    assert torch.equal(ends(name, [5, 6]), torch.cat((ends(name, [5]), ends(name, [6]))))


@pytest.mark.parametrize("name, changes", [("Euler a", True), ("DPM++ 2M", False), ("DPM++ 2M SDE", False), ("Euler", False)])
def test_a_seed_delta_changes_only_samplers_that_use_the_pictures_later_draws(name, changes):
    assert torch.equal(ends(name, [5], ensd=31337), ends(name, [5])) != changes
