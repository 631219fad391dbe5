"""Sizes of networks, read from the shapes of their tensors. What shapes cannot tell (heads, groups) comes in as an argument."""
from __future__ import annotations

import itertools
from collections.abc import Mapping

from modules.core.errors import CheckpointError
from modules.families.base import Header, Weights
from modules.networks.bert import BertConfig
from modules.networks.clip import ClipConfig
from modules.networks.unet import Level, UNetConfig

HEAD_DIM_OF_CLIP = 64                                       # in every published CLIP text tower
WORD_PIECES = 30522                                         # ids of BERT's English vocabulary


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


def head_rule(shapes: Header, hints: Mapping[str, str]) -> dict[str, int]:
    """`heads` or `head_dim` of a U-Net: the one thing that no shape tells. The hints "easel.heads" and "easel.head_dim" come first.

    Else as published: 8 heads where proj_in is a convolution (LDM, SD1) or a noise level is told beside the text (x4 upscaler),
    64 channels a head where it is linear (SD2, SDXL); without a text 32 channels a head, but 8 heads for inpainting (twice the latent
    and a mask) and where the time scales and shifts.
    """
    if "easel.heads" in hints:
        return {"heads": number(hints, "easel.heads", 8)}
    if "easel.head_dim" in hints:
        return {"head_dim": number(hints, "easel.head_dim", 64)}
    if "middle_block.1.qkv.weight" in shapes:
        latent = size(shapes, "out.2.weight")
        masked = size(shapes, "input_blocks.0.0.weight", 1) == 2 * latent + 1
        return {"heads": 8} if masked or _scale_shift(shapes) else {"head_dim": 32}
    return {"head_dim": 64} if _linear(shapes) and "label_emb.weight" not in shapes else {"heads": 8}


def number(hints: Mapping[str, str], name: str, otherwise: int) -> int:
    """A whole positive number among the hints. Raises CheckpointError if what stands there is none."""
    text = str(hints.get(name, otherwise)).strip()
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) <= 4096):
        raise CheckpointError(f"The file's metadata says {name} = {text[:40]!r}; it must be a whole number from 1 to 4096.")
    return int(text)


def unet_config(shapes: Header, hints: Mapping[str, str], heads: Mapping[str, int] | None = None) -> UNetConfig:
    """Sizes of the U-Net with these tensors (names without prefix). Raises CheckpointError naming the tensor that is missing.

    heads: `heads` or `head_dim` as the family knows it, where the rule of shapes would be wrong; hints still come first.
    """
    groups = number(hints, "easel.norm_groups", 32)
    levels = _levels(shapes)
    check_groups([level.channels for level in levels], groups)
    told = "easel.heads" in hints or "easel.head_dim" in hints
    rule = heads if heads and not told else head_rule(shapes, hints)
    return UNetConfig(
        in_channels=size(shapes, "input_blocks.0.0.weight", 1),
        out_channels=size(shapes, "out.2.weight"),
        channels=size(shapes, "input_blocks.0.0.weight"),
        levels=levels,
        middle_depth=_middle_depth(shapes),
        context=_context(shapes),
        linear=_linear(shapes),
        label=size(shapes, "label_emb.0.0.weight", 1) if "label_emb.0.0.weight" in shapes else 0,
        classes=size(shapes, "label_emb.weight") if "label_emb.weight" in shapes else 0,
        groups=groups,
        scale_shift=_scale_shift(shapes),
        updown=len(levels) > 1 and not any(name.endswith(".0.op.weight") for name in shapes),
        **rule,
    )


def _levels(shapes: Header) -> tuple[Level, ...]:
    """The resolutions, finest first."""
    levels: list[Level] = []
    first, after = 1, count(shapes, "output_blocks.")       # the input block that begins a level, the output block behind its last one
    for blocks in _res_blocks(shapes):
        if not blocks:
            raise CheckpointError("The U-Net in this file has a resolution without a residual block; it is damaged or of an unknown kind.")
        inputs, outputs = range(first, first + blocks), range(after - blocks - 1, after)
        first, after = inputs[-1] + 2, outputs[0]
        width = size(shapes, f"input_blocks.{inputs[0]}.0.out_layers.3.weight")
        levels.append(Level(
            channels=width, down=tuple(_depth(shapes, f"input_blocks.{index}.1.") for index in inputs),
            up=tuple(_depth(shapes, f"output_blocks.{index}.1.") for index in outputs), text_only=_text_only(shapes, inputs, width)))
    return tuple(levels)


