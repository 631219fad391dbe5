"""diffusers' whole pipeline over one of our checkpoint files: `from_single_file` with a configuration that lies on this machine."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from modules.prompts.tokens import read_vocabulary, vocabulary_file
from tests.oracles.published import clip_settings, open_oracles, unet_settings, vae_settings

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "steps_offset": 1}


def write_config(folder: Path, *, width: int = 320, context: int = 768, layers: int = 12, heads: int = 12, vae_width: int = 128,
                 mult: tuple[int, ...] = (1, 2, 4, 4)) -> Path:
    """The folder of json files that describes a Stable Diffusion 1 of these sizes (published ones by default). No weights."""
    def put(name: str, values: dict[str, Any]) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values), encoding="utf-8")

    put("model_index.json", {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.0", "requires_safety_checker": False,
        "safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    })
    put("unet/config.json", {"_class_name": "UNet2DConditionModel", **unet_settings(width=width, mult=mult, context=context)})
    put("vae/config.json", {"_class_name": "AutoencoderKL", "scaling_factor": 0.18215, **vae_settings(width=vae_width, mult=mult)})
    put("scheduler/scheduler_config.json", {"_class_name": "EulerDiscreteScheduler", **SCHEDULE})
    text = clip_settings(width=context, layers=layers, heads=heads)
    put("text_encoder/config.json", {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", **text})
    vocabulary, merges = read_vocabulary(vocabulary_file())
    put("tokenizer/vocab.json", vocabulary)
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges), encoding="utf-8")
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    put("tokenizer/special_tokens_map.json", marks)
    put("tokenizer/tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **marks})
    return folder


def pipeline(checkpoint: Path, config: Path) -> Any:
    """StableDiffusionPipeline in float32 from the single file, silent."""
    import torch

    pipe = open_oracles().diffusers.StableDiffusionPipeline.from_single_file(
        str(checkpoint), config=str(config), torch_dtype=torch.float32, local_files_only=True, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe
