"""A picture is what it is: alone, at any place of any batch, beside texts of any length, whatever ran, failed or was stopped before."""
import dataclasses

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modules.checkpoints.residency import Residency
from modules.checkpoints.shelf import Shelf
from modules.core.errors import Cancelled, WebUIError
from modules.core.hashing import Hashes
from modules.core.paths import Paths
from modules.core.progress import Progress
from modules.core.settings import Settings
from modules.pipeline.generate import generate
from modules.pipeline.request import Request, Resources
from modules.prompts.encode import EncodeCache
from modules.prompts.tokens import Tokenizer
from tests import tiny

ASKED = Request(prompt="a (red:1.3) boat, [sun|moon]", negative_prompt="fog", seed=40, subseed=7, steps=3, width=128, height=64,
                sampler="Euler a", checkpoint="tiny.safetensors", vae="None")
LONG = "a wall, " * 30
KINDS = (
    {}, {"sampler": "DPM++ 2M SDE", "eta_noise_seed_delta": 31337}, {"randn_source": "CPU"}, {"subseed_strength": 0.4},
    {"seed_resize_from_w": 48, "seed_resize_from_h": 80}, {"sampler": "DDIM", "cfg_scale": 1.0}, {"prompt": LONG, "negative_prompt": ""},
    {"prompt": "a boat AND a house :0.6", "negative_prompt": LONG})


class Stopping(Progress):
    """Told to stop, or failing, at its n-th check."""

    def __init__(self, checks, error=None):
        super().__init__()
        self._left, self._error = checks, error

    def check(self):
        self._left -= 1
        if self._left == 0:
            if self._error:
                raise self._error
            self.interrupt()
        super().check()


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """make(request, progress) -> its pictures by index; one model and one cache of texts for all, as in the program."""
    paths = Paths.of(tmp_path_factory.mktemp("alone"))
    paths.make()
    tiny.save_sd1(paths.checkpoints[0] / "tiny.safetensors", mult=(1, 1, 1, 1), text_layers=2)
    models, tokenizer, cache = Residency(Shelf(paths, Hashes(paths.hashes_file)), "cpu", torch.float32), Tokenizer(), EncodeCache()

    def made(request, progress=None, done=frozenset()):
        result = generate(request, Resources(
            settings=Settings(), models=models, adapters=None, upscalers=None, styles={}, tokenizer=tokenizer, encodings=cache, extensions=(),
            progress=progress or Progress(), done=done, deliver=lambda one: one))
        return {one.index: one for one in result.pictures}

    return made


def pixels(picture):
    return numpy.asarray(picture.image, dtype=numpy.int16)


KEPT = {}                                                   # pictures made alone, which several tests ask for


def alone(make, request, index):
    """The picture of this number by itself."""
    seed = request.seed if request.subseed_strength else request.seed + index
    single = dataclasses.replace(request, seed=seed, subseed=request.subseed + index, batch_size=1, n_iter=1)
    key = repr(single)
    if key not in KEPT:
        KEPT[key] = make(single)[0]
    return KEPT[key]


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), split=st.sampled_from([(1, 3), (2, 2), (3, 1), (4, 1)]), skipped=st.sets(st.integers(0, 2), max_size=2))
def test_in_any_batch_at_any_place_within_one_level(make, kind, split, skipped):
    """skipped: those that were delivered before the job was taken up again."""
    size, count = split
    request = dataclasses.replace(ASKED, **kind, batch_size=size, n_iter=count)
    for index, picture in make(request, done=frozenset(skipped)).items():
        other = alone(make, request, index)
        assert (picture.seed, picture.subseed) == (other.seed, other.subseed) and picture.infotext == other.infotext
        assert numpy.abs(pixels(picture) - pixels(other)).max() <= 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: ", ".join(kind) or "plain")
def test_in_any_batch_to_the_bit_where_that_is_asked(make, kind):
    request = dataclasses.replace(ASKED, **kind, batch_size=3, deterministic=True)
    for index, picture in make(request).items():
        assert (pixels(picture) == pixels(alone(make, dataclasses.replace(request, deterministic=False), index))).all()


@pytest.mark.parametrize("error", [None, WebUIError("It fell over."), torch.OutOfMemoryError("no memory")])
@pytest.mark.parametrize("checks", [1, 3])
def test_after_a_job_that_was_stopped_or_failed(make, checks, error):
    before = make(ASKED)[0]
    try:
        make(dataclasses.replace(ASKED, prompt=LONG, seed=3, batch_size=2), Stopping(checks, error))
    except (Cancelled, WebUIError, torch.OutOfMemoryError):
        assert checks == 1 or error
    after = make(ASKED)[0]
    assert (pixels(after) == pixels(before)).all() and after.record == before.record


def test_whatever_was_drawn_from_torchs_own_generator_before(make):
    before = make(ASKED)[0]
    torch.manual_seed(99)
    torch.randn(7)
    assert (pixels(make(ASKED)[0]) == pixels(before)).all()


def test_beside_pictures_whose_texts_are_longer(make):
    """Wildcards choose texts of one chunk and of three; each picture is that of its own words."""
    request = dataclasses.replace(ASKED, prompt="{a cat|" + LONG + "}", seed=44, batch_size=3)
    made = make(request)
    assert len({len(one.prompt) for one in made.values()}) == 2
    for one in made.values():
        single = make(dataclasses.replace(ASKED, prompt=one.prompt, seed=one.seed, subseed=one.subseed))[0]
        assert (pixels(one) == pixels(single)).all()
