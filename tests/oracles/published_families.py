"""The networks of every Stable Diffusion family in other people's code, with the same weights.

UNETS gives the published sizes of each U-Net, in the words of tests/tiny.unet_shapes, with its heads as the configurations have them
(Rombach et al. 2022, arXiv:2112.10752, tables 12 to 15; Podell et al. 2023, arXiv:2307.01952, table 1; Gupta et al. 2024,
arXiv:2401.02677; Lee et al. 2023, arXiv:2312.04005). SMALL gives what a miniature changes of them.
`unet` makes diffusers' network of either; towers come from open_clip, transformers and diffusers.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests import tiny
from tests.oracles import published
from tests.oracles.published import loaded, open_oracles

PREFIX = "model.diffusion_model."
Sizes = Mapping[str, Any]

_SD = {"width": 320, "mult": (1, 2, 4, 4)}
_SD1 = {**_SD, "context": 768, "heads": 8}
_SD2 = {**_SD, "context": 1024, "linear": True, "head_dim": 64}
_SDXL = {"width": 320, "mult": (1, 2, 4), "depths": (0, 2, 10), "middle_depth": 10, "context": 2048, "linear": True, "label": 2816,
         "told": 256, "head_dim": 64}
_CELLS = {"context": 0, "depths": (0, 1, 1, 1), "mult": (1, 2, 3, 4), "in_channels": 3, "out_channels": 3}
_LDM = {"in_channels": 3, "out_channels": 3, "depths": (0, 1, 1, 1)}

# told: numbers for each size in the vector of SDXL; heads or head_dim: the published number or width of heads.
UNETS: Mapping[str, Sizes] = MappingProxyType({
    "SD1": _SD1, "SD1 inpainting": {**_SD1, "in_channels": 9}, "SD1 edit": {**_SD1, "in_channels": 8},
    "SD2": _SD2, "SD2 inpainting": {**_SD2, "in_channels": 9}, "SD2 depth": {**_SD2, "in_channels": 5}, "SD-Turbo": _SD2,
    "SD2 unCLIP L": {**_SD2, "label": 1536}, "SD2 unCLIP H": {**_SD2, "label": 2048},
    "SD2 x4 upscaler": {"width": 256, "mult": (1, 2, 2, 4), "depths": (0, 1, 1, 1), "context": 1024, "linear": True, "in_channels": 7,
                        "classes": 1000, "text_only": (True, True, True, False), "heads": 8},
    "SDXL": _SDXL, "SDXL inpainting": {**_SDXL, "in_channels": 9}, "SDXL edit": {**_SDXL, "in_channels": 8},
    "SDXL refiner": {**_SDXL, "width": 384, "mult": (1, 2, 4, 4), "depths": (0, 4, 4, 0), "middle_depth": 4, "context": 1280,
                     "label": 2560},
    "SSD-1B": {**_SDXL, "depths": (0, 2, 4), "middle_depth": -1, "up_depths": ((0, 0, 0), (2, 1, 1), (4, 4, 10))},
    "Vega": {**_SDXL, "depths": (0, 1, 2), "middle_depth": -1},
    "KOALA-700M": {**_SDXL, "depths": (0, 2, 5), "middle_depth": -2, "res_blocks": 1},
    "KOALA-1B": {**_SDXL, "depths": (0, 2, 6), "middle_depth": 6, "res_blocks": 1},
    "LDM text2img-large": {**_SD, "context": 1280, "heads": 8},
    "LDM text2img256": {**_LDM, "width": 192, "mult": (1, 2, 3, 5), "context": 640, "head_dim": 32},
    "LDM layout2img": {**_LDM, "width": 128, "mult": (1, 2, 3, 4), "depths": (0, 3, 3, 3), "middle_depth": 3, "context": 512,
                       "head_dim": 32},
    "LDM cin256-v2": {**_LDM, "width": 192, "mult": (1, 2, 3, 5), "context": 512, "heads": 1},
    "LDM cin256": {"width": 256, "mult": (1, 2, 4), "depths": (1, 1, 1), "context": 512, "head_dim": 32},
    "LDM faces": {**_CELLS, "width": 224, "head_dim": 32},
    "LDM churches": {**_CELLS, "width": 192, "mult": (1, 2, 2, 4, 4), "depths": (1, 1, 1, 1, 0), "in_channels": 4, "out_channels": 4,
                     "scale_shift": True, "updown": True, "heads": 8},
    "LDM bsr_sr": {**_CELLS, "width": 160, "mult": (1, 2, 2, 4), "depths": (0, 0, 0, 1), "in_channels": 6, "head_dim": 32},
    "LDM inpainting_big": {**_CELLS, "width": 256, "in_channels": 7, "updown": True, "heads": 8},
})

_LITTLE = {"width": 64, "mult": (1, 2, 2, 2), "context": 64}
_LITTLE_XL = {"width": 32, "mult": (1, 2, 4), "context": 192, "label": 96 + 6 * 16, "told": 16}
_LITTLE_LDM = {"width": 32, "context": 64}
SMALL: Mapping[str, Sizes] = MappingProxyType({
    **{name: {**_LITTLE, "width": 32} for name in ("SD1", "SD1 inpainting", "SD1 edit", "LDM text2img-large")},
    **dict.fromkeys(("SD2", "SD2 inpainting", "SD2 depth", "SD-Turbo"), _LITTLE),
    "SD2 unCLIP L": {**_LITTLE, "label": 96}, "SD2 unCLIP H": {**_LITTLE, "label": 128},
    "SD2 x4 upscaler": {"width": 32, "context": 48},
    "SDXL": {**_LITTLE_XL, "depths": (0, 1, 3), "middle_depth": 3},
    **{name: {**_LITTLE_XL, "depths": (0, 1, 2), "middle_depth": 2} for name in ("SDXL inpainting", "SDXL edit")},
    "SDXL refiner": {"width": 64, "mult": (1, 2, 2, 2), "depths": (0, 2, 2, 0), "middle_depth": 2, "context": 128,
                     "label": 96 + 5 * 16, "told": 16},
    "SSD-1B": {**_LITTLE_XL, "depths": (0, 2, 2), "up_depths": ((0, 0, 0), (2, 1, 1), (2, 2, 3))},
    "Vega": _LITTLE_XL, "KOALA-700M": {**_LITTLE_XL, "depths": (0, 1, 2)},
    "KOALA-1B": {**_LITTLE_XL, "depths": (0, 1, 2), "middle_depth": 2},
    "LDM text2img256": _LITTLE_LDM, "LDM cin256-v2": _LITTLE_LDM, "LDM cin256": _LITTLE_LDM,
    "LDM layout2img": {**_LITTLE_LDM, "depths": (0, 2, 2, 2), "middle_depth": 2},
    "LDM faces": {"width": 32}, "LDM churches": {"width": 32, "mult": (1, 2, 2, 3, 3)}, "LDM bsr_sr": {"width": 32},
    "LDM inpainting_big": {"width": 32},
})


def sizes(name: str, small: bool = False) -> dict[str, Any]:
    """The sizes of one U-Net, as published or of its miniature."""
    return {**UNETS[name], **(SMALL[name] if small else {})}


def names_and_shapes(name: str, small: bool = False) -> tiny.Shapes:
    """Its tensors in the published names, without prefix."""
    return tiny.unet_shapes(**{key: value for key, value in sizes(name, small).items() if key not in ("heads", "head_dim", "told")})


def draw_unet(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the miniature, with prefix."""
    return {PREFIX + name_: tensor for name_, tensor in tiny.draw(names_and_shapes(name, small=True), seed).items()}


