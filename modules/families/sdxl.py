"""Stable Diffusion XL and its refiner. Podell et al. 2023, arXiv:2307.01952: two towers read one layer before their last, sizes beside
the words, 1024 px. Distilled forms (SSD-1B, Vega, KOALA) have the same names with fewer blocks; Turbo has the very same shapes.
"""
from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from modules.core.errors import CheckpointError
from modules.families import beside
from modules.families.base import Family, Framing, Header, LatentFormat, Model, Weights
from modules.families.build import assembled, check_parts
from modules.families.keys import UNET, XL_ALONE, XL_FIRST, XL_SECOND, plain_names
from modules.families.noise import NO_HINTS, prediction_of
from modules.families.parts import tower_from
from modules.families.shapes import shapes_of, size
from modules.sampling.conditioning import Conditioning

LABEL = f"{UNET}label_emb.0.0.weight"
VARIANTS: Mapping[int, str] = MappingProxyType({4: "", 8: "edit", 9: "inpaint"})
PLAYGROUND_SCALE = 0.5
PLAYGROUND_MEAN, PLAYGROUND_STD = (-1.6574, 1.886, -1.383, 2.5155), (8.4927, 5.9022, 6.5498, 5.2299)


def recognises(header: Header) -> bool:
    """OpenCLIP's tower in the second place."""
    return any(name.startswith(XL_SECOND) for name in header) and any(name.startswith(UNET) for name in header)


def recognises_refiner(header: Header) -> bool:
    """OpenCLIP's tower alone, with a vector of sizes beside it."""
    return any(name.startswith(XL_ALONE) for name in header) and LABEL in header and not recognises(header)


def build(weights: Weights, hints: Mapping[str, str] = NO_HINTS) -> Model:
    """Networks that hold these very tensors; hints as in sd1.build. Raises CheckpointError."""
    weights = plain_names(weights)
    channels = size(shapes_of(weights), f"{UNET}input_blocks.0.0.weight", 1)
    if channels not in VARIANTS:
        raise CheckpointError(f"This file is a variant of SDXL with {channels} input channels, which Easel does not know.")
    check_parts(weights, XL_FIRST, XL_SECOND)
    text = (tower_from(weights, XL_FIRST, layer=2, final_norm=False),
            tower_from(weights, XL_SECOND, open_clip=True, layer=2, final_norm=False, pooled=True))
    cosine = "edm_vpred.sigma_max" in weights
    notes = {"edit": "scaled"} if cosine and channels == 8 else {}
    return assembled(SDXL, weights, hints, text=text, prediction=prediction_of(weights, hints), variant=VARIANTS[channels],
                     latent=playground_latent(weights), notes=notes)


def build_refiner(weights: Weights, hints: Mapping[str, str] = NO_HINTS) -> Model:
    """As `build`, with the one tower that the refiner has."""
    weights = plain_names(weights)
    check_parts(weights, XL_ALONE)
    text = (tower_from(weights, XL_ALONE, open_clip=True, layer=2, final_norm=False, pooled=True),)
    return assembled(REFINER, weights, hints, text=text, prediction=prediction_of(weights, hints))


def playground_latent(weights: Weights) -> LatentFormat | None:
    """Playground 2.5 takes each channel's mean off and scales it by its spread (Li et al. 2024, arXiv:2402.17245); else None."""
    if "edm_mean" not in weights or "edm_std" not in weights:
        return None
    mean, std = (_row(weights["edm_mean"]) or PLAYGROUND_MEAN), (_row(weights["edm_std"]) or PLAYGROUND_STD)
    if len(mean) != len(std) or not all(value > 0 for value in std):
        raise CheckpointError("The tensors edm_mean and edm_std of this file do not fit each other; the file is damaged.")
    return LatentFormat(channels=len(mean), downscale=8, scale=tuple(PLAYGROUND_SCALE / value for value in std), shift=mean)


def _row(tensor: torch.Tensor) -> tuple[float, ...]:
    return () if tensor.is_meta else tuple(float(value) for value in tensor.flatten())


def told(model: Model, framing: Framing, negative: bool) -> Conditioning:
    vector = beside.sizes(model, framing, negative).vector
    if model.variant == "inpaint":
        return Conditioning(vector=vector, concat=beside.inpainting(model, framing, negative).concat)
    if model.variant == "edit":
        edited = beside.scaled_editing if model.hints.get("edit") == "scaled" else beside.editing
        return Conditioning(vector=vector, concat=edited(model, framing, negative).concat)
    return Conditioning(vector=vector)


SDXL = Family(
    name="SDXL",
    native_size=1024,                                       # pixels
    latent=LatentFormat(channels=4, downscale=8, scale=0.13025),
    recognises=recognises,
    build=build,
    zero_empty_negative=True,
    beside=told,
)

REFINER = Family(
    name="SDXL refiner",
    native_size=1024,
    latent=LatentFormat(channels=4, downscale=8, scale=0.13025),
    recognises=recognises_refiner,
    build=build_refiner,
    zero_empty_negative=True,
    beside=beside.scores,
)
