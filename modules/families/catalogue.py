"""The families that can be loaded, in the order in which they are asked, and what else a file may seem to be."""
from __future__ import annotations

from collections.abc import Callable

from modules.core.errors import CheckpointError
from modules.families.base import Family, Header
from modules.families.keys import UNET, VAE, plain_names
from modules.families.ldm import LDM, LDM_CLASS, LDM_TEXT
from modules.families.sd1 import SD1
from modules.families.sd2 import SD2
from modules.families.sdxl import REFINER, SDXL

FAMILIES: tuple[Family, ...] = (SDXL, REFINER, SD2, LDM_TEXT, LDM_CLASS, SD1, LDM)


def family_of(header: Header) -> Family:
    """The family of a file with these tensors. Raises CheckpointError saying what the file seems to be instead."""
    header = plain_names(header)
    seen = next((what for sign, what in REFUSED if sign(header)), None)
    if seen is None:
        found = next((family for family in FAMILIES if family.recognises(header)), None)
        if found:
            return found
    raise CheckpointError(f"This file seems to be {seen or 'no model of a known kind'}; "
                          "choose a checkpoint of Stable Diffusion 1, 2 or XL, or of the first latent diffusion models.")


def _begins(*prefixes: str) -> Callable[[Header], bool]:
    return lambda header: any(name.startswith(prefixes) for name in header)


def _holds(*parts: str) -> Callable[[Header], bool]:
    return lambda header: any(part in name for name in header for part in parts)


def _alone(*prefixes: str) -> Callable[[Header], bool]:
    """A file of nothing but this part: the prefix is there and no U-Net is."""
    return lambda header: _begins(*prefixes)(header) and not _begins(UNET)(header)


LORA = ("lora_unet_", "lora_te", ".lora_A.", ".lora_B.", "lora_up.", "lora_down.", "hada_w1_a", "lokr_w")
TRANSFORMER = ("joint_blocks.", "double_blocks.", "x_embedder.", "context_embedder.")
REFUSED: tuple[tuple[Callable[[Header], bool], str], ...] = (
    (lambda header: not header, "an empty file"),
    (_holds(*LORA), "a LoRA, which belongs into a prompt"),
    (_begins("control_model.", "zero_convs.", "input_hint_block.", "controlnet_"), "a ControlNet, which is no checkpoint"),
    (_begins("string_to_param", "emb_params", "clip_l", "clip_g"), "a textual inversion embedding, which belongs into a prompt"),
    (_begins("cond_stage_model.roberta."), "an AltDiffusion checkpoint, which cannot be used"),
    (_begins("cc_projection."), "a Stable Zero123 checkpoint, which cannot be used"),
    (_begins("cond_stage_model.channel_mapper."), "a model that paints label maps, which cannot be used"),
    (_holds(*TRANSFORMER), "a checkpoint of SD3, Flux or another diffusion transformer, which cannot be used"),
    (_holds("blocks.0.cross_attn.", "time_projection."), "a checkpoint of Wan or another video model, which cannot be used"),
    (_begins("down_blocks.", "unet.down_blocks."), "a U-Net alone in diffusers' names, without text encoder and VAE"),
    (_alone("input_blocks."), "a U-Net alone, without text encoder and VAE"),
    (_alone("decoder.", "encoder.conv_in", VAE, "vae."), "a VAE alone, which belongs under SD VAE"),
    (_alone("text_model.", "embeddings.", "cond_stage_model.", "conditioner."), "a text encoder alone"),
    (lambda header: _begins(UNET)(header) and not _begins("cond_stage_model.", "conditioner.")(header)
     and len(header.get(f"{UNET}middle_block.1.proj_in.weight", ())) == 2, "a U-Net of SD2 or SDXL without its text encoders"),
)
