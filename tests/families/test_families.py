"""Every family from a file of its published names: recognised, loaded, sampled; and what it is told beside the words."""
import math
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import save_file

from modules.checkpoints.load import load, verify
from modules.core.errors import RequestError
from modules.core.progress import Progress
from modules.core.settings import Settings
from modules.families.base import Framing
from modules.families.catalogue import family_of
from modules.families.sd2 import TELLING, guess
from modules.families.shapes import shapes_of
from modules.pipeline.generate import generate
from modules.pipeline.request import Request, Resources
from modules.prompts.encode import EncodeCache, encode_program
from modules.prompts.timeline import program
from modules.prompts.tokens import Tokenizer
from modules.sampling.prediction import Prediction, continuous_alphas, scaled_linear_alphas, zero_terminal_snr
from tests import tiny_families
from tests.tiny_families import FAMILIES

NAMES = {"SD-Turbo": "SD2", "CosXL": "SDXL", "Playground 2.5": "SDXL", "SSD-1B": "SDXL", "KOALA": "SDXL", "SDXL refiner": "SDXL refiner",
         "LDM cin256": "LDM class", "LDM text2img-large": "LDM text", "LDM text2img256": "LDM text", "LDM layout2img": "LDM text"}
VARIANTS = {"SD1 inpainting": "inpaint", "SD1 edit": "edit", "SD2 inpainting": "inpaint", "SD2 depth": "depth", "SD2 unCLIP": "unclip",
            "SD2 x4 upscaler": "upscale", "SDXL inpainting": "inpaint", "SDXL edit": "edit", "LDM bsr_sr": "upscale",
            "LDM inpainting_big": "inpaint", "LDM layout2img": "layout"}
NEED_A_PICTURE = {"SD2 depth", "SD2 x4 upscaler", "LDM bsr_sr"}
PROMPTS = {"LDM cin256": "207", "LDM layout2img": "3 0.1 0.1 0.5 0.5; 17 0.4 0.2 0.3 0.7"}
SIDES = 64


class Lent:
    """One model, lent as the engine lends it."""

    def __init__(self, model):
        self.model = model

    def borrow(self, checkpoint, vae="Automatic", prediction="Auto"):
        return nullcontext(self.model)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """name -> the model, from a file that was written once."""
    home, kept = tmp_path_factory.mktemp("families"), {}

    def get(name):
        if name not in kept:
            path = home / f"{name}.safetensors"
            save_file({key: tensor.contiguous() for key, tensor in FAMILIES[name](dtype=torch.float16).items()}, path)
            verify(path)
            kept.clear()                                    # one at a time is enough memory
            kept[name] = load(path, device="cpu", dtype=torch.float32)
            path.unlink()
        return kept[name]

    return get


def picture(model, tokenizer, **changes):
    prompt = changes.pop("prompt", "a cat")
    request = Request(**{"prompt": prompt, "seed": 3, "subseed": 0, "steps": 3, "width": SIDES, "height": SIDES, "sampler": "Euler",
                         "scheduler": "Automatic", "vae": "Automatic", **changes})
    result = generate(request, Resources(
        settings=Settings(), models=Lent(model), adapters=None, upscalers=None, styles={}, tokenizer=tokenizer, encodings=EncodeCache(),
        extensions=(), progress=Progress(), done=frozenset(), deliver=lambda one: one))
    return result.pictures[0].image


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_of_this_family_is_recognised_loaded_and_draws(loaded, tokenizer, name):
    model, prompt = loaded(name), PROMPTS.get(name, "a cat")
    assert (model.family.name, model.variant) == (NAMES.get(name, name.split()[0]), VARIANTS.get(name, ""))
    assert not any(parameter.is_meta for parameter in model.unet.parameters())
    if name in NEED_A_PICTURE:
        with pytest.raises(RequestError, match="picture"):
            picture(model, tokenizer, prompt=prompt)
        return
    image = picture(model, tokenizer, prompt=prompt)
    assert image.size == (SIDES, SIDES)
    spread = torch.tensor(list(image.convert("L").tobytes())).float().std()
    assert spread > 5
    if not model.text:
        return
    other = picture(model, tokenizer, prompt={"LDM cin256": "11", "LDM layout2img": "3 0 0 1 1"}.get(name, "a dog on a wall"))
    assert other.tobytes() != image.tobytes()


# ---- predictions

def test_marker_tensors_say_what_is_predicted_and_how_far_the_noise_goes(loaded):
    assert loaded("SDXL v").prediction.kind == "v" and loaded("SDXL v").prediction.sigma_max == pytest.approx(4518.8, rel=1e-3)
    cos = loaded("CosXL").prediction
    assert (cos.kind, cos.continuous) == ("v", True)
    assert (cos.sigma_min, cos.sigma_max) == (pytest.approx(0.002, rel=1e-5), pytest.approx(120.0, rel=1e-5))
    playground = loaded("Playground 2.5")
    assert (playground.prediction.kind, playground.prediction.sigma_max) == ("edm", pytest.approx(80.0, rel=1e-5))
    assert playground.hints["prediction"] == "edm (marked in the file)"


