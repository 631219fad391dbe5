"""Whole published models on the meta device: detected, built by their family, and counted against other people's networks of full size."""
import math
from functools import cache

import pytest
import torch

from modules.families.catalogue import family_of
from modules.networks import unet as our_unet
from tests import tiny
from tests.oracles import published, published_vae
from tests.oracles import published_families as oracles
from tests.oracles.published import open_oracles
from tests.tiny_families import bert_shapes, open_clip_shapes

OPEN, BERT, CLASSES = "cond_stage_model.model.", "cond_stage_model.transformer.", "cond_stage_model.embedding.weight"
FIRST, SECOND, ALONE = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.", "conditioner.embedders.0.model."


def under(prefix, shapes):
    return {prefix + name: shape for name, shape in shapes.items()}


VIT_H, BIG_G = {"width": 1024, "layers": 24, "projection": 1024}, {"width": 1280, "layers": 32, "projection": 1280}
CLIP = under(BERT, tiny.text_shapes(width=768, layers=12))
H, G = (open_clip_shapes(**sizes) for sizes in (VIT_H, BIG_G))
XL = {**under(FIRST, tiny.text_shapes(width=768, layers=12)), **under(SECOND, G)}
BERTS = {                                                   # width, layers, ids, places
    "LDM text2img-large": (1280, 32, 30522, 77), "LDM text2img256": (640, 32, 30522, 77), "LDM layout2img": (512, 16, 8192, 92),
}


def encoders(name):
    """The text encoders of one published file."""
    if name in BERTS:
        width, layers, vocabulary, positions = BERTS[name]
        return under(BERT, bert_shapes(width=width, layers=layers, inner=512, vocabulary=vocabulary, positions=positions))
    if name.startswith("LDM cin256"):
        return {CLASSES: (1001 if name == "LDM cin256-v2" else 1000, 512)}
    if name.startswith("LDM"):
        return {}
    if name.startswith("SD1"):
        return CLIP
    if name.startswith("SD2"):
        return under(OPEN, H)
    return under(ALONE, H) if name == "SD-Turbo" else under(ALONE, G) if name == "SDXL refiner" else XL


VAES = {                                                    # all others have kl-f8
    "SD2 x4 upscaler": "kl-f4 of the x4 upscaler", "LDM cin256": "vq-f8", "LDM inpainting_big": "vq-f4-noattn",
    **dict.fromkeys(("LDM text2img256", "LDM layout2img", "LDM cin256-v2", "LDM faces", "LDM bsr_sr"), "vq-f4"),
}
FAMILY = {"SD1": "SD1", "SD2": "SD2", "SD-": "SD2", "SDXL refiner": "SDXL refiner", "LDM text": "LDM text", "LDM layout": "LDM text",
          "LDM cin": "LDM class", "LDM": "LDM"}


@cache
def published_file(name):
    """The shapes of all tensors of one published file."""
    return {**under(oracles.PREFIX, oracles.names_and_shapes(name)), **encoders(name),
            **under("first_stage_model.", published_vae.shapes(**published_vae.ZOO[VAES.get(name, "kl-f8")]))}


@cache
def built(name):
    shapes = published_file(name)
    return family_of(shapes).build({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})


def counted(network):
    return sum(math.prod(parameter.shape) for parameter in network.parameters())


def with_heads(network):
    return [module for module in network.modules() if isinstance(module, (our_unet.Attention, our_unet.AttentionBlock))]


# Parameters of the U-Net as the original programs print them when they load a file, or as papers give them
# (Gupta et al. 2024, arXiv:2401.02677; Lee et al. 2023, arXiv:2312.04005, table 2), and the last digit of what is printed.
PRINTED = {
    **{name: (millions * 1e6, 1e4) for name, millions in {
        "SD1": 859.52, "SD1 inpainting": 859.54, "SD1 edit": 859.53, "SD2": 865.91, "SD2 inpainting": 865.92, "SD2 depth": 865.91,
        "SD2 x4 upscaler": 473.40, "SDXL": 2567.46, "LDM text2img-large": 872.30, "LDM cin256-v2": 400.92, "LDM faces": 274.06,
        "LDM bsr_sr": 113.62, "LDM inpainting_big": 387.25}.items()},
    "SSD-1B": (1.3e9, 1e8), "Vega": (0.74e9, 1e7), "KOALA-700M": (782e6, 1e6), "KOALA-1B": (1161e6, 1e6),
}


@pytest.mark.parametrize("name", PRINTED)
def test_the_unet_has_the_number_of_parameters_that_was_published(name):
    number, digit = PRINTED[name]
    assert abs(counted(built(name).unet) - number) < digit


@pytest.mark.parametrize("name", oracles.UNETS)
def test_the_published_file_is_of_this_family_and_its_unet_has_as_many_parameters_as_that_of_diffusers(name):
    of = oracles.sizes(name)
    with torch.device("meta"):
        theirs = oracles.empty_unet(of)
    assert family_of(published_file(name)).name == next((family for start, family in FAMILY.items() if name.startswith(start)), "SDXL")
    assert counted(built(name).unet) == counted(theirs)


