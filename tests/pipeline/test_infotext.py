"""A1111's parameters text: written in its order, read by its rules, in linear time."""
import dataclasses
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modules.pipeline import infotext, old_texts, parameters
from modules.pipeline.infotext import Facts, fields_of, leftovers, read, with_defaults, write
from modules.pipeline.request import Request
from modules.sampling import catalogue

WORKED = """a cat, <lora:fluffy:0.8>
Negative prompt: blurry
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 5, Size: 512x768, Model hash: 6ce0161689, \
Model: v1-5-pruned-emaonly, VAE hash: 735e4c3a44, VAE: vae-ft-mse-840000-ema-pruned.safetensors, Denoising strength: 0.5, \
Clip skip: 2, RNG: NV, Hires upscale: 2, Hires upscaler: Latent, Lora hashes: "fluffy: 0123456789ab", Version: v1.10.1"""
LINE = "Steps: 20, Sampler: Euler a, CFG scale: 7"
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
NAME = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)


def facts_of(request, **more):
    return Facts(**{"seed": max(request.seed, 0), "subseed": max(request.subseed, 0), "prompt": request.prompt,
                    "negative_prompt": request.negative_prompt, **more})


def test_the_worked_example_comes_back_with_the_same_keys_in_the_same_order():
    parsed = read(WORKED)
    notes = {key: parsed.raw[key] for key in ("Denoising strength", "Hires upscale", "Hires upscaler", "Lora hashes")}
    request = Request(**{**fields_of(parsed), "vae": "", "checkpoint": ""}, notes=notes)
    again = write(request, Facts(
        seed=request.seed, subseed=0, prompt=request.prompt, negative_prompt=request.negative_prompt, model_name=parsed.raw["Model"],
        model_hash=parsed.raw["Model hash"], vae_name=parsed.raw["VAE"], vae_hash=parsed.raw["VAE hash"], version="v1.10.1"))
    moved = again.replace(", Denoising strength: 0.5", "").replace(", Clip skip", ", Denoising strength: 0.5, Clip skip")
    assert moved == WORKED                                  # a base key of A1111 that is a note here stands among the notes


def test_the_line_names_everything_in_order():
    request = Request(
        prompt="(a)", negative_prompt="b", steps=30, sampler="Euler a", scheduler="Karras", cfg_scale=7.5, subseed_strength=0.25,
        seed_resize_from_w=512, seed_resize_from_h=640, clip_skip=2, eta=0.5, eta_noise_seed_delta=31337, emphasis="No norm",
        schedule_rho=5.0, schedule_sigma_min=0.1, schedule_sigma_max=10.0, discard_penultimate_sigma=True, sgm_noise_multiplier=True)
    text = write(request, Facts(seed=1, subseed=2, prompt="(a)", negative_prompt="b", model_name="m", model_hash="0" * 10, vae_name="v.pt",
                                vae_hash="1" * 10))
    assert text.split("\n")[-1] == (
        "Steps: 30, Sampler: Euler a, Schedule type: Karras, CFG scale: 7.5, Seed: 1, Size: 512x512, Model hash: 0000000000, Model: m, "
        "VAE hash: 1111111111, VAE: v.pt, Variation seed: 2, Variation seed strength: 0.25, Seed resize from: 512x640, Clip skip: 2, "
        "ENSD: 31337, RNG: NV, Emphasis: No norm, Discard penultimate sigma: True, Schedule min sigma: 0.1, Schedule max sigma: 10, "
        "Schedule rho: 5, SGM noise multiplier: True, Eta: 0.5, Version: easel-0.1.0")


@pytest.mark.parametrize("sampler, scheduler, label", [
    ("DPM++ 2M", "Automatic", "Karras"), ("DPM++ 2M SDE", "Automatic", "Exponential"), ("Euler", "Automatic", "Automatic"),
    ("DDIM", "Automatic", "Automatic"), ("Euler", "SGM Uniform", "SGM Uniform")])
def test_automatic_is_written_as_the_schedule_that_was_used(sampler, scheduler, label):
    assert infotext.schedule_used(Request(sampler=sampler, scheduler=scheduler)) == label