def test_the_prediction_of_the_user_comes_before_the_one_of_the_file(tmp_path):
    path = tmp_path / "v.safetensors"
    save_file(tiny_families.sdxl(markers={"v_pred": torch.zeros(1)}), path)
    assert load(path, device="cpu", dtype=torch.float32, prediction="eps").hints["prediction"] == "eps (chosen)"
    assert load(path, device="cpu", dtype=torch.float32, prediction="x0").prediction.kind == "x0"


def test_a_published_second_version_predicts_v_where_its_telling_bias_is_spread_wide():
    wide = torch.tensor([0.2, -0.2] * 160)
    assert guess({TELLING: wide}, "") == "v" and guess({TELLING: wide / 10}, "") == "eps"
    assert guess({TELLING: wide[:96]}, "") == "eps"         # not the published size: no guess from it
    assert guess({TELLING: wide.to("meta")}, "") == "eps"


@pytest.mark.parametrize("kind", ["eps", "v", "x0", "edm"])
@pytest.mark.parametrize("sigma", [0.05, 1.0, 14.0])
def test_every_prediction_gives_back_the_picture_that_its_own_target_was_made_of(kind, sigma):
    """The targets as they are defined in training: eps, alpha eps - s x0 (v), x0, and Karras et al.'s F for edm."""
    x0, eps = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.randn(2, 4, 8, 8)
    x = x0 + sigma * eps
    alpha, spread = 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)
    data = 0.5
    target = {"eps": eps, "v": alpha * eps - spread * x0, "x0": x0,
              "edm": (x0 - x * data ** 2 / (sigma ** 2 + data ** 2)) * math.hypot(sigma, data) / (sigma * data)}[kind]
    prediction = Prediction(kind, scaled_linear_alphas(), data_std=data)
    seen = []

    def network(x_in, t):
        seen.append(float(x_in.std() / x.std()))
        return target

    assert torch.allclose(prediction.denoised(network, x, torch.tensor(sigma)), x0, atol=2e-4)
    assert seen[0] == pytest.approx(1 / math.hypot(sigma, data if kind == "edm" else 1.0), rel=1e-4)


def test_a_model_without_indices_is_told_a_quarter_of_the_logarithm():
    prediction = Prediction("edm", continuous_alphas(0.002, 80.0), continuous=True)
    assert float(prediction.told(torch.tensor(5.0))) == pytest.approx(0.25 * math.log(5.0), rel=1e-6)
    assert float(prediction.sigma_of(prediction.t_of(3.3))) == pytest.approx(3.3, rel=1e-4)


# ---- beside the words

def test_sizes_stand_behind_the_whole_text_in_the_order_of_the_paper(loaded):
    model = loaded("SDXL")
    vector = model.family.beside(model, Framing(width=640, height=320, crop=(5, 7)), False).vector
    each = tiny_families.SIZE
    half = each // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half) / half)
    expected = [torch.cat((torch.cos(number * frequencies), torch.sin(number * frequencies))) for number in (320, 640, 5, 7, 320, 640)]
    assert torch.allclose(vector[0], torch.cat(expected), atol=1e-6)


def test_the_refiner_is_told_a_score_that_differs_for_the_negative_prompt(loaded):
    model = loaded("SDXL refiner")
    framing = Framing(width=64, height=64)
    good, bad = (model.family.beside(model, framing, negative).vector for negative in (False, True))
    each = tiny_families.SIZE
    assert torch.equal(good[:, :4 * each], bad[:, :4 * each]) and not torch.equal(good[:, 4 * each:], bad[:, 4 * each:])


def test_an_empty_negative_prompt_is_told_to_sdxl_as_zeros(loaded, tokenizer):
    model = loaded("SDXL")
    for negative, zero in (("", True), ("ugly", False)):
        found = encode_program(program("a cat", negative, 4), model.text, tokenizer, zero_empty_negative=model.family.zero_empty_negative)
        _, uncond = found.at(0)
        assert (float(uncond.cross.abs().max()) == 0, float(uncond.vector.abs().max()) == 0) == (zero, zero)
        parts, _ = found.at(0)
        assert parts[0][1].cross.shape == (1, 77, 192) and parts[0][1].vector.shape == (1, 96)


def test_a_long_text_is_told_as_a_whole_by_its_first_chunk(loaded, tokenizer):
    model = loaded("SDXL")
    def vector(text):
        return encode_program(program(text, "", 4), model.text, tokenizer).at(0)[0][0][1].vector

    first = ", ".join(["red"] * 37)
    assert torch.allclose(vector(f"{first} BREAK a dog"), vector(f"{first} BREAK a house on a hill"), atol=1e-6)
    assert not torch.allclose(vector(first), vector("a dog"), atol=1e-3)


def test_the_first_latent_of_an_inpainting_model_without_a_picture_is_all_hole_over_grey(loaded):
    model = loaded("SD1 inpainting")
    told = model.family.around(model, Framing(width=64, height=48)).concat
    assert told.shape == (1, 5, 6, 8) and bool((told[:, 0] == 1).all())
    grey = model.vae.encode(torch.zeros(1, 3, 48, 64))[0] * 0.18215
    assert torch.allclose(told[:, 1:], grey, atol=1e-5)