@pytest.mark.parametrize("name", oracles.UNETS)
def test_the_unet_of_the_published_file_has_the_published_heads(name):
    """From the published configuration: so many heads, or heads so wide."""
    of = oracles.sizes(name)
    for attention in with_heads(built(name).unet):
        width = (attention.qkv.weight if hasattr(attention, "qkv") else attention.to_q.weight).shape[1]
        assert attention.heads == (of["heads"] if "heads" in of else width // of["head_dim"])


@pytest.mark.parametrize("name", [name for name in oracles.UNETS if oracles.UNETS[name]["context"]])
def test_the_names_of_the_published_unet_are_those_that_diffusers_converts_and_loads_strictly(name):
    tensors = under(oracles.PREFIX, built(name).unet.state_dict())
    oracles.unet(tensors, oracles.sizes(name))


@pytest.mark.parametrize("model, file, prefix", [
    ("ViT-H-14", "SD2", OPEN), ("ViT-H-14", "SD-Turbo", ALONE), ("ViT-bigG-14", "SDXL", SECOND), ("ViT-bigG-14", "SDXL refiner", ALONE),
])
def test_the_openclip_tower_has_the_names_and_sizes_that_open_clip_publishes(model, file, prefix):
    """Built from open_clip's own configuration; a tower that gives no vector for the whole text leaves the projection out."""
    open_clip, ours = oracles.open_clip_package(), built(file).text[-1]
    config = open_clip.get_model_config(model)
    sizes = {name: config["text_cfg"][name] for name in ("width", "layers", "heads")}
    with torch.device("meta"):
        theirs = oracles.empty_open_clip_text(**sizes, projection=config["embed_dim"])
    names = {name.removeprefix(prefix): shape for name, shape in published_file(file).items() if name.startswith(prefix)}
    assert {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()} == names
    unused = 0 if ours.config.projection else config["text_cfg"]["width"] * config["embed_dim"]
    assert counted(ours) == counted(theirs) - unused
    assert (ours.config.heads, ours.config.layers) == (sizes["heads"], sizes["layers"])


@pytest.mark.parametrize("file", ["SDXL", "SDXL refiner", "SD2"])
def test_the_openclip_tower_in_other_names_is_the_one_of_transformers(file):
    them, ours = open_oracles().transformers, built(file).text[-1]
    words = published.clip_settings(width=ours.config.width, layers=ours.config.layers, heads=ours.config.heads, activation="gelu")
    with torch.device("meta"):
        theirs = them.CLIPTextModelWithProjection(them.CLIPTextConfig(**words, projection_dim=ours.config.width)).state_dict()
    expected = {name: tensor.shape for name, tensor in theirs.items() if ours.config.projection or name != "text_projection.weight"}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == expected


@pytest.mark.parametrize("file", ["SD1", "SDXL"])
def test_the_tower_of_openai_has_the_published_size(file):
    ours = built(file).text[0]
    assert counted(ours) == 123_060_480
    assert (ours.config.heads, ours.config.activation) == (12, "quick_gelu")


@pytest.mark.parametrize("name", BERTS)
def test_the_encoder_of_the_first_models_has_the_published_size(name):
    """Counted by diffusers' network without its unused head, and by hand: two norms, q, k, v and out, and two layers of four widths."""
    width, layers, vocabulary, positions = BERTS[name]
    ours = built(name).text[0]
    with torch.device("meta"):
        theirs = oracles.empty_bert(width=width, layers=layers, vocabulary=vocabulary, positions=positions)
    layer = 4 * width + 3 * 512 * width + 512 * width + width + 8 * width ** 2 + 5 * width
    by_hand = layers * layer + (vocabulary + positions + 2) * width
    assert counted(ours) == counted(theirs.model) == by_hand
    assert ours.config.heads == 8


@pytest.mark.parametrize("name, rows", [("LDM cin256-v2", 1001), ("LDM cin256", 1000)])
def test_only_the_table_with_a_row_for_no_class_can_be_guided(name, rows):
    model = built(name)
    assert (model.text[0].classes, model.text[0].width, model.guided) == (rows, 512, rows == 1001)


@pytest.mark.parametrize("name", oracles.UNETS)
def test_the_parts_of_the_published_file_fit_each_other(name):
    """The latent has the published channels, and a picture of the native size is a latent of whole cells at every level."""
    model, of = built(name), oracles.sizes(name)
    assert model.latent.channels == of.get("out_channels", 4)
    assert model.latent.downscale == (4 if VAES.get(name, "kl-f8").startswith(("kl-f4", "vq-f4")) else 8)
    assert sum(tower.width for tower in model.text) == of["context"]
    assert model.native_size % (model.latent.downscale * 2 ** (len(of["mult"]) - 1)) == 0