@pytest.mark.parametrize("sampler, eta, pair", [
    ("Euler a", None, ""), ("Euler a", 1.0, ""), ("Euler a", 0.5, "Eta: 0.5"), ("DDIM", 0.0, ""), ("DDIM", 1.0, "Eta DDIM: 1"),
    ("Euler", 0.5, "")])
def test_eta_is_named_only_where_it_matters(sampler, eta, pair):
    line = write(Request(sampler=sampler, eta=eta), facts_of(Request()))
    assert pair in line if pair else "Eta" not in line


@pytest.mark.parametrize("sampler, eta, named", [("Euler a", None, True), ("Euler a", 0.0, False), ("DPM++ 2M", None, False)])
def test_ensd_is_named_where_the_sampler_uses_it(sampler, eta, named):
    request = Request(sampler=sampler, eta=eta, eta_noise_seed_delta=31337)
    assert ("ENSD: 31337" in write(request, facts_of(request))) == named


def test_an_empty_prompt_makes_the_text_begin_with_the_negative_one_or_the_line():
    assert write(Request(), facts_of(Request())).startswith("Steps: 20, ")
    assert write(Request(negative_prompt="b"), facts_of(Request(negative_prompt="b"))).startswith("Negative prompt: b\nSteps:")


def test_a_number_looks_the_same_whatever_type_it_had():
    assert write(Request(cfg_scale=7), facts_of(Request())) == write(Request(cfg_scale=7.0), facts_of(Request()))


def test_our_version_is_none_that_switches_old_behaviour_on():
    parsed = read(write(Request(prompt="[a]"), facts_of(Request(prompt="[a]"))))
    assert old_texts._version(infotext.VERSION) is None and "Downcast alphas_cumprod" not in parsed.fields


def test_notes_stand_before_the_version_and_a_known_key_keeps_its_place():
    request = Request(notes={"Dynamic CFG": 3.0, "Schedule type": "Mine", "Version": "x", "bad:key": 1, "x": 1, "Flag": "Flag",
                             "None": None})
    line = write(request, facts_of(request))
    assert "Schedule type: Mine, CFG scale" in line and line.endswith("Dynamic CFG: 3, Flag, Version: easel-0.1.0")


# ---- reading

def test_two_pairs_are_a_prompt_and_three_are_parameters():
    assert read("Steps: 20, Sampler: Euler a").prompt == "Steps: 20, Sampler: Euler a"
    assert read("Steps: 20, Sampler: Euler a").fields == {}
    assert read(LINE).prompt == "" and read(LINE).fields == {"Steps": "20", "Sampler": "Euler a", "CFG scale": "7"}


def test_keys_of_one_letter_are_no_keys():
    parsed = read("a cat\nx: 1, y: 2, z: 3")
    assert parsed.prompt == "a cat\nx: 1, y: 2, z: 3" and not parsed.fields


@pytest.mark.parametrize("pair, key, value", [
    ('Hires prompt: "a, b: c\\nd"', "Hires prompt", "a, b: c\nd"), ('Model: "say \\"hi\\""', "Model", 'say "hi"'),
    ('Model: "broken \\q"', "Model", '"broken \\q"'), ("Model: a: b", "Model", "a: b"), ("Model:x", "Model", "x"),
    ("Model: 12\u3000", "Model", "12"), ('Name: "a" b', "Name", '"a" b'), ("ControlNet 0/x-y: 1", "ControlNet 0/x-y", "1"),
    ("--Token: 1", "Token", "1"), ('Model: ""', "Model", "")])
def test_a_value_is_read_as_it_was_meant(pair, key, value):
    assert read(f"{LINE}, {pair}, Seed: 5").raw[key] == value
    assert read(f"{LINE}, {pair}, Seed: 5").raw["Seed"] == "5"


def test_an_empty_value_is_left_out_and_the_last_of_two_wins():
    parsed = read(f"{LINE}, Model: , Steps: 30, Seed: 1")
    assert "Model" not in parsed.fields and parsed.fields["Steps"] == "30"


