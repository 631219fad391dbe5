"""Any model file to a safetensors file: pickles made safe, another precision, training's leftovers pruned; memory for a few tensors."""
from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from modules.checkpoints import read, sidecars, write
from modules.checkpoints.layout import SIZES, Contents, Slot, shadow_of
from modules.checkpoints.write import NO_TEXT, Place
from modules.core.errors import CheckpointError, RequestError, SaveError
from modules.core.progress import Progress

AT_ONCE = 64 << 20                                          # bytes of tensors in memory; one that is larger is alone
DTYPES: Mapping[str, torch.dtype] = MappingProxyType({
    "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
    "fp32": torch.float32, "fp16": torch.float16, "half": torch.float16, "bf16": torch.bfloat16, "float": torch.float32,
})
SHADOW, COUNTERS = "model_ema.", frozenset({"model_ema.decay", "model_ema.num_updates"})
MARKERS = ("v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")    # say how a model is sampled
KEPT_TABLES = frozenset({"alphas_cumprod", "scale_factor"})
TRAINING = (SHADOW, "optimizer", "lr_scheduler", "loss.")
RECOMPUTED = (".position_ids", ".attn_mask")
CONVOLVED = re.compile(r"(first_stage_model\.|vae\.)?(encoder|decoder)\..+\.attn_?\w*\.(\d+\.)?(q|k|v|proj_out)\.weight")
OLD_HASHES = ("sshs_model_hash", "sshs_legacy_hash", write.HASH)
Ema = Literal["keep", "drop", "only"]


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str], *, dtype: str | torch.dtype | None = None, prune: bool = False,
            ema: Ema = "keep", force: bool = False, progress: Progress | None = None) -> Path:
    """Write the model in `source` as a safetensors file.

    dtype: of the weights (float32, float16 or bfloat16); None = each as it is. Tables of the schedule, markers and single numbers keep
    theirs. prune: without EMA weights, what training left, and tables that follow from others. ema: keep the averaged weights beside the
    others, drop them, or put them in place of the others and keep only them. force: an existing target is replaced.
    Memory stays near 64 MiB, or near the largest tensor.
    Raises CheckpointError, SaveError (also for an existing target), DiskFullError, or Cancelled; no half file is left.
    """
    source, target = Path(source), Path(target)
    wanted = dtype_of(dtype)
    check_target(target, (source,), force)
    found = read.contents(source)
    if wanted is not None and any(name.endswith("scaled_fp8") for name in found.slots):
        raise CheckpointError(f"The weights of {source.name} are scaled 8-bit numbers, which cannot be turned into another type yet; "
                              "convert it without a type, or choose a 16-bit version.")
    origins = chosen(found.slots, source.name, prune=prune, ema=ema)
    places = {name: (_type(name, found.slots[origin], wanted), placed(name, found.slots[origin].shape)) for name, origin in origins.items()}
    places = in_order(places, lambda name: found.slots[origins[name]].storage.start)
    return write.stream(target, places, _tensors(source, found, origins, places, progress or Progress()),
                        texts(said_of(source, found)))


def dtype_of(name: str | torch.dtype | None) -> torch.dtype | None:
    """The type of this name. Raises RequestError."""
    if name is None or isinstance(name, torch.dtype):
        return name
    if name not in DTYPES:
        raise RequestError(f"“{name[:40]}” is no type for weights; choose float32, float16 or bfloat16.", field="dtype")
    return DTYPES[name]


def check_target(target: Path, sources: tuple[Path, ...], force: bool) -> None:
    """Raises SaveError for a target that is one of the sources, exists already, or has another ending than safetensors files have."""
    if target.suffix.lower() not in (".safetensors", ".sft"):
        raise SaveError(f"{target.name} does not end in .safetensors; choose such a name for the new file.")
    for source in sources:
        if target.exists() and source.exists() and target.samefile(source):
            raise SaveError(f"{target.name} is itself what is read; choose another name for the new file.")
    if target.is_dir() or (target.exists() and not force):
        raise SaveError(f"There is a {target.name} in {target.parent} already; choose another name, or allow it to be replaced.")


def chosen(slots: Mapping[str, Slot], file: str, *, prune: bool, ema: Ema) -> dict[str, str]:
    """Name in the new file -> name in the old one, for all that is taken over. Raises CheckpointError where EMA weights are missing."""
    if ema not in ("keep", "drop", "only"):
        raise RequestError(f"“{ema}” cannot be done with EMA weights; choose keep, drop or only.", field="ema")
    kept = [name for name in slots if not name.startswith(SHADOW) or (ema == "keep" and not prune)]
    if prune:
        tables = read.SCHEDULE - (KEPT_TABLES if "alphas_cumprod" in slots else KEPT_TABLES | {"betas"})
        kept = [name for name in kept if name not in tables and not name.startswith(TRAINING) and not name.endswith(RECOMPUTED)]
    origins = {name: name for name in kept}
    return origins | _shadows(slots, kept, file) if ema == "only" else origins


