"""Networks from the tensors of a file: sizes read, names and shapes compared, weights put in without a second copy."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import nn

from modules.core.errors import CheckpointError
from modules.families.base import Weights
from modules.families.keys import PROJECTION, TEXT, part, reshaped, text_part, unet_part
from modules.families.shapes import bert_config, clip_config, shapes_of, size, unet_config
from modules.networks.bert import BertText, ClassEmbedder
from modules.networks.clip import ClipText
from modules.networks.unet import UNet

Network = TypeVar("Network", bound=nn.Module)


def unet_from(weights: Weights, hints: Mapping[str, str], heads: Mapping[str, int] | None = None) -> UNet:
    """The U-Net under `model.diffusion_model.` of plain names; heads as shapes.unet_config takes them.

    Raises CheckpointError naming the first missing tensor.
    """
    found = unet_part(weights)
    config = unet_config(shapes_of(found), hints, heads)
    return fitted(lambda: UNet(config), found)


def tower_from(weights: Weights, prefix: str, *, open_clip: bool = False, layer: int = 0, final_norm: bool = True,
               pooled: bool = False) -> ClipText:
    """The CLIP tower under this prefix of plain names, in HF's or OpenCLIP's names; what is read of it as in shapes.clip_config.

    Raises CheckpointError naming the first missing tensor.
    """
    found = text_part(weights, prefix)
    if not pooled:
        found.pop(PROJECTION, None)
    config = clip_config(shapes_of(found), open_clip=open_clip, layer=layer, final_norm=final_norm, pooled=pooled)
    return fitted(lambda: ClipText(config), found)


def bert_from(weights: Weights) -> BertText:
    """The first models' text encoder. Raises CheckpointError naming the first missing tensor."""
    found = {name: tensor for name, tensor in part(weights, TEXT).items() if not name.startswith("to_logits.")}
    config = bert_config(shapes_of(found))
    return fitted(lambda: BertText(config), found)


def classes_from(weights: Weights) -> ClassEmbedder:
    """The table of classes of the first models. Raises CheckpointError."""
    found = part(weights, "cond_stage_model.")
    shape = [size(shapes_of(found), "embedding.weight", axis) for axis in (0, 1)]
    return fitted(lambda: ClassEmbedder(*shape), {name: tensor for name, tensor in found.items() if name == "embedding.weight"})


def fitted(make: Callable[[], Network], weights: Weights) -> Network:
    """A network whose parameters are these very tensors; made without memory of its own, for inference.

    Raises CheckpointError naming the first tensor that is missing, has another shape, holds no real numbers, or is not of this network.
    """
    with torch.device("meta"):
        network = make()
    expected = network.state_dict()
    ready = {}
    for name, place in expected.items():
        if name not in weights:
            raise CheckpointError(f"The file lacks the tensor {name}; it is damaged or incomplete.")
        tensor = reshaped(weights[name], tuple(place.shape))
        if tensor.shape != place.shape:
            raise CheckpointError(f"The tensor {name} has the shape {list(tensor.shape)} where {list(place.shape)} is needed; "
                                  "the file is damaged.")
        if not tensor.is_floating_point():
            raise CheckpointError(f"The tensor {name} holds {tensor.dtype}, not real numbers; such files cannot be used yet.")
        ready[name] = tensor
    unknown = next((name for name in weights if name not in expected), None)
    if unknown:
        raise CheckpointError(f"The file has the tensor {unknown}, for which this kind of model has no place; it is of another kind.")
    network.load_state_dict(ready, assign=True)
    return network.requires_grad_(False).eval()
