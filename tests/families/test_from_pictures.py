"""Models that want a picture beside the words, each given one: what they are told of it shows in what they draw."""
import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from modules.checkpoints.load import load
from modules.core.errors import RequestError
from modules.core.progress import Progress
from modules.core.settings import Settings
from modules.pipeline.generate import generate
from modules.pipeline.opening import Opening
from modules.pipeline.plan import Slot
from modules.pipeline.request import InitImage, Request, Resources
from modules.prompts.encode import EncodeCache
from modules.prompts.tokens import Tokenizer
from tests.families.test_families import Lent
from tests.tiny_families import FAMILIES

SIDE = 128


def painted(seed, size=(SIDE, SIDE)):
    return Image.fromarray(numpy.random.default_rng(seed).integers(0, 255, (*size[::-1], 3)).astype(numpy.uint8))


def half(size=(SIDE, SIDE)):
    mask = Image.new("RGB", size)
    mask.paste((255, 255, 255), (size[0] // 2, 0, *size))
    return mask


STORE = {"a" * 64: painted(1), "b" * 64: painted(2), "c" * 64: half(), "d" * 64: painted(3).convert("L").convert("RGB"),
         "e" * 64: painted(4, (SIDE // 4, SIDE // 4)), "f" * 64: painted(5, (SIDE // 4, SIDE // 4))}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    home, kept = tmp_path_factory.mktemp("from-pictures"), {}

    def get(name):
        if name not in kept:
            path = home / f"{name}.safetensors"
            save_file({key: tensor.contiguous() for key, tensor in FAMILIES[name](dtype=torch.float16).items()}, path)
            kept.clear()
            kept[name] = load(path, device="cpu", dtype=torch.float32)
            path.unlink()
        return kept[name]

    return get


def drawn(model, tokenizer, image, *, cfg_scale=7.0, n_iter=1, **init):
    request = Request(prompt="a cat", seed=3, subseed=0, steps=2, width=SIDE, height=SIDE, sampler="Euler", cfg_scale=cfg_scale, n_iter=n_iter,
                      init=InitImage(**{"image": image * 64, "denoising_strength": 1.0, **init}))
    return generate(request, Resources(
        settings=Settings(), models=Lent(model), adapters=None, upscalers=None, styles={}, tokenizer=tokenizer, encodings=EncodeCache(),
        extensions=(), progress=Progress(), done=frozenset(), deliver=lambda one: one, inputs=STORE.__getitem__)).pictures


def framing(model, **init):
    request = Request(width=SIDE, height=SIDE, init=InitImage(**init))
    slot = Slot(index=0, seed=3, subseed=0, prompt="", negative_prompt="", text="")
    return Opening(request, STORE.__getitem__).framing(model, slot)


@pytest.mark.parametrize("name", ["SD1 inpainting", "SDXL inpainting", "LDM inpainting_big"])
def test_an_inpainting_model_sees_what_is_not_masked_and_nothing_of_what_is(loaded, tokenizer, name):
    model = loaded(name)
    shown = model.family.around(model, framing(model, image="a" * 64, mask="c" * 64)).concat
    hidden = STORE["a" * 64].copy()
    hidden.paste((9, 99, 200), (SIDE // 2 + 16, 0, SIDE, SIDE))
    STORE["9" * 64] = hidden
    same = model.family.around(model, framing(model, image="9" * 64, mask="c" * 64)).concat
    other = model.family.around(model, framing(model, image="b" * 64, mask="c" * 64)).concat
    assert torch.equal(shown, same) and not torch.equal(shown, other)
    picture = drawn(model, tokenizer, "a", mask="c" * 64)[0]
    assert numpy.array_equal(numpy.asarray(picture.image)[:, :SIDE // 2 - 12], numpy.asarray(STORE["a" * 64])[:, :SIDE // 2 - 12])
    assert "Conditional mask weight: 1" in picture.infotext


def test_the_mask_weight_lets_an_inpainting_model_see_through(loaded):
    model = loaded("SD1 inpainting")
    told = [model.family.around(model, framing(model, image="a" * 64, mask="c" * 64, inpainting_mask_weight=weight)).concat
            for weight in (1.0, 0.5, 0.0)]
    assert not torch.equal(told[0], told[1]) and not torch.equal(told[1], told[2])


@pytest.mark.parametrize("name", ["SD1 edit", "SDXL edit"])
def test_an_editing_model_follows_the_picture_as_much_as_its_scale_says(loaded, tokenizer, name):
    model, made = loaded(name), {}
    for scale in (1.0, 1.5, 3.0):
        picture = drawn(model, tokenizer, "a", image_cfg_scale=scale)[0]
        made[scale] = picture.image.tobytes()
        assert f"Image CFG scale: {scale:g}" in picture.infotext
    assert len(set(made.values())) == 3


def test_a_depth_model_is_told_the_map_from_minus_one_to_one_and_asks_for_it(loaded, tokenizer):
    model = loaded("SD2 depth")
    told = model.family.around(model, framing(model, image="a" * 64, depth="d" * 64)).concat
    assert (float(told.min()), float(told.max())) == (-1.0, 1.0) and told.shape == (1, 1, SIDE // 8, SIDE // 8)
    one, two = (drawn(model, tokenizer, "a", depth=depth * 64)[0].image.tobytes() for depth in "da")
    assert one != two
    with pytest.raises(RequestError, match="depth map"):
        drawn(model, tokenizer, "a")


@pytest.mark.parametrize("name", ["SD2 x4 upscaler", "LDM bsr_sr"])
def test_an_upscaler_draws_a_picture_four_times_as_large_from_noise(loaded, tokenizer, name):
    model = loaded(name)
    first, again, other = (drawn(model, tokenizer, image, denoising_strength=strength)[0].image
                           for image, strength in (("e", 1.0), ("e", 0.1), ("f", 1.0)))
    assert first.size == (SIDE, SIDE) and first.tobytes() == again.tobytes() != other.tobytes()


def test_the_upscalers_noise_on_its_picture_is_each_seeds_own(loaded, tokenizer):
    model = loaded("SD2 x4 upscaler")
    two = drawn(model, tokenizer, "e", n_iter=2)
    alone = drawn(model, tokenizer, "e", noise_level=20)[0]
    assert two[0].image.tobytes() == alone.image.tobytes() != two[1].image.tobytes()
    assert alone.image.tobytes() != drawn(model, tokenizer, "e", noise_level=300)[0].image.tobytes()