def _shadows(slots: Mapping[str, Slot], kept: list[str], file: str) -> dict[str, str]:
    """Name of a weight -> name of its average."""
    found = {name: shadow_of(name) for name in kept if shadow_of(name) in slots}
    if not found:
        raise CheckpointError(f"{file} holds no EMA weights; convert it without asking for them.")
    if len(set(found.values())) < len(found):
        raise CheckpointError(f"Two weights of {file} share the name of one average, so its EMA weights cannot be told apart.")
    odd = next((name for name, average in found.items() if slots[name].shape != slots[average].shape), None)
    if odd:
        raise CheckpointError(f"The average of {odd[:100]} in {file} has another shape than the weight itself; the file is damaged.")
    lost = next((name for name in slots if name.startswith(SHADOW) and name not in COUNTERS and name not in set(found.values())), None)
    if lost:
        raise CheckpointError(f"{file} holds the average {lost[:100]}, but not the weight that it belongs to; the file is incomplete.")
    return found


def keeps_type(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is no weight of a layer: a table of a schedule, a marker, a single number, a count."""
    last = name.rsplit(".", 1)[-1]
    return not shape or last in read.SCHEDULE or name in MARKERS or name.endswith(RECOMPUTED) or name == "denoiser.sigmas"


def placed(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that single files have: diffusers' VAEs have linear layers where those have 1x1 convolutions."""
    return (*shape, 1, 1) if len(shape) == 2 and CONVOLVED.fullmatch(name) else shape


def _type(name: str, slot: Slot, wanted: torch.dtype | None) -> torch.dtype:
    own: torch.dtype = getattr(torch, slot.dtype)
    return own if wanted is None or not own.is_floating_point or keeps_type(name, slot.shape) else wanted


def in_order(places: Mapping[str, Place], start: Callable[[str], int]) -> dict[str, Place]:
    """Wide values first, so that none begins at an odd place; among equals as they lie in the source, which is then read forwards."""
    return {name: places[name] for name in sorted(places, key=lambda name: (-places[name][0].itemsize, start(name)))}


def pieces(sizes: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
    """The names in their order, in runs of at most AT_ONCE bytes, a larger tensor by itself."""
    run: list[str] = []
    total = 0
    for name, size in sizes.items():
        if run and total + size > AT_ONCE:
            yield tuple(run)
            run, total = [], 0
        run.append(name)
        total += size
    if run:
        yield tuple(run)


def size_of(slot: Slot) -> int:
    """Bytes that a tensor takes in memory."""
    return slot.count * SIZES[slot.dtype]


def _tensors(source: Path, found: Contents, origins: Mapping[str, str], places: Mapping[str, Place],
             progress: Progress) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the new file, in the order of its places."""
    runs = tuple(pieces({name: size_of(found.slots[origins[name]]) for name in places}))
    started = progress.clock()
    for number, run in enumerate(runs):
        progress.check()
        progress.at(stage="converting", batches=1, step=number, steps=len(runs), started=started)
        types = {origins[name]: (name, places[name][0]) for name in run}

        def change(origin: str, tensor: Tensor, types: Mapping[str, tuple[str, torch.dtype]] = types) -> Tensor:
            return cast(tensor, types[origin][1], types[origin][0], source.name)

        values = read.weights(source, types.__contains__, change)
        for name in run:
            yield name, values.pop(origins[name]).reshape(places[name][1])
    progress.at(batch=1, step=len(runs))


def cast(tensor: Tensor, dtype: torch.dtype, name: str, file: str) -> Tensor:
    """The tensor in this type. Raises CheckpointError where a value does not fit into it."""
    if tensor.dtype == dtype:
        return tensor
    made = tensor.to(dtype)
    narrower = dtype.is_floating_point and dtype.itemsize < tensor.dtype.itemsize
    if narrower and not bool((made.float() if dtype.itemsize == 1 else made).isfinite().all()):
        raise CheckpointError(f"{name[:100]} in {file} holds values that {str(dtype).removeprefix('torch.')} cannot; "
                              "choose bfloat16 or float32.")
    return made


def said_of(path: Path, found: Contents) -> dict[str, str]:
    """What is said about a model: in NAME.json before its metadata, and there before NAME.yaml, as loading has it. A file of another name
    takes all of it along."""
    return sidecars.yaml_hints(path) | dict(found.metadata) | sidecars.json_hints(path)


def texts(metadata: Mapping[str, str] = NO_TEXT) -> dict[str, str]:
    """A file's metadata for a file with other bytes: hashes of the old ones left out, room made for the new one's."""
    return {"format": "pt", **{name: text for name, text in metadata.items() if name not in OLD_HASHES}, write.HASH: ""}