def heads(of: Sizes) -> tuple[int, ...]:
    """Heads of each level as published; one where a level of a miniature is too narrow for the width of a head."""
    widths = [of["width"] * factor for factor in of["mult"]]
    return tuple(of["heads"] if "heads" in of else max(1, width // of["head_dim"]) for width in widths)


def unet(weights: Mapping[str, Tensor], of: Sizes) -> nn.Module:
    """diffusers' network of these sizes with these weights (names with prefix), loaded strictly."""
    if of["context"]:
        return published.unet(weights, condition_settings(of))
    return loaded(lambda: empty_unet(of), cells_to_diffusers(weights, of))


def empty_unet(of: Sizes) -> nn.Module:
    """diffusers' network of these sizes; on the meta device under torch.device("meta")."""
    them = open_oracles().diffusers
    if of["context"]:
        made: nn.Module = them.UNet2DConditionModel(**condition_settings(of))
        return made
    made = them.UNet2DModel(**cells_settings(of))
    modules: Any = made.modules()
    for module in modules:
        if hasattr(module, "to_q") and "heads" in of:       # their configuration knows a width of heads only, one for all levels
            module.heads = of["heads"]
            module.scale = (module.to_q.weight.shape[0] // of["heads"]) ** -0.5
    return made


def condition_settings(of: Sizes) -> dict[str, Any]:
    """diffusers' configuration of a U-Net that reads a text; its `attention_head_dim` means heads."""
    mult, depths, middle = of["mult"], of.get("depths", (1, 1, 1, 0)), of.get("middle_depth", 1)
    told, label = of.get("told", 0), of.get("label", 0)
    up_depths = of.get("up_depths")
    return {
        "sample_size": 64, "in_channels": of.get("in_channels", 4), "out_channels": of.get("out_channels", 4),
        "block_out_channels": tuple(of["width"] * factor for factor in mult), "layers_per_block": of.get("res_blocks", 2),
        "cross_attention_dim": of["context"], "attention_head_dim": heads(of), "use_linear_projection": of.get("linear", False),
        "transformer_layers_per_block": [depth or max(1, middle) for depth in depths],
        "reverse_transformer_layers_per_block": [list(row) for row in reversed(up_depths)] if up_depths else None,
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths),
        "mid_block_type": {-1: "UNetMidBlock2D", -2: None}.get(middle, "UNetMidBlock2DCrossAttn"),
        "up_block_types": tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)),
        "only_cross_attention": of.get("text_only", False), "num_class_embeds": of.get("classes"),
        "class_embed_type": "projection" if label and not told else None,
        "addition_embed_type": "text_time" if told else None, "addition_time_embed_dim": told or None,
        "projection_class_embeddings_input_dim": label or None,
    }