def test_a_mask_keeps_the_known_part_of_a_picture_for_the_model(loaded):
    model = loaded("SD1 inpainting")
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1
    told = model.family.around(model, Framing(width=64, height=64, image=image, mask=mask)).concat
    assert torch.equal(told[0, 0], torch.cat((torch.ones(8, 4), torch.zeros(8, 4)), dim=1))
    hole = image.clone()
    hole[..., :32] = 0
    assert torch.allclose(told[:, 1:], model.vae.encode(hole)[0] * 0.18215, atol=1e-5)


def test_the_first_inpainting_model_is_told_a_signed_mask_behind_the_picture(loaded):
    model = loaded("LDM inpainting_big")
    image, mask = torch.rand(1, 3, 64, 64) * 2 - 1, torch.zeros(1, 1, 64, 64)
    mask[..., 32:, :] = 1
    told = model.family.around(model, Framing(width=64, height=64, image=image, mask=mask)).concat
    assert told.shape == (1, 4, 16, 16)
    assert torch.equal(told[0, 3], torch.cat((-torch.ones(8, 16), torch.ones(8, 16))))
    black = image.clone()
    black[..., 32:, :] = -1
    assert torch.allclose(told[:, :3], model.vae.encode(black)[0], atol=1e-4)


def test_the_upscaler_is_told_its_picture_with_as_much_noise_as_its_level_says(loaded):
    model = loaded("SD2 x4 upscaler")
    image, noise = torch.rand(1, 3, 16, 16) * 2 - 1, torch.randn(1, 3, 16, 16)
    told = model.family.around(model, Framing(width=64, height=64, image=image, noise_level=100, noise=noise))
    assert told.label.tolist() == [100]
    betas = torch.linspace(0.0001 ** 0.5, 0.02 ** 0.5, 1000, dtype=torch.float64) ** 2
    alpha = float((1 - betas)[:101].prod())
    assert torch.allclose(told.concat, alpha ** 0.5 * image + (1 - alpha) ** 0.5 * noise, atol=1e-5)


def test_a_model_that_was_meant_to_be_drawn_with_averaged_weights_is_where_its_file_has_them(tmp_path):
    weights = tiny_families.ldm()
    own = {name: tensor for name, tensor in weights.items() if name.startswith("model.diffusion_model.")}
    shadows = {"model_ema." + name.removeprefix("model.").replace(".", ""): tensor + 1 for name, tensor in own.items()}
    path = tmp_path / "faces.safetensors"
    save_file({**weights, **shadows}, path)
    bias = own["model.diffusion_model.out.0.bias"]
    assert torch.equal(load(path, device="cpu", dtype=torch.float32).unet.out[0].bias, bias + 1)
    path.with_suffix(".json").write_text('{"easel.ema": "false"}')
    assert torch.equal(load(path, device="cpu", dtype=torch.float32).unet.out[0].bias, bias)


def test_facts_beside_a_file_come_before_those_of_the_family():
    weights = tiny_families.sdxl()
    build = family_of(shapes_of(weights)).build
    told = build(weights, {"easel.beta_start": "0.001", "easel.beta_end": "0.02", "easel.zero_terminal_snr": "true", "prediction": "v",
                           "easel.scale_factor": "0.5"})
    assert torch.equal(told.prediction.alphas_cumprod, zero_terminal_snr(scaled_linear_alphas(0.001, 0.02)))
    assert told.latent.scale == 0.5 and told.hints["prediction"] == "v (chosen)"
    spread = build(weights, {"easel.latents_mean": "1 2 3 4", "easel.latents_std": "2 2 4 4"}).latent
    assert spread.scale == (0.25, 0.25, 0.125, 0.125) and spread.shift == (1.0, 2.0, 3.0, 4.0)
    z = torch.randn(1, 4, 3, 5)
    assert torch.allclose(spread.from_model(spread.to_model(z)), z, atol=1e-5)
    assert torch.allclose(spread.to_model(z)[:, 2], (z[:, 2] - 3) * 0.125)


def test_a_model_without_an_empty_class_is_not_guided():
    assert not family_of(shapes_of(tiny_families.ldm_class())).build(tiny_families.ldm_class(classes=1000)).guided
    assert family_of(shapes_of(tiny_families.ldm_class())).build(tiny_families.ldm_class(classes=1001)).guided


@pytest.mark.parametrize("name, words", [("LDM cin256", "a cat"), ("LDM cin256", "-1"), ("LDM layout2img", "a cat"),
                                         ("LDM layout2img", "1 0 0 1 1.5"), ("LDM layout2img", ";".join(["1 0 0 1 1"] * 31))])
def test_words_that_mean_nothing_to_a_model_are_refused_with_what_it_reads(loaded, tokenizer, name, words):
    with pytest.raises(RequestError, match="This model draws"):
        picture(loaded(name), tokenizer, prompt=words)
