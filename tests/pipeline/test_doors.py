"""What an extension may do at each door, and that nothing it does wrong costs a picture or stays behind."""
import contextlib
import dataclasses
from functools import partial

import numpy
import pytest
import torch
from PIL import Image

from modules.checkpoints.residency import Residency
from modules.checkpoints.shelf import Shelf
from modules.core.errors import NanError, RequestError
from modules.core.hashing import Hashes
from modules.core.paths import Paths
from modules.core.progress import Progress
from modules.core.settings import Settings
from modules.imaging.metadata import pixels_sha256
from modules.pipeline import generate as spine
from modules.pipeline.extension import Control, Entry, Extension, of_text, resolved
from modules.pipeline.request import Request, Resources, Result
from modules.prompts.encode import EncodeCache
from modules.prompts.tokens import Tokenizer
from modules.sampling.samplers import Denoised
from tests import tiny

PLAIN = Request(prompt="a cat", seed=1, subseed=0, steps=2, width=64, height=64, sampler="Euler", checkpoint="base.safetensors", vae="None")
DOORS = ("prepare", "plan", "adapt", "wrap_model", "wrap", "latent", "picture", "saving", "finish", "model_loaded", "drive")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    paths = Paths.of(tmp_path_factory.mktemp("doors"))
    paths.checkpoints[0].mkdir(parents=True)
    tiny.save_sd1(paths.checkpoints[0] / "base.safetensors")
    return Residency(Shelf(paths, Hashes(paths.hashes_file)), "cpu", torch.float32)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


@pytest.fixture
def make(models, tokenizer):
    return partial(made, models, tokenizer)


def made(models, tokenizer, *extensions, done=frozenset(), **changes):
    """(result, delivered pictures) of the plain request with these changes, among these extensions."""
    delivered = []

    def deliver(picture):
        delivered.append(picture)
        return picture

    result = spine.generate(dataclasses.replace(PLAIN, **changes), Resources(
        settings=Settings(), models=models, adapters=None, upscalers=None, styles={}, tokenizer=tokenizer, encodings=EncodeCache(),
        extensions=extensions, progress=Progress(), done=done, deliver=deliver))
    return result, delivered


@pytest.fixture(scope="module")
def plain(models, tokenizer):
    return pixels(made(models, tokenizer)[0])


def pixels(result):
    return [numpy.asarray(picture.image).tobytes() for picture in result.pictures]


def having(name="Test", **doors):
    """An extension that overrides these doors."""
    return type("Made", (Extension,), {"name": name, "selectable": "drive" in doors, **doors})()


def state(models):
    """Every weight, hook and method of the model, to be compared before and after."""
    with models.borrow("base.safetensors", "None") as model:
        modules = dict(model.unet.named_modules())
        return ({name: tensor.clone() for name, tensor in model.unet.state_dict().items()},
                {name: (tuple(module._forward_hooks), tuple(module._forward_pre_hooks), module.__dict__.get("forward"))
                 for name, module in modules.items()})


# ---- what a door can do

def test_an_extension_that_overrides_nothing_changes_no_bit(make, plain):
    result, _ = make(having())
    assert pixels(result) == plain and result.warnings == ()


def test_prepare_gives_the_request_that_is_computed_and_noted(make):
    result, _ = make(having(prepare=lambda self, request: dataclasses.replace(request, steps=3, notes={"My note": 7})))
    assert result.request.steps == 3 and "Steps: 3," in result.pictures[0].infotext and "My note: 7" in result.pictures[0].infotext
    assert result.pictures[0].record["request"]["steps"] == 3


def test_controls_with_a_label_are_noted_where_they_differ(make):
    ask = Control(name="strength", label="Strength", kind="float", default=1.0, infotext="My strength")
    one = having(controls=lambda self, tab: (ask,))
    assert "My strength: 0.5" in make(one, extra={"Test": {"strength": 0.5}})[0].pictures[0].infotext
    assert "My strength" not in make(one)[0].pictures[0].infotext


def test_an_extension_with_controls_is_asked_only_by_a_request_that_sets_one(make, plain):
    asked = []
    one = having(controls=lambda self, tab: (Control(name="on", label="On", kind="bool", default=False),),
                 latent=lambda self, latent, batch: asked.append(1) or latent)
    assert pixels(make(one)[0]) == plain and not asked
    make(one, extra={"Test": {"on": True}})
    assert asked == [1]


def test_plan_may_regroup_pictures(make):
    split = lambda self, batches: [dataclasses.replace(batch, slots=(slot,), number=slot.index)      # noqa: E731
                                   for batch in batches for slot in batch.slots]
    result, _ = make(having(plan=split), batch_size=2)
    alone = [make(seed=seed)[0] for seed in (1, 2)]
    assert pixels(result) == [pixels(one)[0] for one in alone] and not result.warnings