def cells_settings(of: Sizes) -> dict[str, Any]:
    """diffusers' configuration of a U-Net without a text."""
    change = "resnet" if of.get("updown") else "conv"
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if of.get("updown") else ("DownBlock2D", "UpBlock2D")
    return {
        "sample_size": 64, "in_channels": of["in_channels"], "out_channels": of["out_channels"],
        "block_out_channels": tuple(of["width"] * factor for factor in of["mult"]), "layers_per_block": 2,
        "down_block_types": tuple("AttnDownBlock2D" if depth else plain[0] for depth in of["depths"]),
        "up_block_types": tuple("AttnUpBlock2D" if depth else plain[1] for depth in reversed(of["depths"])),
        "downsample_type": change, "upsample_type": change, "attention_head_dim": of.get("head_dim", of["width"]),
        "norm_eps": 1e-5, "attn_norm_num_groups": 32, "resnet_time_scale_shift": "scale_shift" if of.get("scale_shift") else "default",
    }


RESNET = MappingProxyType({"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
                           "out_layers.3": "conv2", "skip_connection": "conv_shortcut"})
ENDS = MappingProxyType({"input_blocks.0.0": "conv_in", "time_embed.0": "time_embedding.linear_1",
                         "time_embed.2": "time_embedding.linear_2", "out.0": "conv_norm_out", "out.2": "conv_out"})
LAYER = re.compile(r"(input|output|middle)_blocks?\.(?:(\d+)\.)?(\d)\.(.+)")


