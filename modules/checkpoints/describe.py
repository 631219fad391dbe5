"""What a model file is, read from its header: family, prediction, sizes, parts, types, markers, hashes, and what of it was guessed."""
from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from modules.checkpoints import read
from modules.checkpoints.convert import KEPT_TABLES, MARKERS, SHADOW, TRAINING, said_of, size_of
from modules.checkpoints.layout import Contents, Slot
from modules.core.errors import CheckpointError
from modules.core.hashing import legacy_hash
from modules.families.autoencoders import autoencoder_from, vae_part
from modules.families.base import Header, Model
from modules.families.catalogue import family_of
from modules.families.keys import UNET, VAE, plain_names
from modules.families.sd2 import TELLING

SAYS = re.compile(r"(.+?) \((.+)\)")                        # "eps (guessed)": a value, and who says so
TOKENS = re.compile(r"(.*?)(embeddings\.token_embedding|token_embedding|token_emb)\.weight")
LAYER = re.compile(r"(?:layers|resblocks)\.(\d+)\.")
DOWN = re.compile(r"encoder\.down\.(\d+)\.")
WORDS = (("U-Net", (UNET,)), ("text encoder", ("cond_stage_model.", "conditioner.")), ("VAE", (VAE, "vae.")), ("averages (EMA)", (SHADOW,)))
SCALES = (".scale_weight", ".scale_input", "scaled_fp8")    # beside 8-bit weights
NOT_COUNTED = (".position_ids", ".attn_mask")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a file. values: how many numbers; size: in bytes; dtypes: type -> how many of the numbers have it."""

    name: str
    values: int
    size: int
    dtypes: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Tower:
    """One text encoder. width: numbers a token gives."""

    prefix: str
    width: int
    layers: int


@dataclass(frozen=True, kw_only=True)
class Description:
    """Plain values, 0 and "" where the file does not tell.

    form: "safetensors", "pickle" or "folder". kind: "checkpoint", "VAE" or "other". fault: why it cannot be used as a checkpoint.
    prediction, prediction_by: "eps", "v" ..., and who says so: "metadata", "guessed" ... size: bytes. native_size: pixels.
    in_channels, latent_channels: of the U-Net; downscale: pixels a latent cell. context: numbers that the U-Net reads of each token.
    sha256, shorthash: "" when not asked for. legacy_hash: A1111's first one. guessed: sentences.
    """

    path: str
    name: str
    form: str
    size: int
    kind: str
    family: str = ""
    variant: str = ""
    fault: str = ""
    prediction: str = ""
    prediction_by: str = ""
    native_size: int = 0
    in_channels: int = 0
    latent_channels: int = 0
    downscale: int = 0
    latent_scale: str = ""
    context: int = 0
    towers: tuple[Tower, ...] = ()
    parts: tuple[Part, ...] = ()
    ema: bool = False
    markers: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    said: Mapping[str, str] = field(default_factory=dict)
    sha256: str = ""
    shorthash: str = ""
    legacy_hash: str = ""
    guessed: tuple[str, ...] = ()


def describe(path: str | os.PathLike[str], sha256: Callable[[Path], str] | None = None) -> Description:
    """All that the header tells; no value of a tensor is read, and the whole file only by `sha256`, if it is given.

    Raises CheckpointError for what is no model file at all.
    """
    path = Path(path)
    found = read.contents(path)
    shapes = plain_names(found.header)
    said = said_of(path, found)
    model, fault = _built(path, found, shapes, said)
    vae = model.vae if model else _vae(found, said)
    kind = "checkpoint" if any(name.startswith(UNET) for name in shapes) else "VAE" if vae is not None else "other"
    digest = sha256(path) if sha256 else ""
    prediction, by = _prediction(model)
    return Description(
        path=str(path), name=path.name, form=_form(path), size=found.stamp[0], kind=kind,
        family=model.family.name if model else "", variant=str(getattr(model, "variant", "") or ""), fault=fault,
        prediction=prediction, prediction_by=by, native_size=model.native_size if model else 0,
        in_channels=_edge(shapes, f"{UNET}input_blocks.0.0.weight", 1), latent_channels=_latent(shapes, vae),
        downscale=int(getattr(getattr(vae, "config", None), "downscale", 0)) or _downscale(shapes),
        latent_scale=str(model.latent.scale) if model else "", context=_context(shapes), towers=tuple(_towers(shapes)),
        parts=tuple(_parts(found.slots, kind)), ema=any(name.startswith(SHADOW) for name in found.slots),
        markers=tuple(name for name in (*MARKERS, *sorted(KEPT_TABLES)) if name in found.slots), metadata=dict(found.metadata), said=said,
        sha256=digest, shorthash=digest[:10], legacy_hash=legacy_hash(path) if path.is_file() else "", guessed=tuple(_guessed(model)),
    )


def _built(path: Path, found: Contents, shapes: Header, said: Mapping[str, str]) -> tuple[Model | None, str]:
    """The model without a value in it, or why there is none."""
    try:
        values = read.weights(path, TELLING.__eq__)         # the one whose values a guess is made from
        return family_of(shapes).build(_hollow(found.slots) | values, dict(said) | {"prediction": "Auto"}), ""
    except CheckpointError as error:
        return None, str(error)


def _vae(found: Contents, said: Mapping[str, str]) -> torch.nn.Module | None:
    """The VAE of a file that is no checkpoint which could be used."""
    hollow = vae_part(_hollow(found.slots))
    try:
        return autoencoder_from(hollow, said) if hollow else None
    except CheckpointError:
        return None                                         # sizes are then what single tensors tell


def _hollow(slots: Mapping[str, Slot]) -> dict[str, torch.Tensor]:
    """Tensors with shape and type but no memory; without the schedule, whose values would be looked at, and what training left."""
    return {name: torch.empty(slot.shape, dtype=getattr(torch, slot.dtype), device="meta") for name, slot in slots.items()
            if name not in read.SCHEDULE and not name.startswith(TRAINING) and not name.endswith(SCALES)}


def _form(path: Path) -> str:
    if path.is_dir():
        return "folder"
    with open(path, "rb") as file:
        return "safetensors" if file.read(9)[8:] == b"{" else "pickle"


def _prediction(model: Model | None) -> tuple[str, str]:
    """What the network predicts and who says so."""
    if model is None:
        return "", ""
    text = str(model.hints.get("prediction", ""))
    found = SAYS.fullmatch(text)
    return (found[1], found[2]) if found else (text, "")


def _guessed(model: Model | None) -> Iterator[str]:
    for name, said in (model.hints if model else {}).items():
        if str(said).endswith("(guessed)"):
            yield f"{name}: {str(said).removesuffix(' (guessed)')}"


def _edge(shapes: Header, name: str, axis: int) -> int:
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) > axis else 0


def _latent(shapes: Header, vae: object) -> int:
    """Channels of the latents that the U-Net gives, or else those of the VAE."""
    return _edge(shapes, f"{UNET}out.2.weight", 0) or int(getattr(getattr(vae, "config", None), "latent", 0))


def _downscale(shapes: Header) -> int:
    levels = {found[1] for found in map(DOWN.match, vae_part(shapes)) if found}
    return 2 ** (len(levels) - 1) if levels else 0


def _context(shapes: Header) -> int:
    keys = (name for name in shapes if name.startswith(UNET) and name.endswith("attn2.to_k.weight"))
    return _edge(shapes, next(keys, ""), 1)


def _towers(shapes: Header) -> Iterator[Tower]:
    for name, shape in shapes.items():
        found = TOKENS.fullmatch(name)
        if found and len(shape) == 2 and not name.startswith((SHADOW, UNET)):
            layers = {layer[1] for other in shapes if other.startswith(found[1]) for layer in LAYER.finditer(other[len(found[1]):])}
            yield Tower(prefix=found[1], width=shape[1], layers=len(layers) // 2 if found[2] == "token_emb" else len(layers))


def _parts(slots: Mapping[str, Slot], kind: str) -> Iterator[Part]:
    """Parts that the file has, the rest last."""
    of: dict[str, list[Slot]] = {}
    for name, slot in slots.items():
        word = next((word for word, prefixes in WORDS if name.startswith(prefixes)), "")
        if not word:
            word = "VAE" if kind == "VAE" else "other"
        of.setdefault("other" if name.endswith(NOT_COUNTED) or name in read.SCHEDULE else word, []).append(slot)
    for word in (*(word for word, _ in WORDS), "other"):
        if word in of:
            yield Part(name=word, values=sum(slot.count for slot in of[word]), size=sum(map(size_of, of[word])), dtypes=_dtypes(of[word]))


def _dtypes(slots: Iterable[Slot]) -> dict[str, int]:
    """Type -> how many numbers have it, the commonest first."""
    counts: dict[str, int] = {}
    for slot in slots:
        counts[slot.dtype] = counts.get(slot.dtype, 0) + slot.count
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
