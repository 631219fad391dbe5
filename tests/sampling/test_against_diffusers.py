"""Our samplers beside diffusers' schedulers: the same network, the same noise, latents within 1e-4 of their size after every step."""
import pytest
import torch

from modules.sampling.prediction import Prediction, scaled_linear_alphas
from modules.sampling.samplers import Denoised
from modules.sampling.samplers.ddim import ddim
from modules.sampling.samplers.dpmpp import dpmpp_2m, dpmpp_2m_sde
from modules.sampling.samplers.euler import euler, euler_ancestral
from modules.sampling.samplers.heun import heun
from modules.sampling.schedule import ladder

diffusers = pytest.importorskip("diffusers")
STEPS, SHAPE = 12, (2, 4, 8, 8)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def network(x, t):
    """Bends with the latent and not with t: diffusers rounds some of its timesteps to whole numbers."""
    return torch.tanh(1.3 * x + 0.2) + 0.1 * x.roll(1, dims=-1)


class Pairs:
    """The same noise for both: draw k is fixed, whoever asks."""

    def __init__(self):
        self.made = 0

    def __call__(self, sigma, sigma_next):
        self.made += 1
        return self.number(self.made - 1)

    @staticmethod
    def number(k):
        return torch.randn(SHAPE, generator=torch.Generator().manual_seed(100 + k))


def theirs(scheduler, kind, x, **step_arguments):
    """The scheduler's own loop from x; returns the latent after each step."""
    latents, k = [], 0
    for t in scheduler.timesteps:
        given = {name: make(k) for name, make in step_arguments.items()}
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, **given).prev_sample
        latents.append(x)
        k += 1
    return latents


def ours(sampler, kind, x, sigmas, **knobs):
    prediction = Prediction(kind, scaled_linear_alphas())
    return sampler(lambda x, sigma: Denoised(prediction.denoised(network, x, sigma)), x, sigmas, lambda i, d: None, noise=Pairs(), **knobs)


def close(a, b):
    return float((a - b).abs().max()) <= 1e-4 * float(b.std())


def noise_at(sigma):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * sigma


KINDS = pytest.mark.parametrize("kind, named", [("eps", "epsilon"), ("v", "v_prediction")])


def levels(scheduler, label):
    """Their ladder, once it is ours."""
    sigmas = ladder(label, "Euler", STEPS, Prediction("eps", scaled_linear_alphas()))
    assert torch.allclose(scheduler.sigmas.float(), sigmas, rtol=2e-4, atol=1e-6)
    return scheduler.sigmas.float()


@KINDS
def test_euler_is_diffusers_euler(kind, named):
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS, prediction_type=named, use_karras_sigmas=True)
    scheduler.set_timesteps(STEPS)
    sigmas = levels(scheduler, "Karras")
    x = noise_at(sigmas[0])
    assert close(ours(euler, kind, x, sigmas), theirs(scheduler, kind, x)[-1])


@KINDS
def test_euler_a_is_diffusers_euler_ancestral_given_its_noise(kind, named, monkeypatch):
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**BETAS, prediction_type=named, timestep_spacing="linspace")
    scheduler.set_timesteps(STEPS)
    sigmas = scheduler.sigmas.float()
    pairs = Pairs()
    module = diffusers.schedulers.scheduling_euler_ancestral_discrete
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **rest: pairs(None, None))
    x = noise_at(sigmas[0])
    assert close(ours(euler_ancestral, kind, x, sigmas), theirs(scheduler, kind, x)[-1])


@KINDS
def test_heun_is_diffusers_heun(kind, named):
    scheduler = diffusers.HeunDiscreteScheduler(**BETAS, prediction_type=named, use_karras_sigmas=True)
    scheduler.set_timesteps(STEPS)
    sigmas = torch.cat((scheduler.sigmas[0:1], scheduler.sigmas[1:-1:2], scheduler.sigmas[-1:])).float()    # there each level stands twice
    assert torch.allclose(sigmas, ladder("Karras", "Heun", STEPS, Prediction("eps", scaled_linear_alphas())), rtol=2e-4, atol=1e-6)
    x = noise_at(sigmas[0])
    assert close(ours(heun, kind, x, sigmas), theirs(scheduler, kind, x)[-1])


def multistep(named, **settings):
    scheduler = diffusers.DPMSolverMultistepScheduler(**BETAS, prediction_type=named, use_karras_sigmas=True, solver_order=2,
                                                      final_sigmas_type="zero", lower_order_final=True, **settings)
    scheduler.set_timesteps(STEPS)
    return scheduler


def unit(x, sigma):
    """diffusers walks latents of unit variance here."""
    return x / (1 + sigma**2) ** 0.5


@KINDS
def test_dpmpp_2m_is_diffusers_multistep_solver(kind, named):
    scheduler = multistep(named, algorithm_type="dpmsolver++")
    sigmas = levels(scheduler, "Karras")
    x = noise_at(sigmas[0])
    assert close(ours(dpmpp_2m, kind, x, sigmas), theirs(scheduler, kind, unit(x, sigmas[0]))[-1])


@KINDS
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_dpmpp_2m_sde_is_diffusers_multistep_solver_given_its_noise(kind, named, solver_type):
    scheduler = multistep(named, algorithm_type="sde-dpmsolver++", solver_type=solver_type)
    sigmas = levels(scheduler, "Karras")
    x = noise_at(sigmas[0])
    latents = theirs(scheduler, kind, unit(x, sigmas[0]), variance_noise=Pairs.number)
    assert close(ours(dpmpp_2m_sde, kind, x, sigmas, solver_type=solver_type), latents[-1])


@KINDS
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim_is_diffusers_ddim_up_to_its_last_level(kind, named, eta):
    """Ours ends at training index 1; diffusers goes on to the model's first level, so its last step is left out."""
    scheduler = diffusers.DDIMScheduler(**BETAS, prediction_type=named, clip_sample=False, set_alpha_to_one=False, steps_offset=1,
                                        timestep_spacing="leading")
    scheduler.set_timesteps(20)
    prediction = Prediction(kind, scaled_linear_alphas())
    sigmas = ladder("Automatic", "DDIM", 20, prediction)
    assert scheduler.timesteps.tolist() == prediction.t_of(sigmas).long().tolist()
    z = noise_at(1.0)
    latents = theirs(scheduler, kind, z, eta=lambda k: eta, variance_noise=lambda k: Pairs.number(k) if eta else None)
    end = ours(ddim, kind, z * (1 + sigmas[0] ** 2) ** 0.5, sigmas, eta=eta)
    assert close(unit(end, sigmas[-1]), latents[-2])
