"""Layers with a care of their own, and the seam where other implementations are put in, once, after the weights are loaded.

A chooser is a fixed table: it sees the shape of a layer, never a clock, a batch or a value, so the same file always runs the same way.
What it returns may look further at the height and width of its input when it is called; that is how latent sizes enter the table.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """Group normalisation (Wu and He 2018, arXiv:1803.08494) that stays exact with channels innermost on a CPU.

    PyTorch's kernel for that order takes the variance as E[x^2] - E[x]^2 in float32: where a group's mean is 10 of its standard deviations
    the answer is off by 1e-3 (1e-6 in the other order). The variance does not change when about the mean is taken off first; the mean of
    every fourth row and column is near enough. The pass costs about 1 % of a U-Net step and 5 % of a decode.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, h, w) -> the same shape and order in memory."""
        if x.device.type == "cpu" and not x.is_contiguous():
            about = x[:, :, ::4, ::4].unflatten(1, (self.num_groups, -1)).mean((2, 3, 4))
            x = x - about.repeat_interleave(self.num_channels // self.num_groups, dim=1)[:, :, None, None]
        return super().forward(x)


@dataclass(frozen=True)
class LayerShape:
    """What a chooser may know: the layer's dotted name in its network and its sizes (a linear layer has kernel and stride 1)."""

    name: str
    kind: str                                               # "conv" or "linear"
    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1


Implementation = Callable[[nn.Module], nn.Module]           # the loaded layer -> what shall run in its place
Chooser = Callable[[LayerShape], Implementation | None]     # None = the layer stays as it is


def shape_of(name: str, layer: nn.Module) -> LayerShape | None:
    """The shape of a convolution or linear layer; None for any other module."""
    if isinstance(layer, nn.Conv2d):
        return LayerShape(name, "conv", layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0])
    if isinstance(layer, nn.Linear):
        return LayerShape(name, "linear", layer.in_features, layer.out_features)
    return None


def replace(model: nn.Module, choose: Chooser) -> int:
    """Ask `choose` about each convolution and linear layer of `model` and put what it names in the layer's place.

    Returns how many layers were given another implementation; with 0 the model runs bit for bit as before.
    """
    changed = 0
    for path, parent in list(model.named_modules()):
        for child, layer in list(parent.named_children()):
            shape = shape_of(f"{path}.{child}" if path else child, layer)
            implementation = choose(shape) if shape else None
            if implementation is not None:
                setattr(parent, child, implementation(layer))
                changed += 1
    return changed


def plain(shape: LayerShape) -> None:
    """Every layer as it was loaded."""
    return None


def channels_last(shape: LayerShape) -> Implementation | None:
    """Convolutions with channels innermost in memory: their outputs come in the same order, and so do those of all between them."""
    return _in_channels_last if shape.kind == "conv" else None


def _in_channels_last(layer: nn.Module) -> nn.Module:
    return layer.to(memory_format=torch.channels_last)          # type: ignore[call-overload]  # torch's stub does not know it


CHOOSERS: Mapping[str, Chooser] = MappingProxyType({"plain": plain, "channels_last": channels_last})