def test_two_numbers_with_an_x_are_two_fields():
    parsed = read(f"{LINE}, Size: 640x480, Seed resize from: 0x1, Model: 12x34, Hires resize: 4 x 5")
    assert (parsed.fields["Size-1"], parsed.fields["Size-2"]) == ("640", "480")
    assert "Size" not in parsed.fields and parsed.fields["Hires resize"] == "4 x 5"
    assert fields_of(parsed)["checkpoint"] == "12x34"


def test_a_negative_prompt_of_three_lines_survives_and_the_words_inside_a_line_mean_nothing():
    parsed = read(f"a sign that says Negative prompt: none\nmore\nNegative prompt: one\n two \nNegative prompt: three\n{LINE}")
    assert parsed.prompt == "a sign that says Negative prompt: none\nmore"
    assert parsed.negative_prompt == "one\ntwo\nNegative prompt: three"


def test_what_is_missing_has_the_defaults_of_the_contract():
    values = with_defaults(read(f"a\n{LINE}"))
    assert values["Prompt"] == "a" and values["Negative prompt"] == ""
    assert {**dict(infotext.DEFAULTS), **values} == values
    assert "Emphasis" not in values and "Cache FP16 weight for LoRA" not in values
    assert with_defaults(read(f"(a)\n{LINE}"))["Emphasis"] == "Original"
    assert "Emphasis" not in with_defaults(read(f"\\(a\\)\n{LINE}"))
    assert with_defaults(read("a cat"))["RNG"] == "GPU"


def test_a_missing_rng_means_nv_and_a_missing_clip_skip_one():
    fields = fields_of(read(f"a\n{LINE}"), defaults=True)
    assert fields["randn_source"] == "NV" and fields["clip_skip"] == 1
    assert "clip_skip" not in fields_of(read(f"a\n{LINE}"))


@pytest.mark.parametrize("names, sampler, scheduler", [
    ("Sampler: DPM++ 2M Karras", "DPM++ 2M", "Automatic"), ("Sampler: DPM++ 2M SDE Heun Karras", "DPM++ 2M SDE Heun", "Karras"),
    ("Sampler: Euler a, Schedule type: SGM Uniform", "Euler a", "SGM Uniform"), ("Sampler: k_euler_a", "Euler a", "Automatic")])
def test_the_schedule_is_found_in_the_old_sampler_names(names, sampler, scheduler):
    fields = fields_of(read(f"Steps: 20, {names}, CFG scale: 7"))
    assert (fields["sampler"], fields["scheduler"]) == (sampler, scheduler)


def test_what_does_not_fit_is_left_over_and_never_applied():
    parsed = read("Steps: 0, Sampler: Nonsense, CFG scale: nan, Size: 1000000x8, Seed: -5, ControlNet 0: x, Clip skip: 1.5, "
                  "Version: v1.10.1")
    fields = fields_of(parsed)
    assert fields == {"prompt": "", "negative_prompt": "", "height": 8}
    assert leftovers(parsed) == {"Steps": "0", "Sampler": "Nonsense", "CFG scale": "nan", "Size-1": "1000000", "Seed": "-5",
                                 "ControlNet 0": "x", "Clip skip": "1.5"}
    parameters.check(Request(**fields))


def test_the_two_seed_resize_numbers_are_width_and_height():
    fields = fields_of(read(f"{LINE}, Seed resize from: 512x768"))
    assert (fields["seed_resize_from_w"], fields["seed_resize_from_h"]) == (512, 768)


def test_civitais_unquoted_json_is_one_value():
    parsed = read(f'a\n{LINE}, Clip skip: 2, Civitai resources: [{{"type":"checkpoint","modelVersionId":29, "w": "a, b"}}], '
                  'Civitai metadata: {"remixOfId":32, "n": [1, 2]}, Size: 8x9')
    assert parsed.raw["Civitai resources"].startswith("[{") and parsed.raw["Civitai metadata"].endswith("]}")
    assert parsed.fields["Size-1"] == "8" and set(leftovers(parsed)) == {"Civitai resources", "Civitai metadata"}


