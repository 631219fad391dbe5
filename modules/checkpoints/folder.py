"""A model as a folder in diffusers' layout: which files hold its weights, and what its small JSON files say about them. Loads no tensor.

    model_index.json  unet/  vae/  text_encoder/  text_encoder_2/  scheduler/ ...
"""
from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.core.errors import CheckpointError

INDEX = "model_index.json"
PARTS = ("unet", "vae", "vqvae", "text_encoder", "text_encoder_2", "bert", "image_encoder", "image_normalizer", "depth_estimator")
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
FORMS = tuple(f"{stem}{variant}" for variant in (".fp16", "") for stem in STEMS)
ENDINGS = (".safetensors", ".bin")                          # in the order in which they are preferred
LONGEST = 32 << 20                                          # bytes of a JSON file; the index of a large sharded model has 1 MiB
HEADS = 8                                                   # of the published U-Nets with convolutions around their attention
HEAD_DIM = 64                                               # channels a head of those with linear layers there


@dataclass(frozen=True, slots=True)
class Part:
    """One file of weights. part: the folder that it lies in, as PARTS names it; names: what an index of shards expects in it, or None."""

    part: str
    path: Path
    names: frozenset[str] | None = None


def holds_model(path: str | os.PathLike[str]) -> bool:
    """Whether a folder of this path is a model in diffusers' layout."""
    return os.path.isfile(os.path.join(path, INDEX))


def files(folder: Path) -> tuple[Part, ...]:
    """The files of weights, safetensors before pickles and half precision before full, in the order of PARTS.

    Raises CheckpointError for a model of another kind, for one without a U-Net, and for a shard that is missing.
    """
    index = _json(folder / INDEX)
    found = tuple(part for name in PARTS for part in _part(folder / name))
    if not any(part.part == "unet" for part in found):
        kind = str(index.get("_class_name", ""))[:60]
        if kind and "unet" not in index:
            raise CheckpointError(f"{folder.name} is a {ascii(kind)[1:-1]}, a kind of model that Easel cannot use.")
        raise CheckpointError(f"{folder.name} has no weights of a U-Net (unet/diffusion_pytorch_model.safetensors); download it again.")
    return found


def _part(folder: Path) -> tuple[Part, ...]:
    """The files of one part; none where it is not there."""
    for ending in ENDINGS:
        for form in FORMS:
            if os.path.isfile(folder / f"{form}{ending}"):
                return (Part(folder.name, folder / f"{form}{ending}"),)
            stem, _, variant = form.partition(".")
            for index in (f"{form}{ending}.index.json", f"{stem}{ending}.index.{variant}.json"):
                if os.path.isfile(folder / index):
                    return _shards(folder / index)
    return ()


def _shards(index: Path) -> tuple[Part, ...]:
    """The files that an index names, all of them in its own folder."""
    table = _json(index).get("weight_map")
    shown = f"{index.parent.name}/{index.name}"
    if not isinstance(table, dict) or not table or not all(isinstance(file, str) for file in table.values()):
        raise CheckpointError(f"{shown} names no files of weights; download it again.")
    expected: dict[str, set[str]] = {}
    for name, file in table.items():
        expected.setdefault(file, set()).add(name)
    for file in expected:
        if file != os.path.basename(file.replace("\\", "/")) or not file.endswith(ENDINGS):
            raise CheckpointError(f"{shown} names {ascii(file)[:80]}, which is no file of weights beside it.")
        if not os.path.isfile(index.parent / file):
            raise CheckpointError(f"{index.parent.name}/{file[:80]} is missing, which {index.name} names; the download is incomplete.")
    return tuple(Part(index.parent.name, index.parent / file, frozenset(names)) for file, names in sorted(expected.items()))


def every_file(folder: Path) -> tuple[Path, ...]:
    """What the model is made of, in the order of the files' names: weights, and the JSON files that are read. Raises as `files`."""
    small = [folder / INDEX, *(folder / place for place in ("scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"))]
    return tuple(sorted([part.path for part in files(folder)] + [path for path in small if os.path.isfile(path)],
                        key=lambda path: path.relative_to(folder).as_posix()))