def test_wrap_and_wrap_model_stand_outside_and_inside_the_guidance(make):
    """x + 1 on every row is x + 1 guided; where only the prompt's rows are raised by 1, the guided latent rises by the scale."""
    seen = {}

    def watch(name):
        def wrap(self, denoise, batch):
            def call(x, sigma):
                found = denoise(x, sigma)
                seen.setdefault(name, found.value.clone())
                return found
            return call
        return wrap

    def raised(self, rows_denoise, batch):
        def call(rows):
            lift = torch.tensor([1.0 if which == "cond" else 0.0 for which in rows.which])
            return rows_denoise(rows) + lift[:, None, None, None]
        return call

    make(having(wrap=watch("plain")))
    make(having(wrap=watch("raised"), wrap_model=raised))
    assert torch.allclose(seen["raised"], seen["plain"] + PLAIN.cfg_scale, atol=1e-4)


def test_latent_and_picture_may_be_changed_and_the_record_tells_the_pixels_that_are_saved(make, plain):
    grey = Image.new("RGB", (64, 64), (9, 9, 9))
    result, delivered = make(having(picture=lambda self, picture, batch: dataclasses.replace(picture, image=grey)))
    assert delivered[0].record["pixels"]["sha256"] == pixels_sha256(grey) and not result.warnings
    assert pixels(make(having(latent=lambda self, latent, batch: latent * 0.5))[0]) != plain


def test_drive_makes_many_pictures_numbered_on_from_call_to_call(make):
    def drive(self, request, generate):
        made = [generate(dataclasses.replace(request, seed=seed)) for seed in (5, 6, 7)]
        return Result(request=request, pictures=tuple(picture for one in made for picture in one.pictures))

    result, delivered = make(having(drive=drive), extra={"Test": {}})
    assert [picture.index for picture in delivered] == [0, 1, 2] and [picture.seed for picture in result.pictures] == [5, 6, 7]
    assert "extra" not in delivered[0].record["request"]
    assert [picture.index for picture in make(having(drive=drive), extra={"Test": {}}, done=frozenset({1}))[1]] == [0, 2]
    assert len(make(having(drive=drive))[1]) == 1           # not chosen by the request


def test_the_first_extension_stands_nearest_to_the_model(make):
    order = []

    def wrap(name):
        def around(self, denoise, batch):
            def call(x, sigma):
                order.append(name)
                return denoise(x, sigma)
            return call
        return around

    make(having("One", wrap=wrap("one")), having("Two", wrap=wrap("two")), steps=1)
    assert order == ["two", "one"]


# ---- what goes wrong (reliability.md, F8)

def broken(door, how):
    """An extension whose one door raises, at once or inside what it returns."""
    def fail(*arguments):
        raise how

    def wrapping(self, inner, batch):
        return fail

    @contextlib.contextmanager
    def adapting(self, model, batch):
        yield
        raise how

    if door.endswith(" inside"):
        return having(**{door.split()[0]: adapting if door.startswith("adapt") else wrapping})
    return having(**{door: lambda self, *arguments: fail()})


@pytest.mark.parametrize("door, how", [
    *((door, ValueError("no idea")) for door in (*DOORS, "wrap inside", "wrap_model inside", "adapt inside")),
    *((door, SystemExit(3)) for door in ("prepare", "wrap_model inside", "adapt inside", "finish")),
    ("prepare", RequestError("No such file."))])
def test_an_extension_that_raises_is_named_and_the_picture_is_the_one_without_it(make, plain, models, door, how):
    before = state(models)
    other = []
    result, delivered = make(broken(door, how), having("Other", latent=lambda self, latent, batch: other.append(1) or latent),
                             extra={"Test": {}} if door == "drive" else {})
    assert pixels(result) == plain and len(delivered) == 1 and other == [1]
    assert len(result.warnings) == 1 and "Test" in result.warnings[0] and door.split()[0] in result.warnings[0]
    after = state(models)
    assert before[1] == after[1] and all(torch.equal(before[0][name], after[0][name]) for name in before[0])


@pytest.mark.parametrize("door, given", [
    ("prepare", 3), ("prepare", Request(steps=0)), ("plan", ()), ("plan", 7), ("adapt", 1), ("wrap", None), ("wrap", 5),
    ("wrap", lambda x, sigma: x), ("wrap", lambda x, sigma: Denoised(x[:, :1])), ("wrap_model", lambda rows: rows.x[:1]),
    ("latent", "x"), ("latent", torch.zeros(1)), ("latent", torch.full((1, 4, 8, 8), torch.nan)), ("picture", None), ("saving", 4),
    ("finish", []), ("drive", None)])
