"""Ladders against published vectors, the formulas in float64, and each other."""
import math

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_utils import AysSchedules
from scipy import stats

from modules.core.errors import NotFoundError, ScheduleError
from modules.sampling import catalogue, measured, schedule
from modules.sampling.prediction import Prediction, scaled_linear_alphas, zero_terminal_snr

SD1 = Prediction("eps", scaled_linear_alphas())
VECTORS = {
    "Uniform": "14.6146 7.8399 4.6092 2.9183 1.9502 1.3449 0.9324 0.6250 0.3687 0.0292 0",
    "Normal": "14.6146 7.8399 4.6092 2.9183 1.9502 1.3449 0.9324 0.6250 0.3687 0.0292 0",
    "Karras": "14.6146 9.1029 5.4784 3.1686 1.7494 0.9141 0.4469 0.2014 0.0819 0.0292 0",
    "Exponential": "14.6146 7.3249 3.6712 1.8400 0.9222 0.4622 0.2317 0.1161 0.0582 0.0292 0",
    "Polyexponential": "14.6146 7.3249 3.6712 1.8400 0.9222 0.4622 0.2317 0.1161 0.0582 0.0292 0",
    "SGM Uniform": "14.6146 8.3072 5.0924 3.3251 2.2797 1.6156 1.1629 0.8319 0.5712 0.3437 0",
    "KL Optimal": "14.6146 4.5650 2.6329 1.7864 1.2948 0.9616 0.7116 0.5094 0.3356 0.1783 0.0292",
    "Align Your Steps": "14.6150 6.1135 3.5651 2.3939 1.6500 1.1358 0.7425 0.4450 0.1692 0.0290 0",
    "Beta": "14.6146 13.9278 12.4910 10.5976 8.4424 6.2014 4.0462 2.1528 0.7160 0.0292 0",
    "Simple": "14.6146 8.3028 5.0878 3.3211 2.2765 1.6129 1.1606 0.8299 0.5693 0.3417 0",
    "Turbo": "14.6146 8.3028 5.0878 3.3211 2.2765 1.6129 1.1606 0.8299 0.5693 0.3417 0",
    "DDIM": "8.3907 5.1344 3.3478 2.2929 1.6237 1.1682 0.8357 0.5741 0.3462 0.0413 0",
}
UNPUBLISHED = {"Align Your Steps GITS", "Align Your Steps 32", "Linear quadratic", "Laplace"}
LABELS = [entry.label for entry in catalogue.SCHEDULES if entry.function]


def ladder(label, steps, sampler="Euler", **settings):
    return schedule.ladder(label, sampler, steps, SD1, **settings)


