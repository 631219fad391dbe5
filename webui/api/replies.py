"""The `info` text of a reply: what was drawn, under A1111's keys and in their order."""
from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from modules.engine import Job
from modules.pipeline import infotext, parameters
from modules.pipeline.request import Result


def timestamp(seconds: float) -> str:
    """Seconds since 1970 as YYYYMMDDhhmmss, local time."""
    return time.strftime("%Y%m%d%H%M%S", time.localtime(seconds))


def info(job: Job, result: Result, body: Mapping[str, Any]) -> dict[str, Any]:
    """For the JSON text in the reply. Seeds and names are those that were used."""
    request, pictures = job.request, result.pictures
    first = pictures[0] if pictures else None
    parsed = infotext.read(first.infotext if first else "")
    raw = parsed.raw
    return {
        "prompt": first.prompt if first else request.prompt,
        "all_prompts": [picture.prompt for picture in pictures],
        "negative_prompt": first.negative_prompt if first else request.negative_prompt,
        "all_negative_prompts": [picture.negative_prompt for picture in pictures],
        "seed": first.seed if first else request.seed,
        "all_seeds": [picture.seed for picture in pictures],
        "subseed": first.subseed if first else request.subseed,
        "all_subseeds": [picture.subseed for picture in pictures],
        "subseed_strength": parameters.plain_number(request.subseed_strength),
        "width": request.width,
        "height": request.height,
        "sampler_name": request.sampler,
        "cfg_scale": request.cfg_scale,
        "steps": request.steps,
        "batch_size": request.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": raw.get("Model"),
        "sd_model_hash": raw.get("Model hash"),
        "sd_vae_name": raw.get("VAE"),
        "sd_vae_hash": raw.get("VAE hash"),
        "seed_resize_from_w": request.seed_resize_from_w or -1,
        "seed_resize_from_h": request.seed_resize_from_h or -1,
        "denoising_strength": request.init.denoising_strength if request.init else body.get("denoising_strength"),
        "extra_generation_params": infotext.leftovers(parsed),
        "index_of_first_image": 0,
        "infotexts": [picture.infotext for picture in pictures],
        "styles": list(request.styles),
        "job_timestamp": timestamp(job.created),
        "clip_skip": request.clip_skip,
        "is_using_inpainting_conditioning": "Conditional mask weight" in raw,
        "version": infotext.VERSION,
    }
