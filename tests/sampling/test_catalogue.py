"""Names as users, files and clients write them."""
import inspect
import pkgutil

import pytest

from modules.core.errors import NotFoundError
from modules.sampling import catalogue

A1111_ORDER = (
    "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a", "Euler", "LMS", "Heun", "DPM2",
    "DPM2 a", "DPM fast", "DPM adaptive", "Restart", "DDIM", "DDIM CFG++", "PLMS", "UniPC", "LCM")
LATER = (
    "TCD", "DDPM", "HeunPP2", "IPNDM", "IPNDM_V", "DEIS", "ER SDE", "RES multistep", "RES multistep a", "SA-Solver", "Gradient estimation",
    "SEEDS 2", "SEEDS 3", "Euler CFG++", "Euler a CFG++", "DPM++ 2S a CFG++", "DPM++ 2M CFG++")
KARRAS, EXPONENTIAL, TWICE, ENSD, PATH, LESS = (
    {"scheduler": "karras"}, {"scheduler": "exponential"}, {"second_order": "True"}, {"uses_ensd": "True"}, {"brownian_noise": "True"},
    {"discard_next_to_last_sigma": "True"})
OPTIONS = {
    "DPM++ 2M": KARRAS, "DPM++ SDE": KARRAS | TWICE | PATH, "DPM++ 2S a": KARRAS | ENSD | TWICE, "DPM++ 3M SDE": EXPONENTIAL | LESS | PATH,
    "DPM++ 2M SDE": {"scheduler": "exponential", "brownian_noise": "True"},
    "DPM++ 2M SDE Heun": {"scheduler": "exponential", "brownian_noise": "True", "solver_type": "heun"},
    "Euler a": {"uses_ensd": "True"}, "Euler": {}, "Heun": {"second_order": "True"}, "DDIM": {}, "LMS": {},
    "DPM2": KARRAS | LESS | TWICE, "DPM2 a": KARRAS | LESS | ENSD | TWICE, "DPM fast": ENSD, "DPM adaptive": ENSD, "Restart": KARRAS | TWICE,
    "DDIM CFG++": {}, "PLMS": {}, "UniPC": {}, "LCM": {},
}
SCHEDULE_ORDER = (
    "Automatic", "Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform", "KL Optimal", "Align Your Steps", "Simple", "Normal",
    "DDIM", "Beta", "Turbo", "Align Your Steps GITS", "Align Your Steps 32", "Linear quadratic", "Laplace")


def test_the_menus_stand_in_the_order_users_know():
    names, labels = [entry.name for entry in catalogue.SAMPLERS], [entry.label for entry in catalogue.SCHEDULES]
    assert names == [*A1111_ORDER, *LATER] and set(OPTIONS) == set(A1111_ORDER)
    assert labels == [label for label in SCHEDULE_ORDER if label in labels]


@pytest.mark.parametrize("name", OPTIONS)
def test_the_api_options_are_those_that_clients_know(name):
    assert catalogue.sampler(name).options == OPTIONS[name]


def test_rho_and_need_of_the_model_are_those_that_clients_know():
    rhos = {entry.name: entry.default_rho for entry in catalogue.SCHEDULES if entry.default_rho != -1}
    assert rhos == {"karras": 7.0, "polyexponential": 1.0}
    needing = {entry.label for entry in catalogue.SCHEDULES if entry.need_inner_model}
    assert needing == {"Uniform", "SGM Uniform", "Simple", "Normal", "DDIM", "Beta", "Turbo"}


@pytest.mark.parametrize("entry", catalogue.SAMPLERS, ids=lambda entry: entry.name)
def test_every_function_exists_and_takes_the_knobs_its_entry_declares(entry):
    parameters = inspect.signature(pkgutil.resolve_name(entry.function)).parameters
    assert list(parameters)[:4] == ["denoise", "x", "sigmas", "on_step"]
    assert set(entry.knobs) | {name for name, _ in entry.fixed} <= set(parameters)
    assert entry.eta_option == "" or "eta" in entry.knobs


def test_no_two_entries_answer_to_one_name():
    samplers = [{entry.name, *entry.aliases} for entry in catalogue.SAMPLERS]
    schedules = [{entry.label, entry.name, *entry.aliases} for entry in catalogue.SCHEDULES]
    for entries in (samplers, schedules):
        every = [name for names in entries for name in {text.lower() for text in names}]
        assert len(every) == len(set(every))


@pytest.mark.parametrize("sampler, scheduler, meant", [
    ("DPM++ 2M Karras", None, ("DPM++ 2M", "Automatic")),
    ("DPM++ 2M", "Karras", ("DPM++ 2M", "Automatic")),
    ("DPM++ 2M", "karras", ("DPM++ 2M", "Automatic")),
    ("DPM++ 2M SDE Heun Karras", "Simple", ("DPM++ 2M SDE Heun", "Karras")),
    ("DPM++ 2M SDE SGMUniform", "", ("DPM++ 2M SDE", "SGM Uniform")),
    ("Euler a", "sgm_uniform", ("Euler a", "SGM Uniform")),
    ("k_euler_a", "Karras", ("Euler a", "Karras")),
    ("EULER A KARRAS", None, ("Euler a", "Karras")),
    ("DDIM", None, ("DDIM", "Automatic")),
    ("Euler DDIM", None, ("Euler", "DDIM")),
    ("", None, ("DPM++ 2M", "Automatic")),
    (None, "automatic", ("DPM++ 2M", "Automatic")),
    ("Euler", "no such thing", ("Euler", "Automatic")),
])
def test_a_name_means_a_sampler_and_a_schedule(sampler, scheduler, meant):
    assert catalogue.resolve(sampler, scheduler) == meant


def test_the_schedule_that_is_used_can_be_asked_for_by_name():
    assert catalogue.resolve("DPM++ 2M Karras", report_default=False) == ("DPM++ 2M", "Karras")


@pytest.mark.parametrize("name", ["Eulre a", "Karras", "x" * 5000, "Euler\n", "DPM++ 2M Beta9"])
def test_an_unknown_sampler_is_refused_with_the_nearest_names_in_one_sentence(name):
    if name.strip() == "Euler":
        assert catalogue.resolve(name) == ("Euler", "Automatic")
        return
    with pytest.raises(NotFoundError, match="Sampler not found") as caught:
        catalogue.resolve(name)
    assert caught.value.status == 400 and len(str(caught.value)) < 400


def test_a_misspelt_sampler_is_answered_with_the_one_that_was_meant():
    with pytest.raises(NotFoundError, match="Euler a"):
        catalogue.sampler("Eulre a")
    with pytest.raises(NotFoundError, match="Karras"):
        catalogue.schedule("Karas")