def formula(label: str, n: int) -> np.ndarray:
    """The same ladders written with numpy in float64 over the float32 table."""
    alphas = scaled_linear_alphas().numpy().astype(np.float64)
    table = np.sqrt((1 - alphas) / alphas)
    low, high = table[0], table[-1]

    def at(t):
        return np.exp(np.interp(t, np.arange(1000), np.log(table)))

    levels = {
        "Uniform": lambda: at(np.linspace(999, 0, n)),
        "Normal": lambda: at(np.linspace(999, 0, n)),
        "SGM Uniform": lambda: at(np.linspace(999, 0, n + 1)[:-1]),
        "Karras": lambda: (high ** (1 / 7) + np.linspace(0, 1, n) * (low ** (1 / 7) - high ** (1 / 7))) ** 7,
        "Exponential": lambda: np.exp(np.linspace(np.log(high), np.log(low), n)),
        "Polyexponential": lambda: np.exp(np.linspace(np.log(high), np.log(low), n)),
        "KL Optimal": lambda: np.tan(np.arange(n + 1) / n * np.arctan(low) + (1 - np.arange(n + 1) / n) * np.arctan(high)),
        "Simple": lambda: table[[999 - int(i * 1000 / n) for i in range(n)]],
        "Turbo": lambda: table[[min(max(round(k * 1000 / n - 1), 0), 999) for k in range(n, 0, -1)]],
        "DDIM": lambda: table[1::max(1000 // n, 1)][::-1],
        "Align Your Steps": lambda: read_off([*AysSchedules["StableDiffusionSigmas"][:-1], 0.029], n),
        "Align Your Steps GITS": lambda: read_off(measured.REGULAR, n),
        "Align Your Steps 32": lambda: read_off(measured.ALIGNED_32, n),
        "Beta": lambda: low + stats.beta.ppf(1 - np.linspace(0, 1, n), 0.6, 0.6) * (high - low),
        "Linear quadratic": lambda: high * (1 - linear_quadratic(n)),
        "Laplace": lambda: np.clip(np.exp([-0.5 * np.sign(0.5 - x) * np.log(1 - 2 * abs(0.5 - x) + 1e-5) for x in np.linspace(0, 1, n)]), low, high),
    }[label]()
    return levels if label == "KL Optimal" else np.append(levels, 0)


def read_off(table, n: int) -> np.ndarray:
    """Log-linear, from the lowest level up, as the authors print it; one step begins at the top."""
    rising = np.interp(np.linspace(0, 1, n), np.linspace(0, 1, len(table)), np.log(table[::-1]))
    return np.exp(rising)[::-1] if n > 1 else np.array(table[:1])


def linear_quadratic(n: int) -> np.ndarray:
    """What is gone of the noise at the n first levels: a line to 0.025 over half of the steps, then the parabola of its slope to 1."""
    half = n // 2
    if not half:
        return np.zeros(1)
    parabola = np.linalg.solve([[half ** 2, half, 1], [2 * half, 1, 0], [n ** 2, n, 1]], [0.025, 0.025 / half, 1])
    return np.array([0.025 * i / half if i < half else np.polyval(parabola, i) for i in range(n)])


def test_every_schedule_has_a_published_vector_or_is_known_to_have_none():
    assert set(LABELS) == set(VECTORS) | UNPUBLISHED


@pytest.mark.parametrize("label", VECTORS)
def test_ten_steps_give_the_published_levels(label):
    assert np.abs(ladder(label, 10).numpy() - np.array(VECTORS[label].split(), dtype=float)).max() <= 5e-5 + 1e-9


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 30, 150])
def test_every_level_is_the_formula_in_float64_rounded_once(label, steps):
    sigmas = ladder(label, steps)
    assert sigmas.dtype == torch.float32 and sigmas.device.type == "cpu"
    np.testing.assert_allclose(sigmas.numpy(), formula(label, steps), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("sampler", [entry.name for entry in catalogue.SAMPLERS])
@pytest.mark.parametrize("steps", [2, 9, 50])
def test_every_ladder_falls(label, sampler, steps):
    sigmas = ladder(label, steps, sampler)
    assert bool((sigmas.diff() < 0).all()) and float(sigmas[-1]) >= 0


def test_automatic_is_the_samplers_own_schedule():
    assert torch.equal(ladder("Automatic", 12, "DPM++ 2M"), ladder("Karras", 12))
    assert torch.equal(ladder("Automatic", 12, "DPM++ 2M SDE"), ladder("Exponential", 12))
    assert torch.equal(ladder("Automatic", 12, "Euler a"), ladder("Uniform", 12))


def test_kl_optimal_ends_at_the_smallest_level_and_not_at_zero():
    assert float(ladder("KL Optimal", 20)[-1]) == pytest.approx(SD1.sigma_min, rel=1e-6)


def test_rho_and_the_range_are_obeyed_where_the_schedule_has_them():
    assert float(ladder("Karras", 10, rho=3)[1]) > float(ladder("Karras", 10)[1])
    assert torch.equal(ladder("Exponential", 10, rho=3), ladder("Exponential", 10))
    assert not torch.equal(ladder("Polyexponential", 10, rho=2), ladder("Polyexponential", 10))
    narrow = ladder("Karras", 10, sigma_min=0.1, sigma_max=10)
    assert [float(narrow[0]), float(narrow[-2])] == pytest.approx([10, 0.1], rel=1e-6)
    assert float(ladder("Normal", 10, sigma_max=10)[0]) == pytest.approx(10, rel=1e-5)
    assert torch.equal(ladder("Uniform", 10, sigma_max=10), ladder("Uniform", 10))


def test_discarding_leaves_out_the_smallest_level_and_keeps_the_number_of_steps():
    full, less = ladder("Karras", 11), ladder("Karras", 10, discard=True)
    assert torch.equal(less, torch.cat((full[:-2], full[-1:]))) and len(less) == 11


@pytest.mark.parametrize("steps, evaluations", [(2, 1), (10, 9), (20, 19), (30, 30), (50, 49), (1000, 999)])
def test_the_ddim_sampler_walks_every_kth_index_from_one(steps, evaluations):
    sigmas = ladder("Karras", steps, "DDIM")
    assert len(sigmas) - 1 == evaluations
    assert SD1.t_of(sigmas[[0, -1]]).tolist() == [min(1 + (1000 // steps) * evaluations, 999), 1]


@pytest.mark.parametrize("settings", [
    {"steps": 0}, {"steps": -1}, {"steps": 10**9}, {"sigma_min": -1.0}, {"sigma_min": 20.0}, {"sigma_min": 1.0, "sigma_max": 1.0},
    {"sigma_max": math.inf}, {"sigma_max": math.nan}, {"rho": -1.0}, {"rho": 1e-9}, {"rho": math.nan}, {"rho": math.inf},
])
def test_numbers_of_which_no_ladder_can_be_made_are_refused_in_a_sentence(settings):
    steps = settings.pop("steps", 10)
    with pytest.raises(ScheduleError, match=r"asked for\."):
        ladder("Karras", steps, **settings)


@pytest.mark.parametrize("label, sampler, steps", [
    ("Simple", "Euler", 1500), ("Turbo", "Euler", 1500), ("Automatic", "DDIM", 1), ("Automatic", "DDIM", 1001),
])
def test_more_steps_than_the_model_has_levels_are_refused(label, sampler, steps):
    with pytest.raises(ScheduleError):
        ladder(label, steps, sampler)


def test_unknown_names_are_refused():
    with pytest.raises(NotFoundError):
        ladder("Karass", 10)
    with pytest.raises(NotFoundError):
        ladder("Karras", 10, "Oiler")


def test_a_model_that_ends_in_pure_noise_has_ladders_too():
    model = Prediction("v", zero_terminal_snr(scaled_linear_alphas()))
    for label in LABELS:
        assert bool(schedule.ladder(label, "Euler", 20, model).isfinite().all())
