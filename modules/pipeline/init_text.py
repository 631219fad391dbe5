"""What the infotext says of a picture that was begun from: labels and values as A1111 has them, written and read."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modules.core.errors import WebUIError
from modules.pipeline import parameters
from modules.pipeline.init_parameters import FILLS, INIT
from modules.pipeline.request import InitImage

SAID = ("inpainting_mask_invert", "inpainting_fill", "inpaint_full_res")        # by words, see below


def pairs(init: InitImage) -> dict[str, Any]:
    """Label -> value behind `Denoising strength`; None = not written. What only some models look at is said by the picture's facts."""
    masked = bool(init.mask)
    return {
        "Mask mode": "Inpaint not masked" if masked and init.inpainting_mask_invert else None,
        "Mask blur": init.mask_blur_x if masked and init.mask_blur_x == init.mask_blur_y and init.mask_blur_x > 0 else None,
        "Inpaint area": "Only masked" if masked and init.inpaint_full_res else None,
        "Masked area padding": init.inpaint_full_res_padding if masked and init.inpaint_full_res else None,
        "Masked content": FILLS[init.inpainting_fill] if masked and init.inpainting_fill != 1 else None,
        "Soft inpainting enabled": True if masked and init.soft_inpainting else None,
        "Noise multiplier": init.initial_noise_multiplier if init.initial_noise_multiplier != 1 else None,
        "Extra noise": init.img2img_extra_noise or None,
        "Color correction": True if init.img2img_color_correction else None,
    }


def fields_of(fields: Mapping[str, str]) -> dict[str, Any]:
    """InitImage fields that the labels of a text give, each within its limits; {} for a text of a picture that began from noise."""
    if "Denoising strength" not in fields or any(label.startswith("Hires") for label in fields):
        return {}
    values: dict[str, Any] = {}
    for row in INIT:
        text = fields.get(row.infotext) if row.infotext and row.field not in SAID else None
        try:
            if text is not None:
                values[row.field] = parameters.coerce(row, text)
                parameters.check_value(row, values[row.field])
        except WebUIError:
            values.pop(row.field, None)
    if "mask_blur_x" in values:
        values["mask_blur_y"] = values["mask_blur_x"]
    values["inpainting_mask_invert"] = fields.get("Mask mode") == "Inpaint not masked"
    values["inpaint_full_res"] = fields.get("Inpaint area") == "Only masked"
    content = fields.get("Masked content", "original")
    values["inpainting_fill"] = FILLS.index(content) if content in FILLS else InitImage.inpainting_fill
    return values
