"""Sizes of networks, read from the shapes of their tensors. What shapes cannot tell (heads, groups) comes in as an argument."""
from __future__ import annotations

from collections.abc import Mapping

from modules.core.errors import CheckpointError
from modules.families.base import Header, Weights
from modules.networks.clip import ClipConfig
from modules.networks.unet import Level, UNetConfig

HEAD_DIM_OF_CLIP = 64                                       # in every published CLIP text tower


def shapes_of(weights: Weights) -> dict[str, tuple[int, ...]]:
    """The header of weights that are in memory."""
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def size(shapes: Header, name: str, axis: int = 0) -> int:
    """One edge of one tensor. Raises CheckpointError if the tensor is missing or has no such edge."""
    if name not in shapes:
        raise CheckpointError(f"The file lacks the tensor {name}; it is damaged or incomplete.")
    if len(shapes[name]) <= axis:
        raise CheckpointError(f"The tensor {name} has the shape {list(shapes[name])}, which fits no network known here.")
    return shapes[name][axis]


def count(shapes: Header, prefix: str) -> int:
    """How many different children `prefix`0., `prefix`1., ... there are."""
    return len({name[len(prefix):].split(".", 1)[0] for name in shapes if name.startswith(prefix)})


def head_rule(hints: Mapping[str, str], *, linear: bool) -> dict[str, int]:
    """`heads` and `head_dim` of a U-Net with cross-attention.

    The hint "easel.heads" names the number of heads; without it 8 heads where proj_in is a convolution (LDM, SD1), 64 channels a head
    where it is linear (SD2, SDXL).
    """
    if "easel.heads" in hints:
        return {"heads": number(hints, "easel.heads", 8)}
    return {"head_dim": 64} if linear else {"heads": 8}


def number(hints: Mapping[str, str], name: str, otherwise: int) -> int:
    """A whole positive number among the hints. Raises CheckpointError if what stands there is none."""
    text = str(hints.get(name, otherwise)).strip()
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) <= 4096):
        raise CheckpointError(f"The file's metadata says {name} = {text[:40]!r}; it must be a whole number from 1 to 4096.")
    return int(text)


def unet_config(shapes: Header, hints: Mapping[str, str]) -> UNetConfig:
    """Sizes of the U-Net with these tensors (names without prefix). Raises CheckpointError naming the tensor that is missing."""
    levels: list[tuple[int, ...]] = []
    down: list[int] = []                                    # depths at the level that is being read
    channels: list[int] = []
    for index in range(1, count(shapes, "input_blocks.")):
        if f"input_blocks.{index}.0.op.weight" in shapes:
            levels.append(tuple(down))
            down = []
            continue
        width = size(shapes, f"input_blocks.{index}.0.out_layers.3.weight")
        if not down:
            channels.append(width)
        down.append(_depth(shapes, f"input_blocks.{index}.1."))
    levels.append(tuple(down))
    if not all(levels):
        raise CheckpointError("The U-Net in this file has a resolution without a residual block; it is damaged or of an unknown kind.")
    linear = len(shapes.get("middle_block.1.proj_in.weight", (0, 0, 1, 1))) == 2
    groups = number(hints, "easel.norm_groups", 32)
    check_groups(channels, groups)
    return UNetConfig(
        in_channels=size(shapes, "input_blocks.0.0.weight", 1),
        out_channels=size(shapes, "out.2.weight"),
        channels=size(shapes, "input_blocks.0.0.weight"),
        levels=_with_ups(shapes, channels, levels),
        middle_depth=_depth(shapes, "middle_block.1."),
        context=size(shapes, "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1),
        linear=linear,
        label=size(shapes, "label_emb.0.0.weight", 1) if "label_emb.0.0.weight" in shapes else 0,
        groups=groups,
        **head_rule(hints, linear=linear),
    )


def _depth(shapes: Header, prefix: str) -> int:
    return count(shapes, prefix + "transformer_blocks.")


def _with_ups(shapes: Header, channels: list[int], downs: list[tuple[int, ...]]) -> tuple[Level, ...]:
    """The levels, finest first, with the depths of their output blocks, which are counted from the coarsest."""
    levels: list[Level] = []
    index = 0
    for width, down in reversed(list(zip(channels, downs, strict=True))):
        up = tuple(_depth(shapes, f"output_blocks.{index + i}.1.") for i in range(len(down) + 1))
        index += len(up)
        levels.insert(0, Level(channels=width, down=down, up=up))
    return tuple(levels)


def check_groups(channels: list[int], groups: int) -> None:
    """Raises CheckpointError if a layer cannot be normalised in so many groups."""
    for width in channels:
        if width % groups:
            raise CheckpointError(f"A layer of this file has {width} channels, which cannot be normalised in {groups} groups; "
                                  "its metadata must say easel.norm_groups.")


def clip_config(shapes: Header, *, quick_gelu: bool = True, pad_id: int = 49407) -> ClipConfig:
    """Sizes of the CLIP text tower with these tensors (names from `text_model.` on). Raises CheckpointError naming what is missing."""
    tokens = "text_model.embeddings.token_embedding.weight"
    width = size(shapes, tokens, 1)
    heads = max(1, width // HEAD_DIM_OF_CLIP)
    return ClipConfig(
        width=width,
        layers=count(shapes, "text_model.encoder.layers."),
        inner=size(shapes, "text_model.encoder.layers.0.mlp.fc1.weight"),
        vocabulary=size(shapes, tokens),
        positions=size(shapes, "text_model.embeddings.position_embedding.weight"),
        heads=heads if width % heads == 0 else 1,
        activation="quick_gelu" if quick_gelu else "gelu",
        pad_id=pad_id,
    )
