"""The noise schedule against diffusers' and against the formulas of Ho et al. 2020."""
import pytest
import torch

from modules.core.errors import ScheduleError
from modules.training import schedule as noise
from modules.training.schedule import register_schedule

DIFFUSERS = {"scaled_linear": "scaled_linear", "linear": "linear", "cosine": "squaredcos_cap_v2"}


@pytest.fixture(scope="module")
def tables():
    return register_schedule()


@pytest.fixture(scope="module")
def latents():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 4, 8, 8, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("name", DIFFUSERS)
def test_betas_and_their_products_are_those_of_diffusers(name):
    ddpm = pytest.importorskip("diffusers").DDPMScheduler(beta_schedule=DIFFUSERS[name], beta_start=0.00085, beta_end=0.012)
    ours = register_schedule(betas=name)
    torch.testing.assert_close(ours.betas, ddpm.betas, rtol=2e-5, atol=1e-9)
    torch.testing.assert_close(ours.alphas_cumprod, ddpm.alphas_cumprod, rtol=2e-5, atol=1e-7)


def test_adding_noise_and_one_step_back_are_those_of_diffusers(tables, latents):
    ddpm = pytest.importorskip("diffusers").DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, variance_type="fixed_small")
    x0, eps, _ = latents
    for t in (999, 500, 1, 0):
        index = torch.full((4,), t)
        x = noise.q_sample(tables, x0, index, eps)
        torch.testing.assert_close(x, ddpm.add_noise(x0, eps, index), rtol=1e-5, atol=1e-5)
        theirs = ddpm.step(eps, t, x, generator=torch.Generator().manual_seed(7)).prev_sample
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
        torch.testing.assert_close(noise.p_sample(tables, "eps", lambda x, t: eps, x, index, drawn), theirs, rtol=1e-4, atol=1e-4)


def test_given_betas_override_the_named_ones():
    given = torch.tensor([0.1, 0.2, 0.5])
    tables = register_schedule(betas=given, steps=7)
    torch.testing.assert_close(tables.alphas_cumprod, torch.tensor([0.9, 0.72, 0.36]))
    torch.testing.assert_close(tables.alphas_cumprod_prev, torch.tensor([1.0, 0.9, 0.72]))
    torch.testing.assert_close(tables.snr, torch.tensor([9.0, 0.72 / 0.28, 0.36 / 0.64]))


def test_the_posterior_is_the_product_of_its_two_gaussians(tables, latents):
    """q(x_{t-1} | x_t, x_0) is q(x_t | x_{t-1}) q(x_{t-1} | x_0) without its norm: precisions add, means are weighted by them."""
    x0, x, _ = latents
    t = torch.tensor([1, 10, 500, 999])
    beta, before = (noise.at(table.double(), t, x0) for table in (tables.betas, tables.alphas_cumprod_prev))
    precision = (1 - beta) / beta + 1 / (1 - before)
    mean = ((1 - beta).sqrt() / beta * x + before.sqrt() / (1 - before) * x0) / precision
    found, variance, log_variance = noise.q_posterior(tables, x0, x, t)
    torch.testing.assert_close(found.double(), mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(variance.double(), 1 / precision, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(log_variance.exp(), variance, rtol=1e-4, atol=1e-9)


def test_v_posterior_moves_the_variance_to_beta():
    full = register_schedule(v_posterior=1.0)
    torch.testing.assert_close(full.posterior_variance, full.betas)
    half, none = register_schedule(v_posterior=0.5), register_schedule()
    torch.testing.assert_close(half.posterior_variance, (full.posterior_variance + none.posterior_variance) / 2)
    assert none.posterior_variance[0] == 0 and none.posterior_log_variance_clipped[0] == pytest.approx(-46.0517, abs=1e-3)


@pytest.mark.parametrize("kind", noise.KINDS)
def test_the_clean_latent_comes_back_from_what_was_asked(tables, latents, kind):
    from modules.training.objectives import target
    x0, eps, _ = latents
    t = torch.tensor([0, 10, 300, 600])
    x = noise.q_sample(tables, x0, t, eps)
    asked = target(kind, tables, x0, eps, t)
    torch.testing.assert_close(noise.predict_start(tables, kind, x, t, asked), x0, rtol=1e-3, atol=1e-3)
    if kind == "v":
        torch.testing.assert_close(noise.predict_noise_from_v(tables, x, t, asked), eps, rtol=1e-3, atol=1e-3)


def test_ancestral_sampling_with_a_perfect_network_ends_at_the_picture():
    tables = register_schedule(steps=50, last=0.2)
    generator = torch.Generator().manual_seed(1)
    x0, x = (torch.randn(2, 4, 4, 4, generator=generator) for _ in range(2))

    def network(x, t):
        return (x - noise.at(tables.sqrt_alphas_cumprod, t, x) * x0) / noise.at(tables.sqrt_one_minus_alphas_cumprod, t, x)

    for t in reversed(range(50)):
        x = noise.p_sample(tables, "eps", network, x, torch.full((2,), t), torch.randn(x.shape, generator=generator))
    torch.testing.assert_close(x, x0, rtol=1e-4, atol=1e-4)


def test_the_variational_weights_are_the_published_formulas():
    beta = torch.tensor([0.1, 0.2, 0.5])
    eps, x0, v = (register_schedule(kind, beta).lvlb_weights for kind in noise.KINDS)
    second = 0.2 ** 2 / (2 * (0.2 * 0.1 / 0.28) * 0.8 * 0.28)
    third = 0.5 ** 2 / (2 * (0.5 * 0.28 / 0.64) * 0.5 * 0.64)
    torch.testing.assert_close(eps, torch.tensor([second, second, third]))
    assert x0[2] == pytest.approx(0.5 * 0.36 ** 0.5 / (2 * 1 - 0.36)) and x0[0] == x0[1]
    assert v.tolist() == [1.0, 1.0, 1.0]


def test_published_files_carry_twelve_tables_and_not_the_weights_of_the_bound(tables):
    buffers = tables.buffers()
    assert len(buffers) == 12 and "lvlb_weights" not in buffers
    assert all(table.shape == (1000,) and table.dtype == torch.float32 for table in buffers.values())


def test_a_schedule_without_a_signal_at_its_end_needs_another_prediction():
    end = register_schedule("v", zero_terminal_snr=True)
    assert end.alphas_cumprod[-1] < 1e-7 and end.alphas_cumprod[0] == pytest.approx(1 - 0.00085, abs=1e-6)
    with pytest.raises(ScheduleError, match="v"):
        register_schedule("eps", zero_terminal_snr=True)


@pytest.mark.parametrize("wrong", [{"betas": "quadratic"}, {"steps": 1}, {"first": 0.1, "last": 0.01}, {"betas": torch.tensor([0.5, 1.5])},
                                   {"betas": torch.tensor([0.1, float("nan")])}, {"v_posterior": 2.0}])
def test_what_is_no_schedule_is_refused(wrong):
    with pytest.raises(ScheduleError):
        register_schedule(**wrong)
