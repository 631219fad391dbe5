"""The first latent diffusion models. Rombach et al. 2022, arXiv:2112.10752: from words, classes or boxes, from nothing, larger, or into a
hole. They differ in where they look, how they were noised and how their heads are cut, and no file says it: tables E of the paper do.
"""
from __future__ import annotations

from collections.abc import Mapping

from modules.families import beside
from modules.families.base import Family, Framing, Header, LatentFormat, Model, Weights
from modules.families.build import assembled, check_parts
from modules.families.keys import TEXT, UNET, plain_names
from modules.families.noise import NO_HINTS, prediction_of, scale_of
from modules.families.parts import bert_from, classes_from
from modules.families.shapes import shapes_of, size
from modules.sampling.conditioning import Conditioning
from modules.sampling.prediction import scaled_linear_alphas

WORDS, BLOCKS, CLASSES = f"{TEXT}token_emb.weight", f"{TEXT}attn_layers.", "cond_stage_model.embedding.weight"
ATTENTION = f"{UNET}middle_block.1.qkv.weight"
QUANTISED = "first_stage_model.quantize.embedding.weight"
EMPTY_CLASS_AMONG = 1001                                    # rows of the published table whose last one means "no class"
LATENT = LatentFormat(channels=3, downscale=4, scale=1.0)


def recognises_text(header: Header) -> bool:
    """A transformer in x-transformers' names reads words or boxes."""
    return any(name.startswith((WORDS, BLOCKS)) for name in header)


def recognises_class(header: Header) -> bool:
    return CLASSES in header


def recognises_plain(header: Header) -> bool:
    """No text at all: cells of the latent look at each other only."""
    return ATTENTION in header


def build_text(weights: Weights, hints: Mapping[str, str] = NO_HINTS) -> Model:
    """text2img-large (KL, noised as SD), text2img256, layout2img; hints as in sd1.build. Raises CheckpointError."""
    weights = plain_names(weights)
    check_parts(weights, TEXT)
    tower = bert_from(weights)
    if QUANTISED not in weights:
        return assembled(LDM_TEXT, weights, hints, text=(tower,), prediction=prediction_of(weights, hints),
                         latent=LatentFormat(channels=4, downscale=8, scale=scale_of(weights, hints, 0.18215)))
    boxes = tower.vocabulary == "boxes"
    alphas = scaled_linear_alphas(0.0015, 0.0205 if boxes else 0.0195)
    return assembled(LDM_TEXT, weights, hints, text=(tower,), prediction=prediction_of(weights, hints, alphas=alphas),
                     heads={"head_dim": 32}, guided=not boxes, variant="layout" if boxes else "")


def build_class(weights: Weights, hints: Mapping[str, str] = NO_HINTS) -> Model:
    """cin256, both forms; hints as in sd1.build, and "easel.empty_class": "true" where the last class means none."""
    weights = plain_names(weights)
    check_parts(weights)
    tower = classes_from(weights)
    three = size(shapes_of(weights), f"{UNET}out.2.weight") == 3
    empty = tower.classes == EMPTY_CLASS_AMONG or str(hints.get("easel.empty_class", "")).lower() == "true"
    return assembled(LDM_CLASS, weights, hints, text=(tower,), heads={"heads": 1} if three else {"head_dim": 32}, guided=empty,
                     prediction=prediction_of(weights, hints, alphas=scaled_linear_alphas(0.0015, 0.0195)))


def build_plain(weights: Weights, hints: Mapping[str, str] = NO_HINTS) -> Model:
    """Models without words: of faces, beds and churches, of larger pictures, of holes. hints as in sd1.build. Raises CheckpointError."""
    weights = {name: tensor for name, tensor in plain_names(weights).items() if not name.startswith("cond_stage_model.")}
    check_parts(weights)
    shapes = shapes_of(weights)
    last, variant = noised_to(shapes)
    return assembled(LDM, weights, hints, text=(), guided=False, variant=variant,
                     prediction=prediction_of(weights, hints, alphas=scaled_linear_alphas(0.0015, last)))


def noised_to(shapes: Header) -> tuple[float, str]:
    """The last beta of its training, and what it takes beside the noise."""
    inputs, outputs = size(shapes, f"{UNET}input_blocks.0.0.weight", 1), size(shapes, f"{UNET}out.2.weight")
    if inputs == 2 * outputs + 1:
        return 0.0205, "inpaint"
    if inputs == 2 * outputs:
        return 0.0155, "upscale"
    told, after = (shapes.get(f"{UNET}input_blocks.1.0.{layer}.weight", (0,))[0] for layer in ("emb_layers.1", "out_layers.3"))
    return (0.0155 if told == 2 * after else 0.0195), ""


def around(model: Model, framing: Framing) -> Conditioning:
    if model.variant == "inpaint":
        return beside.signed_inpainting(model, framing)
    return beside.enlarging(model, framing) if model.variant == "upscale" else Conditioning()


LDM_TEXT = Family(name="LDM text", native_size=256, latent=LATENT, recognises=recognises_text, build=build_text)
LDM_CLASS = Family(name="LDM class", native_size=256, latent=LATENT, recognises=recognises_class, build=build_class)
LDM = Family(name="LDM", native_size=256, latent=LATENT, recognises=recognises_plain, build=build_plain, around=around, averaged=True)
