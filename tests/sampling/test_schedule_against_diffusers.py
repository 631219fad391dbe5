"""Ladders against those of diffusers' schedulers, where it has them."""
import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler, EulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import AysSchedules

from modules.sampling import schedule
from modules.sampling.prediction import Prediction, continuous_alphas, scaled_linear_alphas, zero_terminal_snr

SD1 = Prediction("eps", scaled_linear_alphas())
ZERO_SNR = Prediction("v", zero_terminal_snr(scaled_linear_alphas()))
STEPS = (1, 2, 4, 10, 20, 25)


def theirs(steps: int, **settings) -> np.ndarray:
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **settings)
    scheduler.set_timesteps(steps)
    return scheduler.sigmas.numpy()


def ours(label: str, steps: int, model: Prediction = SD1) -> np.ndarray:
    return schedule.ladder(label, "Euler", steps, model).numpy()


@pytest.mark.parametrize("label, settings", [
    ("Karras", {"use_karras_sigmas": True}), ("Exponential", {"use_exponential_sigmas": True}), ("Beta", {"use_beta_sigmas": True}),
    ("Turbo", {"timestep_spacing": "trailing"}),
])
@pytest.mark.parametrize("steps", STEPS)
def test_levels_are_those_of_diffusers(label, settings, steps):
    if steps == 1 and label != "Turbo":                     # diffusers takes the range from the one level that it has
        settings = {**settings, "timestep_spacing": "trailing"}
    np.testing.assert_allclose(ours(label, steps), theirs(steps, **settings), rtol=1e-4)


@pytest.mark.parametrize("steps", [3, 10, 20])
def test_indices_evenly_spaced_are_those_of_diffusers_up_to_its_interpolation_between_levels(steps):
    """It is linear in sigma there, and in log sigma here: alike where indices are whole, close between neighbours of a table of 1000."""
    np.testing.assert_allclose(ours("Uniform", steps), theirs(steps, timestep_spacing="linspace"), rtol=1e-4)


@pytest.mark.parametrize("steps", [4, 10, 20])
def test_a_model_of_zero_terminal_snr_has_the_levels_of_diffusers_below_the_topmost(steps):
    """The topmost is infinite but for the number that is put there: 4096 in diffusers, 4519 where A1111's users come from."""
    wanted = theirs(steps, timestep_spacing="trailing", rescale_betas_zero_snr=True, prediction_type="v_prediction")
    np.testing.assert_allclose(ours("Turbo", steps, ZERO_SNR)[1:], wanted[1:], rtol=1e-4)
    assert (wanted[0], ours("Turbo", steps, ZERO_SNR)[0]) == (pytest.approx(4096, rel=1e-3), pytest.approx(4518.76, rel=1e-5))


@pytest.mark.parametrize("label, name", [("Karras", "karras"), ("Exponential", "exponential")])
@pytest.mark.parametrize("steps", [2, 10, 20])
def test_a_continuous_model_has_the_levels_of_diffusers(label, name, steps):
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_schedule=name)
    scheduler.set_timesteps(steps)
    model = Prediction("edm", continuous_alphas(0.002, 80.0), continuous=True)
    np.testing.assert_allclose(ours(label, steps, model), scheduler.sigmas.numpy(), rtol=1e-4)
    told = model.told(torch.from_numpy(ours(label, steps, model)[:-1]))
    np.testing.assert_allclose(told.numpy(), scheduler.timesteps.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, sdxl", [("StableDiffusion", False), ("StableDiffusionXL", True)])
def test_aligned_steps_are_the_levels_and_the_indices_that_diffusers_lists(name, sdxl):
    """Its ladder of ten steps goes from the last but one level to 0 at once; the eleventh level here is the end of the published table."""
    sigmas = schedule.ladder("Align Your Steps", "Euler", 11, SD1, sdxl=sdxl)
    np.testing.assert_allclose(sigmas[:10].numpy(), AysSchedules[f"{name}Sigmas"][:10], rtol=1e-6)
    assert np.abs(SD1.t_of(sigmas[:10]).numpy() - AysSchedules[f"{name}Timesteps"]).max() < 1