def _res_blocks(shapes: Header) -> list[int]:
    """Residual blocks of each resolution on the way down, the finest first.

    A convolution `op` ends a resolution there. Where residual blocks change it, only the way up tells: its last one stands second or third
    in its output block, and each resolution has one block more there.
    """
    inputs = range(1, count(shapes, "input_blocks."))
    ends = [index for index in inputs if f"input_blocks.{index}.0.op.weight" in shapes]
    if ends or not any(f"output_blocks.{index}.{k}.in_layers.0.weight" in shapes for index in inputs for k in (1, 2)):
        borders = [0, *ends, inputs.stop]
        return [after - before - 1 for before, after in itertools.pairwise(borders)]
    outputs = range(count(shapes, "output_blocks."))
    borders = [-1, *(index for index in outputs if any(f"output_blocks.{index}.{k}.in_layers.0.weight" in shapes for k in (1, 2))),
               *([outputs[-1]] if outputs else [])]
    return [after - before - 1 for before, after in itertools.pairwise(borders)][::-1]


def _depth(shapes: Header, prefix: str) -> int:
    """Transformer blocks, or 1 for an attention of cells to cells."""
    return 1 if f"{prefix}qkv.weight" in shapes else count(shapes, prefix + "transformer_blocks.")


def _middle_depth(shapes: Header) -> int:
    """As UNetConfig has it; distilled models have less in the middle."""
    if "middle_block.0.in_layers.0.weight" not in shapes:
        return -2
    depth = _depth(shapes, "middle_block.1.")
    return depth if depth or "middle_block.1.in_layers.0.weight" in shapes else -1


def _text_only(shapes: Header, blocks: range, width: int) -> bool:
    """Whether the first attention of these blocks reads the text as the second does; not to be told where both are equally wide."""
    for index in blocks:
        own, text = (shapes.get(f"input_blocks.{index}.1.transformer_blocks.0.{attention}.to_k.weight", (0, 0))[-1]
                     for attention in ("attn1", "attn2"))
        if own:
            return own == text != width
    return False


def _context(shapes: Header) -> int:
    """The width of a text token, 0 for a model without a text."""
    return next((shape[1] for name, shape in shapes.items() if name.endswith(".attn2.to_k.weight") and len(shape) == 2), 0)


def _linear(shapes: Header) -> bool:
    return next((len(shape) == 2 for name, shape in shapes.items() if name.endswith(".proj_in.weight")), False)


def _scale_shift(shapes: Header) -> bool:
    told, after = (shapes.get(f"input_blocks.1.0.{layer}.weight", (0,)) for layer in ("emb_layers.1", "out_layers.3"))
    return told[0] == 2 * after[0] > 0


def check_groups(channels: list[int], groups: int) -> None:
    """Raises CheckpointError if a layer cannot be normalised in so many groups."""
    for width in channels:
        if width % groups:
            raise CheckpointError(f"A layer of this file has {width} channels, which cannot be normalised in {groups} groups; "
                                  "its metadata must say easel.norm_groups.")


def clip_config(shapes: Header, *, open_clip: bool = False, layer: int = 0, final_norm: bool = True, pooled: bool = False) -> ClipConfig:
    """Sizes of the CLIP text tower with these tensors (HF's names from `text_model.` on). Raises CheckpointError naming what is missing.

    open_clip: of OpenCLIP's training (exact GELU, chunks filled with zeros), else of OpenAI's. layer, final_norm: what is read of it;
    pooled: whether its vector for the whole text is wanted.
    """
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
        activation="gelu" if open_clip else "quick_gelu",
        pad_id=0 if open_clip else 49407,
        layer=layer,
        final_norm=final_norm,
        projection=size(shapes, "text_projection.weight") if pooled else 0,
    )


def bert_config(shapes: Header) -> BertConfig:
    """Sizes of the first models' text encoder (names from `token_emb.` on). Raises CheckpointError naming what is missing.

    One of 30,522 ids reads words, any other boxes; heads are 64 wide where that divides, else there are 8.
    """
    inner = size(shapes, "attn_layers.layers.0.1.to_q.weight")
    vocabulary = size(shapes, "token_emb.weight")
    return BertConfig(
        width=size(shapes, "token_emb.weight", 1),
        layers=count(shapes, "attn_layers.layers.") // 2,
        inner=inner,
        vocabulary=vocabulary,
        positions=size(shapes, "pos_emb.emb.weight"),
        heads=inner // HEAD_DIM_OF_CLIP if inner % HEAD_DIM_OF_CLIP == 0 else 8 if inner % 8 == 0 else 1,
        reads="bert" if vocabulary == WORD_PIECES else "boxes",
    )
