"""More of our samplers beside diffusers' schedulers: the same network, the same noise, latents within 1e-4 of their size."""
import pytest
import torch

from modules.sampling import catalogue
from modules.sampling.prediction import Prediction, scaled_linear_alphas
from modules.sampling.samplers.dpm2 import dpm2, dpm2_ancestral
from modules.sampling.samplers.dpmpp_3m import dpmpp_3m_sde
from modules.sampling.samplers.few_step import ddpm, lcm, tcd
from modules.sampling.samplers.multistep import deis, lms, plms
from modules.sampling.samplers.sa_solver import sa_solver
from modules.sampling.samplers.unipc import unipc
from modules.sampling.schedule import ladder
from tests.sampling.test_against_diffusers import BETAS, KINDS, STEPS, Pairs, close, levels, noise_at, ours, theirs, unit

diffusers = pytest.importorskip("diffusers")
SD1 = Prediction("eps", scaled_linear_alphas())


def given_noise(monkeypatch, module):
    """The scheduler's draws are ours."""
    pairs = Pairs()
    monkeypatch.setattr(getattr(diffusers.schedulers, module), "randn_tensor", lambda shape, **rest: pairs(None, None))


def twofold(scheduler):
    """The ladder of a scheduler that keeps each level twice, for its two calls a step."""
    sigmas = torch.cat((scheduler.sigmas[0:1], scheduler.sigmas[1:-1:2])).float()
    assert torch.allclose(sigmas, ladder("Karras", "Euler", STEPS, SD1), rtol=2e-4, atol=1e-6)
    return sigmas


def at(scheduler):
    """The levels of its timesteps, then 0."""
    return torch.cat((SD1.sigmas[scheduler.timesteps.long()], torch.zeros(1)))


@KINDS
def test_lms_is_diffusers_lms(kind, named):
    scheduler = diffusers.LMSDiscreteScheduler(**BETAS, prediction_type=named, use_karras_sigmas=True)
    scheduler.set_timesteps(STEPS)
    sigmas = levels(scheduler, "Karras")
    x = noise_at(sigmas[0])
    assert close(ours(lms, kind, x, sigmas), theirs(scheduler, kind, x)[-1])


@KINDS
def test_dpm2_is_diffusers_kdpm2(kind, named):
    scheduler = diffusers.KDPM2DiscreteScheduler(**BETAS, prediction_type=named, use_karras_sigmas=True)
    scheduler.set_timesteps(STEPS)
    sigmas = twofold(scheduler)
    x = noise_at(sigmas[0])
    assert close(ours(dpm2, kind, x, sigmas), theirs(scheduler, kind, x)[-1])


@KINDS
def test_dpm2_a_is_diffusers_kdpm2_ancestral_given_its_noise(kind, named, monkeypatch):
    scheduler = diffusers.KDPM2AncestralDiscreteScheduler(**BETAS, prediction_type=named, use_karras_sigmas=True)
    scheduler.set_timesteps(STEPS)
    given_noise(monkeypatch, "scheduling_k_dpm_2_ancestral_discrete")
    sigmas = twofold(scheduler)
    x = noise_at(sigmas[0])
    assert close(ours(dpm2_ancestral, kind, x, sigmas), theirs(scheduler, kind, x)[-1])


def test_plms_is_diffusers_pndm_up_to_its_last_level():
    """For a model of noise: of velocities diffusers averages the velocities themselves."""
    scheduler = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
    scheduler.set_timesteps(20)
    sigmas = ladder("Automatic", "PLMS", 20, SD1)
    z = noise_at(1.0)
    end = ours(plms, "eps", z * (1 + sigmas[0] ** 2) ** 0.5, sigmas)
    assert close(unit(end, sigmas[-1]), theirs(scheduler, "eps", z)[-2])


@KINDS
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("lower", [True, False])
def test_unipc_is_diffusers_unipc_on_a_ladder_that_ends_above_zero(kind, named, variant, order, lower):
    scheduler = diffusers.UniPCMultistepScheduler(**BETAS, prediction_type=named, timestep_spacing="trailing", solver_order=order,
                                                  solver_type=variant, final_sigmas_type="sigma_min", lower_order_final=lower)
    scheduler.set_timesteps(STEPS)
    sigmas = scheduler.sigmas.float()
    x = noise_at(sigmas[0])
    end = ours(unipc, kind, x, sigmas, variant=variant, order=order, lower_order_final=lower)
    assert close(unit(end, sigmas[-1]), theirs(scheduler, kind, unit(x, sigmas[0]))[-1])


@KINDS
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_is_diffusers_deis_down_to_its_smallest_level(kind, named, order):
    scheduler = diffusers.DEISMultistepScheduler(**BETAS, prediction_type=named, use_karras_sigmas=True, solver_order=order,
                                                 lower_order_final=False)
    scheduler.set_timesteps(STEPS)
    sigmas = scheduler.sigmas.float()[:STEPS]
    assert torch.allclose(sigmas, ladder("Karras", "Euler", STEPS, SD1)[:-1], rtol=2e-4)
    x = noise_at(sigmas[0])
    latents = theirs(scheduler, kind, unit(x, sigmas[0]))
    assert close(unit(ours(deis, kind, x, sigmas, order=order), sigmas[-1]), latents[STEPS - 2])


