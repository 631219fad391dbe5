"""Stable Diffusion 1.x: one CLIP-L tower, a U-Net with 8 heads, 512 px. Rombach et al. 2022, arXiv:2112.10752.

With more channels at its input it paints into a picture (9), or edits one (8; Brooks et al. 2023, arXiv:2211.09800).
"""
from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from modules.core.errors import CheckpointError
from modules.families import beside
from modules.families.base import Family, Framing, Header, LatentFormat, Model, Weights
from modules.families.build import assembled, check_parts
from modules.families.keys import TEXT, UNET, plain_names
from modules.families.noise import NO_HINTS, prediction_of
from modules.families.parts import tower_from
from modules.families.shapes import shapes_of, size
from modules.sampling.conditioning import Conditioning

VARIANTS: Mapping[int, str] = MappingProxyType({4: "", 8: "edit", 9: "inpaint"})


def recognises(header: Header) -> bool:
    """A U-Net beside a CLIP tower in HF names; or a U-Net alone whose transformers have convolutions before and behind them."""
    if not any(name.startswith(UNET) for name in header):
        return False
    if any(name.startswith(TEXT + "text_model.") for name in header):
        return True
    other_text = any(name.startswith(("cond_stage_model.", "conditioner.")) for name in header)
    conv = len(header.get(f"{UNET}middle_block.1.proj_in.weight", ())) == 4
    return conv and not other_text and not any(name.startswith(f"{UNET}label_emb.") for name in header)


def build(weights: Weights, hints: Mapping[str, str] = NO_HINTS) -> Model:
    """Networks that hold these very tensors, on the CPU, in the file's own float type.

    hints: what a person or the file's metadata says beside the tensors. "prediction" ("eps", "v", "x0" or "Auto"),
    "modelspec.prediction_type", "easel.heads", "easel.norm_groups", "easel.scale_factor".
    Raises CheckpointError naming the first missing tensor or the missing part.
    """
    weights = plain_names(weights)
    channels = size(shapes_of(weights), f"{UNET}input_blocks.0.0.weight", 1)
    if channels not in VARIANTS:
        raise CheckpointError(f"This file is a variant of Stable Diffusion 1 with {channels} input channels, which Easel does not know.")
    check_parts(weights, TEXT)
    return assembled(SD1, weights, hints, text=(tower_from(weights, TEXT),), prediction=prediction_of(weights, hints),
                     variant=VARIANTS[channels])


def around(model: Model, framing: Framing) -> Conditioning:
    if model.variant == "inpaint":
        return beside.inpainting(model, framing)
    return beside.editing(model, framing) if model.variant == "edit" else Conditioning()


SD1 = Family(
    name="SD1",
    native_size=512,                                        # pixels
    latent=LatentFormat(channels=4, downscale=8, scale=0.18215),
    recognises=recognises,
    build=build,
    around=around,
)
