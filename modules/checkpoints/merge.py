"""One model of several: weighted sum, add difference, weights by block, another VAE baked in. Computed in float32, tensor by tensor."""
from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from modules.checkpoints import read, write
from modules.checkpoints.blocks import block_of, block_weights
from modules.checkpoints.convert import (
    MARKERS,
    TRAINING,
    cast,
    check_target,
    dtype_of,
    in_order,
    keeps_type,
    pieces,
    placed,
    said_of,
    size_of,
    texts,
)
from modules.checkpoints.layout import Contents, Slot
from modules.checkpoints.write import Place
from modules.core.errors import CheckpointError, RequestError
from modules.core.hashing import legacy_hash
from modules.core.progress import Progress
from modules.families.autoencoders import vae_part
from modules.families.keys import UNET, VAE, plain_names, reshaped

FIRST = f"{UNET}input_blocks.0.0.weight"
VAES = (VAE, "vae.")                                        # under which of these a checkpoint keeps its VAE
PARTS: Mapping[str, str] = MappingProxyType({
    UNET: "U-Net", **dict.fromkeys(VAES, "VAE"), **dict.fromkeys(("cond_stage_model.", "conditioner."), "text encoder"),
})
INPUTS = re.compile(re.escape(UNET) + r"input_blocks\.(\d+)\.")
OPTIONAL = re.compile(r"cond_stage_model\.(.+\.)?text_projection(\.weight)?|.*logit_scale|.*\.position_ids|.*\.attn_mask")
PREDICTION = "modelspec.prediction_type"
RECIPE, MODELS = "sd_merge_recipe", "sd_merge_models"       # A1111's names for how a file came about, and from what
ORDINALS = ("primary", "secondary", "tertiary")


@dataclass(frozen=True)
class Method:
    """One way to merge. name: A1111's. models: how many it takes. of(a, b, c, m) -> tensor, all float32."""

    name: str
    models: int
    of: Callable[[Tensor, Tensor, Tensor, float], Tensor]


METHODS: Mapping[str, Method] = MappingProxyType({
    "weighted_sum": Method("Weighted sum", 2, lambda a, b, _, m: a * (1 - m) + b * m),
    "add_difference": Method("Add difference", 3, lambda a, b, c, m: a + (b - c) * m),
    "no_interpolation": Method("No interpolation", 1, lambda a, _, __, ___: a),
})


@dataclass(frozen=True)
class Merged:
    """The new file, and sentences about what the models did not have in common."""

    path: Path
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model that takes part. origins: plain name -> name in the file, without training's leftovers."""

    path: Path
    contents: Contents
    origins: Mapping[str, str]

    @property
    def said(self) -> Mapping[str, str]:
        """What its metadata and the files beside it say."""
        return said_of(self.path, self.contents)

    def slot(self, name: str) -> Slot:
        return self.contents.slots[self.origins[name]]

    def has(self, part: str) -> bool:
        """Whether any tensor's name begins so."""
        return any(name.startswith(part) for name in self.origins)


