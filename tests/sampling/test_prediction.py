"""Noise levels, training indices, and what eps and v mean."""
import math

import pytest
import torch

from modules.sampling.prediction import TERMINAL_ALPHA, Prediction, scaled_linear_alphas, zero_terminal_snr

EPS = Prediction("eps", scaled_linear_alphas())
V = Prediction("v", scaled_linear_alphas())


def test_the_table_of_noise_levels_is_that_of_stable_diffusion():
    assert EPS.sigma_min == pytest.approx(0.0291675, abs=5e-8)
    assert EPS.sigma_max == pytest.approx(14.6146415, abs=1e-6)
    assert EPS.sigmas.dtype == torch.float32 and EPS.sigmas.shape == (1000,) and bool((EPS.sigmas.diff() > 0).all())


def test_every_entry_of_the_table_has_its_own_whole_index():
    assert torch.equal(EPS.t_of(EPS.sigmas), torch.arange(1000.0))


def test_an_index_between_two_entries_comes_back():
    t = torch.linspace(0, 999, 3777)
    assert torch.allclose(EPS.t_of(EPS.sigma_of(t)), t, atol=2e-2)     # float32 levels hold an index to a hundredth at the flat end
    assert float(EPS.sigma_of(10.5)) == pytest.approx(math.sqrt(float(EPS.sigmas[10]) * float(EPS.sigmas[11])), rel=1e-6)


@pytest.mark.parametrize("sigma, t", [(0.0, 0.0), (1e-9, 0.0), (1e9, 999.0)])
def test_levels_beyond_the_table_have_the_index_of_its_end(sigma, t):
    assert float(EPS.t_of(sigma)) == t


@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6])
def test_a_network_that_knows_the_noise_gives_back_the_clean_latent(sigma):
    generator = torch.Generator().manual_seed(3)
    clean, noise = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 4, 8, 8, generator=generator)
    x, alpha = clean + sigma * noise, 1 / (1 + sigma**2)
    velocity = math.sqrt(alpha) * noise - math.sqrt(1 - alpha) * clean
    level = torch.tensor(sigma)
    assert torch.allclose(EPS.denoised(lambda x_in, t: noise, x, level), clean, atol=2e-5)
    assert torch.allclose(V.denoised(lambda x_in, t: velocity, x, level), clean, atol=2e-5)


def test_the_network_sees_unit_variance_and_the_index_of_the_level_for_every_row():
    seen = {}

    def network(x, t):
        seen.update(x=x, t=t)
        return torch.zeros_like(x)

    EPS.denoised(network, torch.full((3, 4, 2, 2), 5.0), EPS.sigmas[700])
    assert seen["t"].tolist() == [700.0] * 3 and seen["t"].dtype == torch.float32
    assert torch.allclose(seen["x"], torch.tensor(5.0 / math.hypot(1, float(EPS.sigmas[700]))))


def test_zero_terminal_snr_keeps_the_first_level_and_makes_the_last_nearly_pure_noise():
    alphas = zero_terminal_snr(scaled_linear_alphas())
    assert float(alphas[0]) == pytest.approx(float(scaled_linear_alphas()[0]), rel=1e-6)
    assert float(alphas[-1]) == pytest.approx(TERMINAL_ALPHA, rel=1e-6)
    assert math.isfinite(Prediction("v", alphas).sigma_max)
    assert bool((alphas.diff() < 0).all())
