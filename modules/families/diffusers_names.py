"""Names of tensors between diffusers' layout and that of the published single files ("plain names").

Both sides describe the same networks, so a name is carried over by counting blocks; no size is assumed. Distilled models, whose blocks
differ in depth or which have no middle, need no rule of their own. A whole model in diffusers' layout has its parts' folders before
the names: `unet.`, `vae.`, `text_encoder.`, `text_encoder_2.`, and so on.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from modules.core.errors import CheckpointError
from modules.families.base import Header
from modules.families.keys import UNET, VAE, vae_part

HEAD = MappingProxyType({                                   # diffusers' modules outside of blocks, and their single-file names
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding.linear_1": "label_emb.0.0", "class_embedding.linear_2": "label_emb.0.2", "class_embedding": "label_emb",
    "conv_norm_out": "out.0", "conv_out": "out.2",
})
RESNET = MappingProxyType({
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
})
RESNET_BACK = MappingProxyType({ours: theirs for theirs, ours in RESNET.items()})
TRANSFORMER = ("norm.", "proj_in.", "transformer_blocks.", "proj_out.")
PLAIN_ATTENTION = ("group_norm.", "to_q.", "to_k.", "to_v.", "to_out.", "query.", "key.", "value.", "proj_attn.")
THEIR_MODULE = re.compile(r"((?:down_blocks|up_blocks)\.\d+\.(?:resnets|attentions|downsamplers|upsamplers)\.\d+"
                          r"|mid_block\.(?:resnets|attentions)\.\d+)\.(.+)")
OUR_MODULE = re.compile(r"((?:input_blocks|output_blocks)\.\d+\.\d+|middle_block\.\d+)\.(.+)")
OUR_UP = re.compile(r"output_blocks\.(\d+)\.(\d+)\.(\w+)\.")
ATTENTION = MappingProxyType({"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"})     # of a VAE
ATTENTION_BACK = MappingProxyType({theirs: ours for ours, theirs in ATTENTION.items()})
SINGLE = ("conv_in.weight", "down_blocks.0.resnets.0.norm1.weight")         # a file with a U-Net alone in diffusers' names
BARE_TEXT = ("embeddings.", "encoder.", "final_layer_norm.")                # a tower as transformers 5.6 and later write it
LEFT_OUT = ("safety_checker.", "feature_extractor.", "tokenizer")
BERT = MappingProxyType({
    "self_attn_layer_norm": "0.0", "self_attn.q_proj": "0.1.to_q", "self_attn.k_proj": "0.1.to_k", "self_attn.v_proj": "0.1.to_v",
    "self_attn.out_proj": "0.1.to_out", "final_layer_norm": "1.0", "fc1": "1.1.net.0.0", "fc2": "1.1.net.2",
})


@dataclass(frozen=True)
class Outline:
    """How many residual blocks a U-Net has: going down, at each level from the finest; going up, at each from the coarsest.

    after: for each level going up, the place of its upsampler in the last block, 2 behind an attention, else 1.
    """

    downs: tuple[int, ...]
    ups: tuple[int, ...]
    after: tuple[int, ...]

    def modules(self) -> Iterator[tuple[str, str]]:
        """(diffusers' name, single-file name) of every module that such a U-Net may have."""
        index = 1
        for level, blocks in enumerate(self.downs):
            for block in range(blocks):
                yield f"down_blocks.{level}.resnets.{block}", f"input_blocks.{index + block}.0"
                yield f"down_blocks.{level}.attentions.{block}", f"input_blocks.{index + block}.1"
            yield f"down_blocks.{level}.downsamplers.0", f"input_blocks.{index + blocks}.0"
            index += blocks + 1
        for place, theirs in enumerate(("resnets.0", "attentions.0", "resnets.1")):
            yield f"mid_block.{theirs}", f"middle_block.{place}"
        index = 0
        for level, (blocks, after) in enumerate(zip(self.ups, self.after, strict=True)):
            for block in range(blocks):
                yield f"up_blocks.{level}.resnets.{block}", f"output_blocks.{index + block}.0"
                yield f"up_blocks.{level}.attentions.{block}", f"output_blocks.{index + block}.1"
            index += blocks
            yield f"up_blocks.{level}.upsamplers.0", f"output_blocks.{index - 1}.{after}"


def unet_to_plain(names: Iterable[str]) -> dict[str, str]:
    """diffusers' name -> single-file name for all tensors of one U-Net, neither with a prefix.

    Raises CheckpointError naming the first tensor that has no place in a U-Net of latent diffusion.
    """
    names = tuple(names)
    modules = dict(_their_outline(names).modules())
    return {name: _unet_plain(name, modules) for name in names}


def unet_to_diffusers(names: Iterable[str]) -> dict[str, str]:
    """Single-file name -> diffusers' name for all tensors of one U-Net, neither with a prefix. Raises as `unet_to_plain`."""
    names = tuple(names)
    modules = {ours: theirs for theirs, ours in _our_outline(names).modules()}
    labels = "class_embedding" if any(name.startswith("input_blocks.1.1.") for name in names) else "add_embedding"   # unCLIP; else SDXL
    head = {ours: theirs for theirs, ours in HEAD.items() if ours[:11] != "label_emb.0" or theirs.startswith(labels)}
    return {name: _unet_diffusers(name, modules, head) for name in names}


def vae_to_plain(names: Iterable[str]) -> dict[str, str]:
    """diffusers' name -> single-file name for the tensors of one VAE, neither with a prefix; what is no part of a VAE is left out."""
    found = vae_part({name: name for name in names})
    levels = len({name.split(".")[2] for name in found if name.startswith("decoder.up")})
    return {theirs: _vae_attention(ours, levels) for ours, theirs in found.items()}


def vae_to_diffusers(names: Iterable[str]) -> dict[str, str]:
    """Single-file name -> diffusers' name for the tensors of one VAE, neither with a prefix. The mid attention's weights (C, C, 1, 1)
    are (C, C) there."""
    names = tuple(names)
    levels = len({name.split(".")[2] for name in names if name.startswith("decoder.up.")})
    return {name: _vae_diffusers(name, levels) for name in names}


def to_plain(header: Header) -> dict[str, str]:
    """Name -> plain name for the tensors of a file or folder in diffusers' layout; {} where the header is of another layout.

    header: names with their parts' prefixes, or those of a U-Net alone without one. Text towers keep their own names behind the prefix
    that their family's single files have. Tensors that no picture needs are left out. Raises as `unet_to_plain`.
    """
    if all(name in header for name in SINGLE) and not any(name.startswith("controlnet_") for name in header):
        return {name: UNET + ours for name, ours in unet_to_plain(header).items()}
    if "unet.conv_in.weight" not in header:
        return {}
    found: dict[str, str] = {}
    for part in dict.fromkeys(name.split(".", 1)[0] for name in header):
        own = [name[len(part) + 1:] for name in header if name.startswith(f"{part}.")]
        if not f"{part}.".startswith(LEFT_OUT):
            found |= {f"{part}.{name}": ours for name, ours in _part_plain(part, own, header).items()}
    return found


def to_diffusers(names: Iterable[str]) -> dict[str, str]:
    """Plain name -> diffusers' name with its part's prefix, for what can be carried over by its name alone: U-Net, VAE and text towers in
    the names of transformers. Towers in OpenCLIP's names, whose matrices are stacked, and buffers are left out. Raises as `unet_to_plain`.
    """
    names = tuple(names)
    found = {UNET + ours: f"unet.{theirs}" for ours, theirs in unet_to_diffusers(_behind(UNET, names)).items()}
    found |= {VAE + ours: f"vae.{theirs}" for ours, theirs in vae_to_diffusers(_behind(VAE, names)).items()}
    refiner = any(name.startswith(f"{UNET}label_emb.0.") for name in names)
    for prefix, part in (
        ("cond_stage_model.transformer.", "text_encoder."), ("cond_stage_model.model.", "text_encoder."),
        ("conditioner.embedders.0.transformer.", "text_encoder."), ("conditioner.embedders.1.model.", "text_encoder_2."),
        ("conditioner.embedders.0.model.", "text_encoder_2." if refiner else "text_encoder."),
    ):
        found |= {prefix + name: part + name for name in _behind(prefix, names) if name.startswith(("text_model.", "text_projection."))}
    return found


def _behind(prefix: str, names: Iterable[str]) -> list[str]:
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _part_plain(part: str, names: list[str], header: Header) -> dict[str, str]:
    if part == "unet":
        return {name: UNET + ours for name, ours in unet_to_plain(names).items()}
    if part in ("vae", "vqvae"):
        return {name: VAE + ours for name, ours in vae_to_plain(names).items()}
    if part in ("text_encoder", "text_encoder_2"):
        prefix = _tower_prefix(part, header)
        return {name: f"{prefix}{'text_model.' if name.startswith(BARE_TEXT) else ''}{name}" for name in names}
    if part == "bert":
        return {name: f"cond_stage_model.transformer.{_bert_plain(name)}" for name in names}
    if part == "image_normalizer":
        return {name: f"noise_augmentor.data_{name}" for name in names}
    other = {"image_encoder": "embedder.model.", "depth_estimator": "depth_model."}.get(part, f"{part}.")
    return {name: other + name for name in names}


def _tower_prefix(part: str, header: Header) -> str:
    """Where the family's single files have this tower. Linear projections around the attention tell SD2 from SD1."""
    second = any(name.startswith("text_encoder_2.") for name in header)
    if part == "text_encoder_2":
        return f"conditioner.embedders.{int(any(name.startswith('text_encoder.') for name in header))}.model."
    if second:
        return "conditioner.embedders.0.transformer."
    linear = any(name.startswith("unet.") and name.endswith("proj_in.weight") and len(shape) == 2 for name, shape in header.items())
    return "cond_stage_model.model." if linear else "cond_stage_model.transformer."


def _bert_plain(name: str) -> str:
    """LDM's BERT as diffusers names it (`model.layers.3.fc1.weight`) -> as x-transformers does."""
    name = name.removeprefix("model.")
    if match := re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", name):
        half, rest = BERT.get(match[2], f"0.{match[2]}").split(".", 1)
        return f"attn_layers.layers.{2 * int(match[1]) + int(half)}.{rest}.{match[3]}"
    for theirs, ours in (("embed_tokens.", "token_emb."), ("embed_positions.", "pos_emb.emb."), ("layer_norm.", "norm.")):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _their_outline(names: tuple[str, ...]) -> Outline:
    downs, ups = _counted(names, "down_blocks"), _counted(names, "up_blocks")
    last = [f"up_blocks.{level}.attentions.{blocks - 1}." for level, blocks in enumerate(ups)]
    return Outline(downs, ups, tuple(2 if any(name.startswith(block) for name in names) else 1 for block in last))


def _counted(names: tuple[str, ...], side: str) -> tuple[int, ...]:
    """Residual blocks of each level."""
    found = {(int(match[1]), int(match[2])) for match in map(re.compile(rf"{side}\.(\d+)\.resnets\.(\d+)\.").match, names) if match}
    return tuple(len({block for at, block in found if at == level}) for level in sorted({level for level, _ in found}))


def _our_outline(names: tuple[str, ...]) -> Outline:
    """The levels end where the output blocks have an upsampler; the input blocks have one residual block less at each."""
    places: dict[int, int] = {}                             # output block -> where in it the upsampler is
    last = -1
    for match in filter(None, map(OUR_UP.match, names)):
        last = max(last, int(match[1]))
        if match[2] != "0" and match[3] in ("conv", "in_layers"):
            places[int(match[1])] = int(match[2])
    ends = [*sorted(places), *([last] if last >= 0 and last not in places else [])]
    ups = tuple(end - start for start, end in zip([-1, *ends], ends, strict=False))
    return Outline(tuple(blocks - 1 for blocks in reversed(ups)), ups, tuple(places.get(end, 9) for end in ends))


def _unet_plain(name: str, modules: Mapping[str, str]) -> str:
    if match := THEIR_MODULE.fullmatch(name):
        module, rest = match[1], match[2]
        if ".attentions." in module:
            if not rest.startswith(TRANSFORMER):
                raise _placeless(name, rest.startswith(PLAIN_ATTENTION))
        elif rest.startswith("conv."):
            rest = rest if ".upsamplers." in module else f"op.{rest.removeprefix('conv.')}"
        else:
            layer, _, end = rest.partition(".")
            rest = f"{RESNET.get(layer, '?')}.{end}"
        if module in modules and rest[0] != "?":
            return f"{modules[module]}.{rest}"
    head, _, end = name.rpartition(".")
    if head not in HEAD:
        raise _placeless(name)
    return f"{HEAD[head]}.{end}"


def _unet_diffusers(name: str, modules: Mapping[str, str], head: Mapping[str, str]) -> str:
    if (match := OUR_MODULE.fullmatch(name)) and match[1] in modules:
        theirs, rest = modules[match[1]], match[2]
        if ".attentions." in theirs and not rest.startswith(TRANSFORMER):
            raise _placeless(name, rest.startswith("qkv."))
        layer, _, end = rest.rpartition(".")
        if ".downsamplers." in theirs and layer == "op":
            layer = "conv"
        return f"{theirs}.{RESNET_BACK.get(layer, layer)}.{end}"
    layer, _, end = name.rpartition(".")
    if layer not in head:
        raise _placeless(name)
    return f"{head[layer]}.{end}"


def _placeless(name: str, attention: bool = False) -> CheckpointError:
    shown = ascii(name)[1:-1][:100]
    if attention:
        return CheckpointError(f"The U-Net's tensor {shown} belongs to attention without text, whose diffusers form cannot be used; "
                               "take the model's original single file.")
    return CheckpointError(f"The tensor {shown} has no place in a U-Net of Stable Diffusion; the file is of another kind.")


def _vae_attention(name: str, levels: int) -> str:
    """Attention inside the levels, which the deeper first autoencoders have: where `keys.vae_part` leaves diffusers' names."""
    match = re.fullmatch(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.attentions\.(\d+)\.(.+)\.(weight|bias)", name)
    if not match:
        return name
    level = f"down.{match[2]}" if match[1] == "encoder" else f"up.{levels - 1 - int(match[2])}"
    part = ATTENTION_BACK.get(match[4], match[4])
    return f"{match[1]}.{level}.attn.{match[3]}.{part}.{match[5]}"


def _vae_diffusers(name: str, levels: int) -> str:
    name = re.sub(r"(down|up)\.(\d+)\.(block|downsample|upsample|attn)\b", lambda found: _vae_block(found, levels), name)
    name = re.sub(r"mid\.block_(\d)", lambda found: f"mid_block.resnets.{int(found[1]) - 1}", name)
    name = name.replace("mid.attn_1.", "mid_block.attentions.0.")
    name = re.sub(r"(attentions\.\d+\.)(\w+)(?=\.(weight|bias)$)", lambda found: found[1] + ATTENTION.get(found[2], found[2]), name)
    return name.replace("nin_shortcut", "conv_shortcut").replace("norm_out", "conv_norm_out")


def _vae_block(found: re.Match[str], levels: int) -> str:
    level = int(found[2]) if found[1] == "down" else levels - 1 - int(found[2])
    kind = {"block": "resnets", "downsample": "downsamplers.0", "upsample": "upsamplers.0", "attn": "attentions"}[found[3]]
    return f"{found[1]}_blocks.{level}.{kind}"