def merge(models: Sequence[str | os.PathLike[str]], target: str | os.PathLike[str], sha256: Callable[[Path], str], *,
          method: str = "weighted_sum", weight: float = 0.5, blocks: str = "", vae: str | os.PathLike[str] | None = None,
          dtype: str | torch.dtype | None = None, discard: str = "", force: bool = False, progress: Progress | None = None) -> Merged:
    """Write A * (1 - m) + B * m, or A + (B - C) * m, or A alone, as a safetensors file.

    models: A, B, C. sha256: gives the hash of one of them, for the recipe. weight: m. blocks: m for single blocks of the U-Net, see
    blocks.block_weights. vae: takes the place of A's. dtype: of the weights, None = as A has them. discard: a regular
    expression; tensors in whose names it is found are left out.
    Tables, markers and single numbers are A's; averages and what else training left are left out. The recipe stands in the metadata.
    A may be an inpainting or instruct-pix2pix model whose first convolution reads more channels: those stay A's.
    Raises RequestError, CheckpointError naming the first tensor that does not fit, SaveError, or Cancelled; no half file is left.
    """
    target, way = Path(target), _method(method, models)
    if not math.isfinite(weight):
        raise RequestError(f"A weight of {weight} cannot be used; give a number, usually from 0 to 1.", field="weight")
    unwanted, wanted = _pattern(discard), dtype_of(dtype)
    check_target(target, tuple(Path(path) for path in (*models, *([vae] if vae else []))), force)
    sources = tuple(_source(Path(path)) for path in models)
    baked = _vae(Path(vae), sources[0]) if vae else None
    mixed, notes = _shared(sources, baked is not None)
    shares = block_weights(blocks, weight, len({found[1] for found in map(INPUTS.match, sources[0].origins) if found}))
    owner = {name: sources[0] for name in sources[0].origins if not (baked and name.startswith(VAES))}
    owner |= dict.fromkeys(baked.origins, baked) if baked else {}
    places = {name: _place(name, source.slot(name), wanted) for name, source in owner.items() if not (unwanted and unwanted.search(name))}
    if not places:
        raise RequestError(f"The expression {discard[:60]!r} discards every tensor; choose a narrower one.", field="discard")
    places = in_order(places, lambda name: owner[name].slot(name).storage.start)
    plan = _Plan(sources=sources, owner=owner, mixed=mixed, shares=shares, way=way)
    said = _said(sources, sha256, way, weight, blocks, wanted, vae, discard, target)
    return Merged(write.stream(target, places, plan.tensors(places, progress or Progress()), said), notes)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """owner: whose tensor each is where nothing is mixed. mixed: names that are computed. shares: m by block."""

    sources: tuple[Source, ...]
    owner: Mapping[str, Source]
    mixed: frozenset[str]
    shares: Mapping[str, float]
    way: Method

    def tensors(self, places: Mapping[str, Place], progress: Progress) -> Iterator[tuple[str, Tensor]]:
        """The tensors of the new file, in the order of its places."""
        runs = tuple(pieces({name: size_of(self.owner[name].slot(name)) * len(self.sources) for name in places}))
        started = progress.clock()
        for number, run in enumerate(runs):
            progress.check()
            progress.at(stage="merging", batches=1, step=number, steps=len(runs), started=started)
            own = self._own(run)
            others = [_values(source, [name for name in run if name in self.mixed]) for source in self.sources[1:]]
            for name in run:
                tensor = own.pop(name)
                if name in self.mixed:
                    tensor = self._mix(name, tensor, [other.pop(name) for other in others])
                dtype, shape = places[name]
                yield name, cast(tensor, dtype, name, self.owner[name].path.name).reshape(shape)
        progress.at(batch=1, step=len(runs))

    def _own(self, run: Sequence[str]) -> dict[str, Tensor]:
        """A's tensors and those of a baked VAE."""
        holders = {id(self.owner[name]): self.owner[name] for name in run}
        return {name: tensor for holder in holders.values()
                for name, tensor in _values(holder, [name for name in run if self.owner[name] is holder]).items()}

    def _mix(self, name: str, a: Tensor, others: Sequence[Tensor]) -> Tensor:
        """In float32. Of a first convolution that reads more channels than the others' only the shared ones are computed."""
        shape = tuple(a.shape)
        b, c = (reshaped(other, shape if name != FIRST else tuple(other.shape)).float() for other in (*others, others[0])[:2])
        share = self.shares[block_of(name, self.shares)]
        if b.shape == a.shape:
            return self.way.of(a.float(), b, c, share)
        made = a.float().clone()
        made[:, :b.shape[1]] = self.way.of(made[:, :b.shape[1]].clone(), b, c, share)
        return made


def _method(name: str, models: Sequence[object]) -> Method:
    way = METHODS.get(name.strip().lower().replace(" ", "_").replace("-", "_"))
    if way is None:
        raise RequestError(f"“{name[:40]}” is no way to merge; choose {', '.join(METHODS)}.", field="method")
    if len(models) != way.models:
        raise RequestError(f"{way.name} takes {way.models} model{'s' if way.models > 1 else ''}, not {len(models)}.", field="models")
    return way


