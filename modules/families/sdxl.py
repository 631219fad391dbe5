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
                     latent=playground_latent(weights, hints), notes=notes)


def build_refiner(weights: Weights, hints: Mapping[str, str] = NO_HINTS) -> Model:
    """As `build`, with the one tower that the refiner has."""
    weights = plain_names(weights)
    check_parts(weights, XL_ALONE)
    text = (tower_from(weights, XL_ALONE, open_clip=True, layer=2, final_norm=False, pooled=True),)
    return assembled(REFINER, weights, hints, text=text, prediction=prediction_of(weights, hints))


def playground_latent(weights: Weights, hints: Mapping[str, str]) -> LatentFormat | None:
    """Playground 2.5 takes each channel's mean off and scales it by its spread (Li et al. 2024, arXiv:2402.17245); else None.

    Both stand in the file as edm_mean and edm_std, or beside it as "easel.latents_mean" and "easel.latents_std".
    """
    rows = [_numbers(weights.get(f"edm_{name}"), hints.get(f"easel.latents_{name}", "")) for name in ("mean", "std")]
    if any(row is None for row in rows):
        return None
    mean, std = rows[0] or PLAYGROUND_MEAN, rows[1] or PLAYGROUND_STD
    if len(mean) != len(std) or not all(value > 0 for value in std):
        raise CheckpointError("The means and spreads of the latents in this file (edm_mean, edm_std) do not fit each other; it is damaged.")
    return LatentFormat(channels=len(mean), downscale=8, scale=tuple(PLAYGROUND_SCALE / value for value in std), shift=mean)


def _numbers(tensor: torch.Tensor | None, text: str) -> tuple[float, ...] | None:
    """The numbers of either; () for a tensor without values, None where there is neither."""
    if tensor is not None:
        return () if tensor.is_meta else tuple(float(value) for value in tensor.flatten())
    try:
        return tuple(float(word) for word in text.split()) or None
    except ValueError:
        return None


def around(model: Model, framing: Framing) -> Conditioning:
    if model.variant == "inpaint":
        return beside.inpainting(model, framing)
    if model.variant == "edit":
        return (beside.scaled_editing if model.hints.get("edit") == "scaled" else beside.editing)(model, framing)
    return Conditioning()


SDXL = Family(
    name="SDXL",
    native_size=1024,                                       # pixels
    latent=LatentFormat(channels=4, downscale=8, scale=0.13025),
    recognises=recognises,
    build=build,
    zero_empty_negative=True,
    sdxl_ladder=True,
    beside=beside.sizes,
    around=around,
)

REFINER = Family(
    name="SDXL refiner",
    native_size=1024,
    latent=LatentFormat(channels=4, downscale=8, scale=0.13025),
    recognises=recognises_refiner,
    build=build_refiner,
    zero_empty_negative=True,
    sdxl_ladder=True,
    beside=beside.scores,
)