def stamp(folder: Path) -> tuple[int, int]:
    """Size in bytes of all files together and their latest modification time in nanoseconds. Raises CheckpointError."""
    try:
        facts = [os.stat(path) for path in every_file(folder)]
    except OSError as error:
        raise CheckpointError(f"{folder.name} cannot be read ({error.strerror or error}).") from error
    return sum(fact.st_size for fact in facts), max(fact.st_mtime_ns for fact in facts)


def hints(folder: Path) -> dict[str, str]:
    """What the small files say beside the tensors, under the names that a single file's metadata have for it.

    "modelspec.prediction_type"; "easel.pipeline", the class that diffusers would load it with; "easel.zero_terminal_snr" = "true";
    "easel.beta_start", "easel.beta_end"; "easel.scale_factor"; "easel.latents_mean", "easel.latents_std" (numbers with spaces between);
    "easel.heads" or "easel.head_dim" where it is not what the published models have.
    """
    index, scheduler, unet, vae = (_json(folder / place, needed=False) for place in (
        INDEX, "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"))
    found = {"easel.pipeline": index.get("_class_name"), "modelspec.prediction_type": scheduler.get("prediction_type")}
    texts = {name: value for name, value in found.items() if isinstance(value, str) and value}
    if scheduler.get("rescale_betas_zero_snr") is True:
        texts["easel.zero_terminal_snr"] = "true"
    numbers = {"easel.beta_start": scheduler.get("beta_start"), "easel.beta_end": scheduler.get("beta_end"),
               "easel.scale_factor": vae.get("scaling_factor")}
    texts |= {name: str(value) for name, value in numbers.items() if _is_number(value)}
    for name in ("latents_mean", "latents_std"):
        values = vae.get(name)
        if isinstance(values, list) and values and all(map(_is_number, values)):
            texts[f"easel.{name}"] = " ".join(map(str, values))
    return texts | _heads(unet)


def _heads(unet: Mapping[str, Any]) -> dict[str, str]:
    """The hint of the U-Net's heads. Its configuration says "attention_head_dim" and means their number, an old misnomer.

    Raises CheckpointError where neither their number nor their width is the same at all levels.
    """
    channels = unet.get("block_out_channels")
    said = unet.get("num_attention_heads") or unet.get("attention_head_dim")
    if not isinstance(channels, list) or not said:
        return {}
    counts = said if isinstance(said, list) else [said] * len(channels)
    attended = [bool("Attn" in str(kind)) for kind in unet.get("down_block_types") or ()] or [True] * len(channels)
    if not all(type(value) is int and value > 0 for value in (*channels, *counts)) or not len(counts) == len(channels) == len(attended):
        raise CheckpointError("The file unet/config.json does not say how many attention heads there are; download it again.")
    levels = [(width, count) for width, count, kept in zip(channels, counts, attended, strict=True) if kept]
    widths = {width // count for width, count in levels}
    linear = unet.get("use_linear_projection") is True
    if widths <= {HEAD_DIM} if linear else {count for _, count in levels} <= {HEADS}:
        return {}
    if len({count for _, count in levels}) == 1:
        return {"easel.heads": str(levels[0][1])}
    if len(widths) == 1:
        return {"easel.head_dim": str(*widths)}
    raise CheckpointError("The file unet/config.json says another number and another width of attention heads at each level; "
                          "such a model cannot be used.")


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(float(value))      # type: ignore[arg-type]


def _json(path: Path, needed: bool = True) -> dict[str, Any]:
    """A small JSON file's table; {} for one that is not there and not needed. Raises CheckpointError."""
    shown = f"{path.parent.name}/{path.name}"
    if not needed and not os.path.lexists(path):
        return {}
    try:
        if not os.path.isfile(path) or path.stat().st_size > LONGEST:
            raise CheckpointError(f"{shown} is no small file of settings; download it again.")
        table = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{shown} cannot be read ({error.strerror or error}).") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{shown} is damaged: it is not JSON.") from error
    if not isinstance(table, dict):
        raise CheckpointError(f"{shown} is damaged: it is no table.")
    return table
