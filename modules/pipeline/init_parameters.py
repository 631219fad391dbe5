"""The table of what a picture to begin from can be told: the fields of InitImage but for the pictures themselves.

The other half of pipeline/parameters.py, which checks both. Rows of the section "mask" mean something only where there is a mask.
"""
from __future__ import annotations

from typing import Any

from modules.pipeline.parameter import Kind, Parameter

RESIZE_MODES = ("Just resize", "Crop and resize", "Resize and fill", "Just resize (latent upscale)")
FILLS = ("fill", "original", "latent noise", "latent nothing")


def _row(field: str, label: str, kind: Kind, section: str, help: str, **more: Any) -> Parameter:
    return Parameter(field=field, label=label, kind=kind, section=section, help=help, **{"api_name": field, **more})


INIT: tuple[Parameter, ...] = (
    _row("denoising_strength", "Denoising strength", "float", "picture", "How much of the picture is drawn anew; 0 = hardly anything.",
         infotext="Denoising strength", minimum=0, maximum=1, shown=(0, 1), step=0.01),
    _row("img2img_fix_steps", "Walk all steps", "bool", "picture", "As many steps as asked for, whatever the denoising strength.",
         setting="img2img_fix_steps", api_name=""),
    _row("resize_mode", "Resize mode", "int", "picture", "0 stretches the picture to the size, 1 crops it, 2 draws its edges out, "
         "3 stretches the latent.", minimum=0, maximum=3, step=1),
    _row("initial_noise_multiplier", "Noise multiplier", "float", "picture", "Factor of the first noise.",
         infotext="Noise multiplier", minimum=0, maximum=4, shown=(0, 1.5), step=0.001, setting="initial_noise_multiplier"),
    _row("img2img_extra_noise", "Extra noise", "float", "picture", "Noise that is added beyond what the model expects.",
         infotext="Extra noise", minimum=0, maximum=4, shown=(0, 1), step=0.01, setting="img2img_extra_noise", api_name=""),
    _row("img2img_color_correction", "Color correction", "bool", "picture", "Gives the result the colours of the picture it began from.",
         setting="img2img_color_correction", api_name=""),
    _row("img2img_background_color", "Background colour", "str", "picture", "What stands behind transparent parts.",
         setting="img2img_background_color", api_name=""),
    _row("image_cfg_scale", "Image CFG scale", "float", "picture", "How close an editing model stays to the picture.",
         infotext="Image CFG scale", minimum=0, maximum=100, shown=(0, 3), step=0.05),
    _row("noise_level", "Upscaler noise level", "int", "picture", "Noise that the x4 upscaler adds to its picture.",
         infotext="Upscaler noise level", minimum=0, maximum=350, shown=(0, 350), step=1, api_name=""),
    _row("mask_blur_x", "Mask blur", "int", "mask", "Pixels over which the mask's edge is softened, along x.",
         infotext="Mask blur", minimum=0, maximum=256, shown=(0, 64), step=1),
    _row("mask_blur_y", "Mask blur along y", "int", "mask", "Pixels over which the mask's edge is softened, along y.",
         minimum=0, maximum=256, shown=(0, 64), step=1),
    _row("mask_round", "Round the mask", "bool", "mask", "Each latent cell is painted anew or kept, nothing between."),
    _row("inpainting_mask_invert", "Inpaint not masked", "bool", "mask", "What is not masked is painted anew.", infotext="Mask mode"),
    _row("inpainting_fill", "Masked content", "int", "mask", "What stands under the mask at first: 0 colours around it, 1 the picture, "
         "2 noise, 3 nothing.", infotext="Masked content", minimum=0, maximum=3, step=1, api_default=0),
    _row("inpaint_full_res", "Only masked", "bool", "mask", "Only the masked part is drawn, at the full size, and put back.",
         infotext="Inpaint area", api_default=True),
    _row("inpaint_full_res_padding", "Only masked padding, pixels", "int", "mask", "How much around the masked part is drawn with it.",
         infotext="Masked area padding", minimum=0, maximum=1024, shown=(0, 256), step=4, api_default=0),
    _row("soft_inpainting", "Soft inpainting", "bool", "mask", "A grey of the mask says how much a place may change.",
         infotext="Soft inpainting enabled"),
    _row("overlay_inpaint", "Paste back what is not masked", "bool", "mask", "What is not masked keeps its very pixels.",
         setting="overlay_inpaint", api_name=""),
    _row("inpainting_mask_weight", "Conditional mask weight", "float", "mask", "How much of the masked part inpainting models do not see.",
         infotext="Conditional mask weight", minimum=0, maximum=1, shown=(0, 1), step=0.01, setting="inpainting_mask_weight", api_name=""),
)


def size_like(picture: tuple[int, int], most: int) -> dict[str, int]:
    """Width and height in the shape of a picture, no more pixels than `most`, each a multiple of 8."""
    scale = min(1.0, (most / (picture[0] * picture[1])) ** 0.5)
    return {name: max(8, int(edge * scale) // 8 * 8) for name, edge in zip(("width", "height"), picture, strict=True)}