def cells_to_diffusers(weights: Mapping[str, Tensor], of: Sizes) -> dict[str, Tensor]:
    """The published names of a U-Net without a text -> those of diffusers' UNet2DModel. The layer qkv is cut into heads first, and each
    head's part into q, k and v, as it was trained."""
    found: dict[str, Tensor] = {}
    for whole, tensor in weights.items():
        if not whole.startswith(PREFIX):
            continue
        name, kind = whole.removeprefix(PREFIX).rsplit(".", 1)
        place = ENDS.get(name) or _cells_place(name, weights)
        if not place.endswith(".qkv"):
            found[f"{place}.{kind}"] = tensor.flatten(1) if tensor.dim() == 3 else tensor
            continue
        channels = len(tensor) // 3
        many = of["heads"] if "heads" in of else channels // of["head_dim"]
        rows = tensor.reshape(many, 3, channels // many, -1)
        for index, part in enumerate(("to_q", "to_k", "to_v")):
            found[f"{place.removesuffix('qkv')}{part}.{kind}"] = rows[:, index].reshape((channels, -1) if kind == "weight" else (channels,))
    return found


def _cells_place(name: str, weights: Mapping[str, Tensor]) -> str:
    found = LAYER.fullmatch(name)
    assert found, name
    way, block, child, rest = found[1], int(found[2] or 0), int(found[3]), found[4]
    inner = RESNET.get(rest) or {"norm": "group_norm", "proj_out": "to_out.0", "op": "conv"}.get(rest, rest)
    if way == "middle":
        return f"mid_block.attentions.0.{inner}" if child == 1 else f"mid_block.resnets.{child // 2}.{inner}"
    level, index = divmod(block - (way == "input"), 3)
    side = "down" if way == "input" else "up"
    if way == "input" and index == 2:
        return f"down_blocks.{level}.downsamplers.0.{inner}"
    cells = f"{PREFIX}{name.removesuffix('.' + rest)}.qkv.weight" in weights
    kind = "resnets" if child == 0 else "attentions" if cells else "upsamplers"
    return f"{side}_blocks.{level}.{kind}.{0 if kind == 'upsamplers' else index}.{inner}"


def open_clip_package() -> Any:
    """The package open_clip, imported."""
    open_oracles()                                          # declares torchvision's operators first
    import open_clip
    return open_clip


def open_clip_text(weights: Mapping[str, Tensor], prefix: str, *, width: int, layers: int, projection: int) -> nn.Module:
    """open_clip's own text transformer with the weights under this prefix (in its own names), heads 64 wide."""
    model = empty_open_clip_text(width=width, layers=layers, heads=max(1, width // 64), projection=projection)
    found = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    found.pop("logit_scale", None)
    model.load_state_dict(found, strict=True)
    return model.eval().requires_grad_(False)


def empty_open_clip_text(*, width: int, layers: int, heads: int, projection: int) -> nn.Module:
    open_clip = open_clip_package()
    made: nn.Module = open_clip.model._build_text_tower(projection, open_clip.CLIPTextCfg(width=width, heads=heads, layers=layers))
    return made


def open_clip_answers(model: nn.Module, ids: Tensor, normed: bool) -> tuple[Tensor, Tensor]:
    """The answer of its last layer but one, normed or not (B, T, width), and the vector for the whole text (B, P)."""
    got = model.forward_intermediates(ids, normalize_intermediates=normed, output_fmt="NLC")       # type: ignore[operator]
    return got["text_intermediates"][-2], got["text_features"]


def hf_text(weights: Mapping[str, Tensor], prefix: str, *, width: int, layers: int, heads: int, projection: int = 0) -> nn.Module:
    """transformers' CLIP text tower with the weights under this prefix in HF's names: with projection > 0 OpenCLIP's kind, exact GELU and
    a vector for the whole text; else OpenAI's."""
    them = open_oracles().transformers
    words = published.clip_settings(width=width, layers=layers, heads=heads, activation="gelu" if projection else "quick_gelu")
    kind = them.CLIPTextModelWithProjection if projection else them.CLIPTextModel
    model: nn.Module = kind(them.CLIPTextConfig(**words, **({"projection_dim": projection} if projection else {})))
    found = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    if not any(name.startswith("text_model.") for name in model.state_dict()):
        found = {name.removeprefix("text_model."): tensor for name, tensor in found.items()}
    model.load_state_dict(found, strict=True)
    return model.eval().requires_grad_(False)


BERT = MappingProxyType({"token_emb": "model.embed_tokens", "pos_emb.emb": "model.embed_positions", "norm": "model.layer_norm"})
BERT_LAYER = MappingProxyType({"1.to_q": "self_attn.q_proj", "1.to_k": "self_attn.k_proj", "1.to_v": "self_attn.v_proj",
                               "1.to_out": "self_attn.out_proj", "1.net.0.0": "fc1", "1.net.2": "fc2"})


def empty_bert(*, width: int = 1280, layers: int = 32, heads: int = 8, vocabulary: int = 30522, positions: int = 77) -> nn.Module:
    """diffusers' encoder of the first models; the defaults are text2img-large's."""
    open_oracles()
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
    made: nn.Module = LDMBertModel(LDMBertConfig(
        vocab_size=vocabulary, max_position_embeddings=positions, encoder_layers=layers, encoder_ffn_dim=4 * width,
        encoder_attention_heads=heads, head_dim=64, d_model=width, dropout=0.0))
    return made


def bert(weights: Mapping[str, Tensor], prefix: str, **of: int) -> nn.Module:
    """The same with the weights under this prefix in x-transformers' names; its unused head stays as it was drawn."""
    model = empty_bert(**of).eval().requires_grad_(False)
    found = {}
    for whole, tensor in weights.items():
        name, kind = whole.removeprefix(prefix).rsplit(".", 1)
        if not whole.startswith(prefix) or name == "to_logits":
            continue
        layer = re.fullmatch(r"attn_layers\.layers\.(\d+)\.(.+)", name)
        if layer:
            number, odd = divmod(int(layer[1]), 2)
            norm = "final_layer_norm" if odd else "self_attn_layer_norm"
            name = f"model.layers.{number}.{norm if layer[2] == '0' else BERT_LAYER[layer[2]]}"
        found[f"{BERT.get(name, name)}.{kind}"] = tensor
    head = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("to_logits.")}
    model.load_state_dict({**found, **head}, strict=True)
    return model


def size_numbers(network: nn.Module, pooled: int, *, height: int, width: int, crop: tuple[int, int],
                 score: float | None = None) -> Tensor:
    """The numbers (6,) or (5,) that diffusers' SDXL pipelines tell a U-Net of a picture; score: the refiner's."""
    pipelines = open_oracles().diffusers
    whole, size = SimpleNamespace(unet=network, config=SimpleNamespace(requires_aesthetics_score=score is not None)), (height, width)
    if score is None:
        numbers: Tensor = pipelines.StableDiffusionXLPipeline._get_add_time_ids(whole, size, crop, size, torch.float32, pooled)
    else:
        numbers = pipelines.StableDiffusionXLImg2ImgPipeline._get_add_time_ids(
            whole, size, crop, size, score, score, size, crop, size, torch.float32, pooled)[0]
    return numbers.flatten()


def told_vector(network: nn.Module, pooled: Tensor, numbers: Tensor, *call: Tensor) -> tuple[Tensor, Tensor]:
    """What diffusers' U-Net of SDXL makes of a text's vector and these numbers before its MLP, and its answer.
    call: x, timesteps, context."""
    seen: list[Tensor] = []
    first: Any = network.add_embedding
    hook = first.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    answer = network(*call, added_cond_kwargs={"text_embeds": pooled, "time_ids": numbers}).sample
    hook.remove()
    return seen[0], answer