@KINDS
def test_dpmpp_3m_sde_without_new_noise_is_diffusers_multistep_solver(kind, named):
    """Compared before the last two steps, which diffusers takes to a lower order. In its stochastic form the curvature has one 1/2 with the
    other sign, so that it does not vanish with the step; there the distribution is the judge.
    """
    scheduler = diffusers.DPMSolverMultistepScheduler(**BETAS, prediction_type=named, use_karras_sigmas=True, solver_order=3,
                                                      final_sigmas_type="zero", algorithm_type="dpmsolver++", solver_type="heun")
    scheduler.set_timesteps(STEPS)
    sigmas = levels(scheduler, "Karras")
    x = noise_at(sigmas[0])
    latents = theirs(scheduler, kind, unit(x, sigmas[0]))
    assert close(unit(ours(dpmpp_3m_sde, kind, x, sigmas[:-2], eta=0.0), sigmas[-3]), latents[-3])


@KINDS
@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
def test_sa_solver_of_first_order_is_diffusers_sa_solver_given_its_noise(kind, named, tau, monkeypatch):
    """With one guess in the predictor and one, the new one, in the corrector; with more diffusers bends the published weights."""
    scheduler = diffusers.SASolverScheduler(**BETAS, prediction_type=named, use_karras_sigmas=True, predictor_order=1, corrector_order=1,
                                            tau_func=lambda t: tau, algorithm_type="data_prediction")
    scheduler.set_timesteps(STEPS)
    given_noise(monkeypatch, "scheduling_sasolver")
    sigmas = scheduler.sigmas.float()
    x = noise_at(sigmas[0])
    latents = theirs(scheduler, kind, unit(x, sigmas[0]))
    end = ours(sa_solver, kind, x, sigmas[:-1], eta=tau, predictor=1, corrector=1)
    assert close(unit(end, sigmas[-2]), latents[-2])


@KINDS
def test_ddpm_is_diffusers_ddpm_given_its_noise(kind, named, monkeypatch):
    scheduler = diffusers.DDPMScheduler(**BETAS, prediction_type=named, clip_sample=False, variance_type="fixed_small")
    scheduler.set_timesteps(STEPS)
    given_noise(monkeypatch, "scheduling_ddpm")
    sigmas = at(scheduler)
    z = noise_at(1.0)
    assert close(ours(ddpm, kind, z * (1 + sigmas[0] ** 2) ** 0.5, sigmas), theirs(scheduler, kind, z)[-1])


@KINDS
def test_lcm_is_diffusers_lcm_given_its_noise(kind, named, monkeypatch):
    scheduler = diffusers.LCMScheduler(**BETAS, prediction_type=named, clip_sample=False)
    scheduler.set_timesteps(4)
    given_noise(monkeypatch, "scheduling_lcm")
    sigmas = at(scheduler)
    z = noise_at(1.0)
    assert close(ours(lcm, kind, z * (1 + sigmas[0] ** 2) ** 0.5, sigmas), theirs(scheduler, kind, z)[-1])


@KINDS
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.6])
def test_tcd_is_diffusers_tcd_up_to_its_last_step_given_its_noise(kind, named, gamma, monkeypatch):
    scheduler = diffusers.TCDScheduler(**BETAS, prediction_type=named, clip_sample=False)
    scheduler.set_timesteps(4)
    given_noise(monkeypatch, "scheduling_tcd")
    sigmas = at(scheduler)[:-1]
    z = noise_at(1.0)
    latents = theirs(scheduler, kind, z, eta=lambda k: gamma)
    assert close(unit(ours(tcd, kind, z * (1 + sigmas[0] ** 2) ** 0.5, sigmas, eta=gamma), sigmas[-1]), latents[-2])


def test_samplers_without_a_scheduler_beside_them_are_known_by_name():
    beside = {"euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "ddim", "lms", "dpm2", "dpm2_ancestral", "plms", "unipc", "deis",
              "dpmpp_3m_sde", "sa_solver", "ddpm", "lcm", "tcd"}
    alone = {"dpmpp_sde", "dpmpp_2s_ancestral", "dpm_fast", "dpm_adaptive", "restart", "heunpp2", "ipndm", "ipndm_v", "er_sde", "res_multistep",
             "res_multistep_ancestral", "gradient_estimation", "seeds_2", "seeds_3", "ddim_cfgpp", "euler_cfgpp", "euler_ancestral_cfgpp",
             "dpmpp_2s_ancestral_cfgpp", "dpmpp_2m_cfgpp"}
    assert {entry.function.split(":")[1] for entry in catalogue.SAMPLERS} == beside | alone