def _pattern(text: str) -> re.Pattern[str] | None:
    try:
        return re.compile(text) if text else None
    except (re.error, RecursionError, OverflowError) as error:
        raise RequestError(f"{text[:60]!r} is no regular expression ({error}); mend it.", field="discard") from error


def _source(path: Path) -> Source:
    found = read.contents(path)
    if any(name.endswith("scaled_fp8") for name in found.slots):
        raise CheckpointError(f"The weights of {path.name} are scaled 8-bit numbers, which cannot be merged; choose a 16-bit version.")
    origins = plain_names({name: name for name in found.slots if not name.startswith(TRAINING)})
    if not any(name.startswith(UNET) for name in origins):
        raise CheckpointError(f"{path.name} holds no U-Net, so it is no checkpoint that could be merged.")
    return Source(path=path, contents=found, origins=origins)


def _vae(path: Path, first: Source) -> Source:
    """The VAE in a VAE's file or a checkpoint, under a checkpoint's names. Raises CheckpointError where its latents are not A's."""
    found = read.contents(path)
    origins = {VAE + plain: name for plain, name in vae_part({name: name for name in found.slots if not name.startswith(TRAINING)}).items()}
    source = Source(path=path, contents=found, origins=origins)
    latent = f"{VAE}decoder.conv_in.weight"
    if latent not in origins:
        raise CheckpointError(f"{path.name} holds no VAE; choose another file to bake in.")
    if latent in first.origins and first.slot(latent).shape[1] != source.slot(latent).shape[1]:
        raise CheckpointError(f"The latents of {path.name} have {source.slot(latent).shape[1]} channels and those of {first.path.name} "
                              f"{first.slot(latent).shape[1]}; choose a VAE made for this model.")
    return source


def _shared(sources: tuple[Source, ...], without_vae: bool) -> tuple[frozenset[str], tuple[str, ...]]:
    """The names that are computed, and what is said about the others. Raises CheckpointError for the first that does not fit."""
    first, *others = sources
    mixed = frozenset(_weights(first)) if others else frozenset()
    notes: list[str] = []
    for other in others:
        for part, word in PARTS.items():
            mine = {name for name in mixed if name.startswith(part)}
            theirs = {name for name in _weights(other) if name.startswith(part)}
            if without_vae and part in VAES:
                mixed -= mine
            elif mine and not theirs:
                mixed -= mine
                notes.append(f"{other.path.name} holds no {word}; {first.path.name}'s is used.")
            elif theirs and not first.has(part):
                notes.append(f"The {word} of {other.path.name} is left out, since {first.path.name} holds none.")
            else:
                mixed -= _fitting(first, other, mine, theirs)
        notes += _differences(first, other)
    if len({other.slot(FIRST).shape for other in others if FIRST in other.origins}) > 1:
        raise CheckpointError(f"{others[0].path.name} and {others[1].path.name} read different numbers of channels, so their difference is "
                              "none that could be added; choose two models of one kind.")
    return mixed, tuple(notes)


def _weights(source: Source) -> Iterator[str]:
    """Names of what is computed: layers' weights."""
    for name in source.origins:
        slot = source.slot(name)
        if getattr(torch, slot.dtype).is_floating_point and not keeps_type(name, slot.shape) and name.startswith(tuple(PARTS)):
            yield name