@pytest.mark.parametrize("version, marked", [("v1.5.2", True), ("1.5.2-12-gabc", True), ("v1.6.0", False), ("v1.6.0-RC", True),
                                             ("v1.10.1", False), ("f2.0.1v1.10.1-previous-1-g1", False), ("easel-0.1.0", False),
                                             ("v1.5b", False)])
def test_an_old_version_with_a_bracket_means_old_timelines(version, marked):
    assert ("Old prompt editing timelines" in read(f"[a]\n{LINE}, Version: {version}").fields) == marked
    assert "Old prompt editing timelines" not in read(f"a\n{LINE}, Version: {version}").fields


def test_old_hypernetworks_and_first_passes_are_translated():
    parsed = read(f"a\n{LINE}, Size: 1024x512, First pass size: 0x0, Hypernet: anime, Hypernet strength: 0.5")
    assert parsed.prompt == "a<hypernet:anime:0.5>"
    assert (parsed.fields["Hires resize-1"], parsed.fields["Hires resize-2"]) == ("1024", "512")
    assert (parsed.fields["Size-1"], parsed.fields["Size-2"]) == ("768", "384")


@given(st.text(st.characters(), max_size=300))
def test_any_text_at_all_is_read(text):
    parsed = read(text)
    fields_of(parsed, defaults=True)
    with_defaults(parsed)
    leftovers(parsed)


@given(st.lists(st.sampled_from(["Steps", ":", ": ", ",", '"', "\\", " ", "x", "1", "[", "{", "]", "}", "\n", "Negative prompt:",
                                 "640x480"]), max_size=60))
def test_any_row_of_marks_is_read(pieces):
    fields_of(read("".join(pieces)), defaults=True)


# ---- round trip

@st.composite
def requests(draw):
    """Requests with every labelled field drawn, as far as A1111's text can name them together."""
    sampler = draw(st.sampled_from([entry.name for entry in catalogue.SAMPLERS]))
    entry = catalogue.sampler(sampler)
    scheduler = draw(st.sampled_from([item.label for item in catalogue.SCHEDULES]))
    scheduler = catalogue.resolve(sampler, scheduler)[1]
    values = {"sampler": sampler, "scheduler": scheduler}
    for row in parameters.PARAMETERS:
        if row.infotext and row.kind in ("int", "float"):
            values[row.field] = draw(st.integers(int(row.minimum), int(row.maximum)) if row.kind == "int" else
                                     st.floats(row.minimum, row.maximum, allow_nan=False))
        elif row.infotext and row.kind == "bool":
            values[row.field] = draw(st.booleans())
    values |= {"randn_source": draw(st.sampled_from(["NV", "CPU"])),
               "emphasis": draw(st.sampled_from(["Original", "No norm", "Ignore", "None"])),
               "checkpoint": draw(NAME), "vae": draw(NAME), "prompt": draw(TEXT), "negative_prompt": draw(TEXT)}
    request = parameters.normal(Request(**values))
    return dataclasses.replace(request, **_unsaid(request, entry))


def _unsaid(request, entry):
    """What A1111's line does not name in this company, back at its default: it would not change the picture there."""
    plain, changes = Request(), {}
    if not request.subseed_strength:
        changes["subseed"] = plain.subseed
    if infotext.schedule_used(request) == "Automatic":
        changes |= dict.fromkeys(["schedule_rho", "schedule_sigma_min", "schedule_sigma_max"], 0.0)
    if not request.s_min_uncond:
        changes["s_min_uncond_all"] = False
    if infotext.schedule_used(request) != "Beta":
        changes |= dict.fromkeys(["schedule_alpha", "schedule_beta"], 0.6)
    if entry.name != "UniPC":
        changes |= {name: getattr(plain, name) for name in (
            "uni_pc_variant", "uni_pc_skip_type", "uni_pc_order", "uni_pc_lower_order_final")}
    if entry.discard:
        changes["discard_penultimate_sigma"] = False
    if not entry.eta_option or request.eta == (0.0 if entry.eta_option == "eta_ddim" else 1.0):
        changes["eta"] = None
    if not entry.uses_ensd or changes.get("eta", request.eta) == 0:
        changes["eta_noise_seed_delta"] = 0
    changes |= {knob: getattr(plain, knob) for knob in catalogue.CHURN if knob not in entry.knobs}
    if not any(mark in request.prompt + request.negative_prompt for mark in "(["):
        changes["emphasis"] = "Original"
    return changes


