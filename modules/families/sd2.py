"""Stable Diffusion 2.x: OpenCLIP's ViT-H read one layer before its last, heads of 64 channels; the same for SD-Turbo, which names its
tower otherwise. Also its inpainting, depth, unCLIP and x4 upscaling forms. Cherti et al. 2023, arXiv:2212.07143, for the tower.
"""
from __future__ import annotations

from collections.abc import Mapping

from modules.core.errors import CheckpointError
from modules.families import beside
from modules.families.base import Family, Framing, Header, LatentFormat, Model, Weights
from modules.families.build import assembled, check_parts
from modules.families.keys import OPEN_TEXT, UNET, XL_ALONE, in_open_clip_names, part, plain_names
from modules.families.noise import NO_HINTS, prediction_of, scale_of
from modules.families.parts import tower_from
from modules.families.shapes import shapes_of, size
from modules.sampling.conditioning import Conditioning
from modules.sampling.prediction import Kind, scaled_linear_alphas

LABEL, LABEL_TABLE = f"{UNET}label_emb.0.0.weight", f"{UNET}label_emb.weight"
TELLING = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
V_SPREAD = 0.09                                             # its spread in all published v models lies above, in the others below
PUBLISHED_WIDTH = 320
UPSCALER_SCALE = 0.08333


def recognises(header: Header) -> bool:
    """OpenCLIP's tower as the only one, and no vector of sizes beside it (which would be the refiner)."""
    if not any(name.startswith(UNET) for name in header):
        return False
    alone = any(name.startswith(XL_ALONE) for name in header) and LABEL not in header
    return alone or any(name.startswith(OPEN_TEXT) for name in header)


def build(weights: Weights, hints: Mapping[str, str] = NO_HINTS) -> Model:
    """Networks that hold these very tensors; hints as in sd1.build. Raises CheckpointError."""
    weights = plain_names(weights)
    prefix = OPEN_TEXT if any(name.startswith(OPEN_TEXT) for name in weights) else XL_ALONE
    check_parts(weights, prefix)
    variant = variant_of(shapes_of(weights))
    # diffusers keeps one layer less of this tower, and reads its last one.
    layer = 2 if in_open_clip_names(part(weights, prefix)) else 1
    text = (tower_from(weights, prefix, open_clip=True, layer=layer),)
    if variant == "upscale":
        alphas = scaled_linear_alphas(*beside.UPSCALER_BETAS)
        return assembled(SD2, weights, hints, text=text, prediction=prediction_of(weights, hints, kind="v", alphas=alphas), variant=variant,
                         latent=LatentFormat(channels=4, downscale=4, scale=scale_of(weights, hints, UPSCALER_SCALE)), native_size=2048)
    kind = guess(weights, variant)
    prediction = prediction_of(weights, hints, kind=kind)
    return assembled(SD2, weights, hints, text=text, prediction=prediction, variant=variant,
                     native_size=768 if prediction[0].kind == "v" else 512)


def variant_of(shapes: Header) -> str:
    """What it takes beside words, by its channels. Raises CheckpointError for channels that no published form has."""
    channels = size(shapes, f"{UNET}input_blocks.0.0.weight", 1)
    if LABEL in shapes:
        return "unclip"
    if LABEL_TABLE in shapes and channels == 7:
        return "upscale"
    if channels not in (4, 5, 9):
        raise CheckpointError(f"This file is a variant of Stable Diffusion 2 with {channels} input channels, which Easel does not know.")
    return {4: "", 5: "depth", 9: "inpaint"}[channels]


def guess(weights: Weights, variant: str) -> Kind:
    """eps or v: no shape tells, so a bias does whose spread differs between all published models; eps where its size is not theirs."""
    if variant == "unclip":
        return "v"
    telling = weights.get(TELLING)
    if variant or telling is None or telling.is_meta or len(telling) != PUBLISHED_WIDTH:
        return "eps"
    return "v" if float(telling.float().std(unbiased=False)) > V_SPREAD else "eps"


def around(model: Model, framing: Framing) -> Conditioning:
    if model.variant == "inpaint":
        return beside.inpainting(model, framing)
    if model.variant == "upscale":
        return beside.noisy_enlarging(model, framing)
    if model.variant == "depth":
        return beside.depths(model, framing)
    return beside.no_image(model, framing) if model.variant == "unclip" else Conditioning()


SD2 = Family(
    name="SD2",
    native_size=512,                                        # pixels; 768 for those that predict v
    latent=LatentFormat(channels=4, downscale=8, scale=0.18215),
    recognises=recognises,
    build=build,
    around=around,
)