def _fitting(first: Source, other: Source, mine: set[str], theirs: set[str]) -> set[str]:
    """Names of A's that B lacks and need not have. Raises CheckpointError for one that does not fit."""
    odd = [name for name in sorted(mine ^ theirs) if not OPTIONAL.fullmatch(name)]
    if odd:
        has, lacks = (first, other) if odd[0] in mine else (other, first)
        raise CheckpointError(f"{lacks.path.name} lacks the tensor {odd[0][:100]} that {has.path.name} has; "
                              "only models of one kind can be merged.")
    for name in sorted(mine & theirs):
        a, b = first.slot(name).shape, other.slot(name).shape
        if _bare(a) == _bare(b) or (name == FIRST and _narrower(a, b)):
            continue
        if name == FIRST and _narrower(b, a):
            raise CheckpointError(f"{other.path.name} reads {b[1]} channels and {first.path.name} {a[1]}; an inpainting or pix2pix model "
                                  "must be the first of those that are merged.")
        raise CheckpointError(f"{name[:100]} has the shape {list(a)} in {first.path.name} and {list(b)} in {other.path.name}; "
                              "only models of one kind can be merged.")
    return mine - theirs


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A 1x1 convolution [C, D, 1, 1] as the linear layer [C, D] that it is."""
    return shape[:2] if set(shape[2:]) <= {1} else shape


def _narrower(wide: tuple[int, ...], narrow: tuple[int, ...]) -> bool:
    return len(wide) == len(narrow) == 4 and (wide[0], *wide[2:]) == (narrow[0], *narrow[2:]) and wide[1] > narrow[1] == 4


def _differences(first: Source, other: Source) -> Iterator[str]:
    """What makes two models predict different things."""
    one, two = ({name for name in MARKERS if name in source.origins} for source in (first, other))
    if one != two:
        odd = ", ".join(sorted(one ^ two))
        yield f"{first.path.name} and {other.path.name} are marked differently ({odd}); {first.path.name}'s marks are kept."
    said, theirs = (source.said.get(PREDICTION, "") for source in (first, other))
    if said and theirs and said != theirs:
        yield f"{first.path.name} says that it predicts {said[:20]}, {other.path.name} {theirs[:20]}; the result says {said[:20]}."


def _place(name: str, slot: Slot, wanted: torch.dtype | None) -> Place:
    own: torch.dtype = getattr(torch, slot.dtype)
    keeps = wanted is None or not own.is_floating_point or keeps_type(name, slot.shape)
    return own if keeps or wanted is None else wanted, placed(name, slot.shape)


def _values(source: Source, names: Sequence[str]) -> dict[str, Tensor]:
    """Tensors by plain name, as the file has them."""
    back = {source.origins[name]: name for name in names}
    return {back[origin]: tensor for origin, tensor in read.weights(source.path, back.__contains__).items()} if names else {}


def _said(sources: tuple[Source, ...], sha256: Callable[[Path], str], way: Method, weight: float, blocks: str, wanted: torch.dtype | None,
          vae: str | os.PathLike[str] | None, discard: str, target: Path) -> dict[str, str]:
    """A's metadata with the recipe, under the names by which A1111 keeps it."""
    digests = [sha256(source.path) for source in sources] + [""] * (len(ORDINALS) - len(sources))
    models: dict[str, object] = {}
    for source, digest in zip(sources, digests, strict=False):
        metadata = source.contents.metadata
        models[digest] = {"name": source.path.name, "legacy_hash": legacy_hash(source.path), RECIPE: _json(metadata.get(RECIPE))}
        older = _json(metadata.get(MODELS))
        models = {**older, **models} if isinstance(older, dict) else models
    channels = sources[0].slot(FIRST).shape[1] if FIRST in sources[0].origins else 4
    recipe = {
        "type": "easel", **{f"{ordinal}_model_hash": digest or None for ordinal, digest in zip(ORDINALS, digests, strict=True)},
        "interp_method": way.name, "multiplier": weight, "save_as_half": wanted is torch.float16, "custom_name": target.stem,
        "config_source": 0, "bake_in_vae": Path(vae).name if vae else "None", "discard_weights": discard,
        "is_inpainting": channels == 9, "is_instruct_pix2pix": channels == 8, **({"block_weights": blocks} if blocks else {}),
    }
    return {**texts(sources[0].said), "modelspec.merged_from": ", ".join(source.path.stem for source in sources),
            RECIPE: json.dumps(recipe), MODELS: json.dumps(models)}


def _json(text: str | None) -> object:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