def carried(text):
    """The texts that A1111's form can carry: no outer spaces on any line or around the whole, no line that begins the next part."""
    return text == text.strip() and all(line == line.strip() for line in text.split("\n")) and not any(
        line.startswith("Negative prompt:") for line in text.split("\n"))


@settings(max_examples=150, deadline=None)
@given(requests())
def test_every_labelled_field_comes_back(request_):
    assume(carried(request_.prompt) and carried(request_.negative_prompt))
    for name in (request_.checkpoint, request_.refiner):
        assume(name == name.strip() and "[" not in name)
    subseed = max(request_.subseed, 0) if request_.subseed_strength else -1
    switch = request_.refiner_switch_at if request_.refiner else Request().refiner_switch_at
    request_ = dataclasses.replace(request_, seed=max(request_.seed, 0), subseed=subseed, refiner_switch_at=switch)
    text = write(request_, facts_of(request_, model_name=request_.checkpoint, vae_name=request_.vae, refiner=request_.refiner))
    fields = fields_of(read(text), defaults=True)
    assert Request(**fields) == request_


@given(st.dictionaries(st.from_regex(r"[A-Z][a-z]{2,8}( [0-9])?", fullmatch=True),
                       st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30), max_size=5))
def test_notes_come_back_whatever_their_value(notes):
    notes = {f"Note {key}": value for key, value in notes.items()}
    parsed = read(write(Request(prompt="a", notes=notes), facts_of(Request(prompt="a"))))
    assert {key: parsed.raw.get(key) for key in notes} == notes


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80), st.text(max_size=80))
def test_writing_what_was_read_changes_nothing_more(prompt, negative):
    first = read(write(Request(prompt=prompt, negative_prompt=negative), facts_of(Request(prompt=prompt, negative_prompt=negative))))
    again = Request(prompt=first.prompt, negative_prompt=first.negative_prompt)
    second = read(write(again, facts_of(again)))
    assume(carried(first.negative_prompt))
    assert (second.prompt, second.negative_prompt) == (first.prompt, first.negative_prompt)


@pytest.mark.parametrize("prompt, read_as", [
    (" outer spaces ", "outer spaces"), ("a \nb", "a\nb"), ("a\nNegative prompt: b", "a"), ("\n\na", "a")])
def test_the_texts_that_this_form_cannot_carry(prompt, read_as):
    """Listed so that nobody expects more of it: the record carries them."""
    assert read(write(Request(prompt=prompt), facts_of(Request(prompt=prompt)))).prompt == read_as


def test_a_prompt_line_that_looks_like_parameters_is_carried():
    prompt = f"a cat\n{LINE}\nSteps: 5"
    assert read(write(Request(prompt=prompt), facts_of(Request(prompt=prompt)))).prompt == prompt


# ---- linear time

HOSTILE = [" ", "a", '"', "a ", 'aa: "', 'aa: "\\', "aa: [", 'aa: ["', 'aa: [{"b": ', ": ", "aa:", "aa: a, ", "\\", "\n",
           "\nNegative prompt:", "-/", 'aa: "b", ', "640x", 'aa: "x\\"", ', "First pass size: 0x0, Size: 9x9, ", "(", "\u3000", "9"]


@pytest.mark.parametrize("piece", HOSTILE)
def test_eight_times_the_text_takes_about_eight_times_the_time(piece):
    """Up to a megabyte. A reader that goes back would take 64 times; other work on the machine does not take three times."""
    def spent(size):
        text = LINE + ", aa: " + piece * (size // len(piece)) + "z"
        begin = time.process_time()
        leftovers(read(text))
        return time.process_time() - begin

    small, large = (min(spent(size) for _ in range(3)) for size in (125_000, 1_000_000))
    assert large < 0.02 or large / small < 24