def test_what_does_not_fit_is_named_and_left_out(make, plain, door, given):
    result, _ = make(having(**{door: lambda self, *arguments: given}), extra={"Test": {}} if door == "drive" else {})
    assert len(result.warnings) == 1 and "Test" in result.warnings[0]
    assert pixels(result) == plain


def test_what_an_extension_changes_in_place_reaches_nobody(make, plain):
    def wrap(self, denoise, batch):
        def call(x, sigma):
            found = denoise(x.clone(), sigma)
            x.fill_(7.0)
            return found
        return call

    def prepare(self, request):
        request.notes["planted"] = 1
        request.extra["planted"] = 1
        raise ValueError("and gone")

    def picture(self, picture, batch):
        picture.image.putpixel((0, 0), (1, 2, 3))
        raise ValueError("and gone")

    result, _ = make(having("A", wrap=wrap), having("B", prepare=prepare), having("C", picture=picture))
    assert pixels(result) == plain and "planted" not in result.pictures[0].infotext and len(result.warnings) == 2


def test_hooks_and_methods_that_were_left_on_the_model_are_gone_after_the_job(make, plain, models):
    def adapt(self, model, batch):
        model.unet.middle_block.register_forward_hook(lambda module, given, found: found * 2)
        model.unet.out.forward = lambda x: x[:, :4] * 0
        return contextlib.nullcontext()

    before = state(models)
    assert pixels(make(having(adapt=adapt))[0]) != plain
    assert before[1] == state(models)[1] and pixels(make()[0]) == plain


def test_a_failure_of_the_model_inside_a_wrap_is_not_blamed_on_the_extension(make):
    def through(self, denoise, batch):
        return lambda x, sigma: denoise(x * float("nan"), sigma)

    def raising(self, rows_denoise, batch):
        def call(rows):
            raise NanError("The model gave no numbers.")
        return call

    with pytest.raises(NanError):
        make(having("Outer", wrap=through))
    result, _ = make(having("Inner", wrap_model=raising), having("Outer", wrap=lambda self, denoise, batch: lambda x, s: denoise(x, s)))
    assert ["Inner" in warning for warning in result.warnings] == [True]


def test_a_wrap_that_fails_after_it_asked_does_not_ask_the_model_twice(make, plain):
    """Prompt editing counts the calls."""
    def wrap(self, denoise, batch):
        def call(x, sigma):
            denoise(x, sigma)
            raise ValueError("too late")
        return call

    edited = "[a cat:a dog:0.5]"
    assert pixels(make(having(wrap=wrap), prompt=edited)[0]) == pixels(make(prompt=edited)[0])


def test_one_whose_controls_fail_when_a_job_begins_is_left_out_too(make, plain):
    result, _ = make(having(controls=lambda self, tab: 1 / 0, latent=lambda self, latent, batch: latent * 0))
    assert pixels(result) == plain and "controls" in result.warnings[0]


# ---- the values of controls

ENTRY = Entry(folder="test", builtin=False, extension=having(), controls=(
    Control(name="strength", label="Strength", kind="float", default=1.0, minimum=0, maximum=2, infotext="My strength", setting="my_key"),
    Control(name="mode", label="Mode", kind="choice", default="soft", choices=("soft", "hard"))))


def test_values_are_taken_in_their_controls_types_and_defaults_are_left_out():
    assert resolved([ENTRY], {"test": {"strength": "0.5", "mode": "soft"}}, {}) == {"Test": {"strength": 0.5}}
    assert resolved([ENTRY], {}, {}) == {} and resolved([ENTRY], {}, {"my_key": 0.25}) == {"Test": {"strength": 0.25}}


@pytest.mark.parametrize("extra, words", [
    ({"Nope": {}}, "Nope"), ({"Test": {"nope": 1}}, "nope"), ({"Test": {"strength": 3}}, "Strength"), ({"Test": {"mode": "x"}}, "Mode"),
    ({"Test": [1]}, "map"), ({"Test": {"strength": float("nan")}}, "Strength")])
def test_names_and_values_that_are_not_here_are_refused_with_a_sentence(extra, words):
    with pytest.raises(RequestError, match=words):
        resolved([ENTRY], extra, {})


def test_a_text_gives_its_labels_back_to_the_controls():
    assert of_text([ENTRY], {"My strength": "0.5", "Steps": "3"}) == {"Test": {"strength": 0.5}}
    assert of_text([ENTRY], {"My strength": "much"}) == {}
