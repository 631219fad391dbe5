"""What holds of every ladder, for every kind of model, range and number of steps."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from modules.core.errors import ScheduleError
from modules.sampling import catalogue, measured, schedule
from modules.sampling.levels import levels_of
from modules.sampling.prediction import Prediction, continuous_alphas, linear_alphas, scaled_linear_alphas, zero_terminal_snr
from modules.sampling.quantiles import beta_quantile

MODELS = {
    "eps": Prediction("eps", scaled_linear_alphas()),
    "half": Prediction("eps", scaled_linear_alphas().half().float()),       # tables as some checkpoints carry them
    "v, zero terminal SNR": Prediction("v", zero_terminal_snr(scaled_linear_alphas())),
    "v, continuous": Prediction("v", continuous_alphas(0.002, 120.0), continuous=True),
    "edm": Prediction("edm", continuous_alphas(0.002, 80.0), continuous=True),
    "linear betas": Prediction("v", linear_alphas(0.0001, 0.02)),
}
LABELS = tuple(entry.label for entry in catalogue.SCHEDULES if entry.function)
RANGED = {"Karras", "Exponential", "Polyexponential", "KL Optimal", "Normal", "SGM Uniform", "Beta", "Linear quadratic"}
TABLES = {"Align Your Steps", "Align Your Steps 32", "Align Your Steps GITS"}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(LABELS), st.sampled_from(sorted(MODELS)), st.integers(1, 150), st.booleans(), st.booleans())
def test_every_ladder_is_finite_falls_and_ends_at_zero_or_at_its_own_last_level_after_as_many_steps(label, name, steps, discard, sdxl):
    model = MODELS[name]
    sigmas = schedule.ladder(label, "Euler", steps, model, discard=discard, sdxl=sdxl)
    assert sigmas.dtype == torch.float32 and bool(sigmas.isfinite().all()) and bool((sigmas.diff() < 0).all())
    assert float(sigmas[-1]) == (pytest.approx(model.sigma_min, rel=1e-5) if label == "KL Optimal" else 0)
    assert len(sigmas) == steps + 1 or label == "DDIM"
    if label == "DDIM":                                     # every k-th level, however many these are
        built = steps + discard
        assert len(sigmas) == len(range(1, 1000, max(1000 // built, 1))) + 1 - discard


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(RANGED)), st.integers(2, 60), st.floats(0.03, 1.0), st.floats(2.0, 14.0))
def test_schedules_with_a_range_begin_at_its_top_and_stay_in_it(label, steps, low, high):
    sigmas = schedule.ladder(label, "Euler", steps, MODELS["eps"], sigma_min=low, sigma_max=high)
    assert float(sigmas[0]) == pytest.approx(high, rel=1e-5)
    assert label == "Linear quadratic" or float(sigmas[-2]) >= low * (1 - 1e-5)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(set(LABELS) - RANGED - {"Laplace"})), st.integers(2, 60), st.floats(0.03, 1.0), st.floats(2.0, 14.0))
def test_schedules_without_a_range_do_not_hear_of_it(label, steps, low, high):
    told = schedule.ladder(label, "Euler", steps, MODELS["eps"], sigma_min=low, sigma_max=high)
    assert torch.equal(told, schedule.ladder(label, "Euler", steps, MODELS["eps"]))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(LABELS), st.sampled_from(sorted(MODELS)), st.integers(-3, 12_000), *[st.floats(allow_nan=True)] * 5)
def test_any_numbers_at_all_make_a_ladder_or_a_sentence(label, name, steps, rho, low, high, alpha, beta):
    try:
        sigmas = schedule.ladder(label, "Euler", steps, MODELS[name], rho=rho, sigma_min=low, sigma_max=high, alpha=alpha, beta=beta)
    except ScheduleError as error:
        assert str(error).endswith(".") and len(str(error)) < 300
    else:
        assert bool(sigmas.isfinite().all()) and bool((sigmas.diff() < 0).all()) and float(sigmas[-1]) >= 0


@pytest.mark.parametrize("label", LABELS)
def test_one_step_begins_at_a_level_from_which_a_picture_can_be_drawn(label):
    first, *rest = schedule.ladder(label, "Euler", 1, MODELS["eps"]).tolist()
    assert first > (0.04 if label == "DDIM" else 14) and len(rest) == 1


def test_a_table_is_walked_as_it_was_published_with_as_many_levels():
    for label, tables in (("Align Your Steps", (measured.ALIGNED, measured.ALIGNED_SDXL)),
                          ("Align Your Steps 32", (measured.ALIGNED_32, measured.ALIGNED_32_SDXL)),
                          ("Align Your Steps GITS", (measured.REGULAR, measured.REGULAR_SDXL))):
        for sdxl, table in enumerate(tables):
            sigmas = schedule.ladder(label, "Euler", len(table), MODELS["eps"], sdxl=bool(sdxl))
            assert sigmas.tolist() == [*torch.tensor(table).tolist(), 0]
    assert {entry.label for entry in catalogue.SCHEDULES if "sdxl" in entry.needs} == TABLES


def test_the_table_of_32_levels_goes_through_the_same_curve_as_that_of_11():
    """Both are read off one optimised curve: within a percent of each other, save for the low end, of which one has more."""
    long = np.interp(np.linspace(0, 1, 11), np.linspace(0, 1, 32), np.log(measured.ALIGNED_32))
    assert np.abs(long - np.log(measured.ALIGNED))[:8].max() < 0.01
    long = np.interp(np.linspace(0, 1, 11), np.linspace(0, 1, 32), np.log(measured.ALIGNED_32_SDXL))
    assert np.abs(long - np.log(measured.ALIGNED_SDXL))[:8].max() < 0.01


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 1), st.floats(0.01, 1), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_the_quantiles_of_the_beta_distribution_are_those_of_scipy(alpha, beta, shares):
    found = beta_quantile(torch.tensor(shares, dtype=torch.float64), alpha, beta).numpy()
    assert bool(((found >= 0) & (found <= 1)).all())
    steep = 1e-9 / min(alpha, beta)                         # where the distribution has next to no mass, any x is the quantile
    below, above = (stats.beta.cdf(np.clip(found + shift, 0, 1), alpha, beta) for shift in (-1e-12, 1e-12))
    assert bool((below - steep <= shares).all()) and bool((np.array(shares) <= above + steep).all())


@pytest.mark.parametrize("alpha, beta", [(0.6, 0.6), (0.5, 0.7), (1, 1), (0.3, 1)])
def test_beta_has_the_shape_that_was_asked_for(alpha, beta):
    low, high = MODELS["eps"].sigma_min, MODELS["eps"].sigma_max
    sigmas = schedule.ladder("Beta", "Euler", 25, MODELS["eps"], alpha=alpha, beta=beta)
    wanted = low + stats.beta.ppf(1 - np.linspace(0, 1, 25), alpha, beta) * (high - low)
    np.testing.assert_allclose(sigmas[:-1].numpy(), wanted, rtol=1e-6)


def test_laplace_has_the_quantiles_of_its_distribution():
    sigmas = schedule.ladder("Laplace", "Euler", 21, MODELS["eps"])
    wanted = np.exp(stats.laplace.ppf(1 - np.linspace(0, 1, 21)[1:-1], loc=0, scale=0.5))
    np.testing.assert_allclose(sigmas[1:-2].numpy(), wanted, rtol=1e-4)
    assert float(sigmas[10]) == pytest.approx(1, rel=1e-4) and float(sigmas[0]) == pytest.approx(MODELS["eps"].sigma_max)


@pytest.mark.parametrize("shape", [{"alpha": 0.0}, {"alpha": 1.5}, {"beta": math.nan}, {"beta": -1.0}])
def test_a_shape_that_beta_does_not_have_is_refused_by_name(shape):
    [name] = shape
    with pytest.raises(ScheduleError, match=f"Beta scheduler {name} must be 0.01 to 1"):
        schedule.ladder("Beta", "Euler", 10, MODELS["eps"], **shape)


def test_a_list_of_levels_is_walked_as_it_stands_whatever_else_is_asked():
    levels = levels_of(" [14.5, 3;1.25  0.1,0] ")
    sigmas = schedule.ladder("Karras", "DPM++ 2M", 50, MODELS["eps"], rho=3, discard=True, levels=levels)
    assert sigmas.dtype == torch.float32 and sigmas.tolist() == torch.tensor([14.5, 3, 1.25, 0.1, 0]).tolist()
    assert schedule.ladder("Karras", "Euler", 50, MODELS["eps"], levels=[2.0, 1.0]).tolist() == [2, 1]


@pytest.mark.parametrize("levels", [(1.0,), (0.0, 1.0), (1.0, 1.0), (1.0, -1.0), (math.nan, 0.0), (math.inf, 0.0), (1e300, 0.0), tuple(range(10_002, 0, -1))])
def test_a_list_that_is_no_ladder_is_refused(levels):
    with pytest.raises(ScheduleError, match=r"list of noise levels"):
        schedule.ladder("Karras", "Euler", 10, MODELS["eps"], levels=levels)


@pytest.mark.parametrize("text", ["1, two, 0", "1..2 0", "0x10 0", "1,\N{MINUS SIGN}1"])
def test_a_text_that_is_no_list_of_numbers_is_refused(text):
    with pytest.raises(ScheduleError, match="numbers with commas"):
        levels_of(text)


def test_a_sampler_with_a_ladder_of_its_own_takes_no_list():
    with pytest.raises(ScheduleError, match="DDIM walks only its own"):
        schedule.ladder("Automatic", "DDIM", 10, MODELS["eps"], levels=(3.0, 1.0, 0.0))


@pytest.mark.parametrize("settings_, field", [
    ({"steps": 0}, "Sampling steps"), ({"sigma_min": 3.0, "sigma_max": 1.0}, "Schedule min sigma"), ({"sigma_max": math.nan}, "Schedule max sigma"),
    ({"rho": math.nan}, "Schedule rho")])
def test_a_number_that_cannot_be_used_is_refused_with_the_name_of_its_field(settings_, field):
    steps = settings_.pop("steps", 10)
    with pytest.raises(ScheduleError, match=field):
        schedule.ladder("Karras", "Euler", steps, MODELS["eps"], **settings_)


def test_the_names_under_which_others_list_the_tables_are_understood():
    assert catalogue.resolve("Euler Align Your Steps 11") == ("Euler", "Align Your Steps")
    assert catalogue.resolve("Euler", "align_your_steps_gits") == ("Euler", "Align Your Steps GITS")
    assert catalogue.resolve("Euler a Align Your Steps 32") == ("Euler a", "Align Your Steps 32")
    assert catalogue.resolve("DPM++ 2M Laplace") == ("DPM++ 2M", "Laplace")


@pytest.mark.parametrize("skip, of_level", [
    ("time_uniform", lambda prediction, sigma: float(prediction.t_of(sigma))),
    ("time_quadratic", lambda prediction, sigma: (float(prediction.t_of(sigma)) + 1) ** 0.5),
    ("logSNR", lambda prediction, sigma: math.log(float(sigma)))])
def test_the_ladder_of_unipc_is_even_in_what_its_skip_type_says(skip, of_level):
    prediction = Prediction("eps", scaled_linear_alphas())
    levels = schedule.ladder("Automatic", "UniPC", 10, prediction, skip=skip)
    places = torch.tensor([of_level(prediction, sigma) for sigma in levels])
    gaps = places.diff()
    assert len(levels) == 11 and float(levels[0]) == pytest.approx(float(prediction.sigmas[-1]), rel=1e-5)
    assert float((gaps / gaps.mean() - 1).abs().max()) < 0.02
