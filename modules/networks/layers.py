"""Layers with a care of their own, and the seam where other implementations are put in, once, after the weights are loaded.

A chooser is a fixed table: it sees the shape of a layer, never a clock, a batch or a value, so the same file always runs the same way.
What it returns may look further at the height and width of its input when it is called; that is how latent sizes enter the table.
"""
from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """Group normalisation (Wu and He 2018, arXiv:1803.08494) that stays exact with channels innermost on a CPU.

    PyTorch's kernel for that order takes the variance as E[x^2] - E[x]^2 in float32: where a group's mean is 10 of its standard deviations
    the answer is off by 1e-3 (1e-6 in the other order). The variance does not change when about the mean is taken off first; the mean of
    every fourth row and column is near enough. The pass costs about 1 % of a U-Net step and 5 % of a decode;
    for the same reason no gradient need go through that mean.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, h, w) -> the same shape and order in memory."""
        if x.device.type == "cpu" and not x.is_contiguous():
            about = x.detach()[:, :, ::4, ::4].unflatten(1, (self.num_groups, -1)).mean((2, 3, 4))
            x = x - about.repeat_interleave(self.num_channels // self.num_groups, dim=1)[:, :, None, None]
        return super().forward(x)


class PackedConv2d(nn.Module):
    """A convolution whose weight was put in oneDNN's own order once. torch does so at every call, which at small latents takes longer than
    the convolution itself (SD1.5 at 256 px: a step in 0.8 of the time). The weight cannot be read back, moved or saved.
    """

    HINT = (2, 16, 16)                                      # batch, height, width that oneDNN shall expect; others run as well

    def __init__(self, layer: nn.Conv2d, weight: Tensor) -> None:
        """weight: the layer's in float32, channels innermost; the caller's to use again afterwards."""
        super().__init__()
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        sizes = [self.HINT[0], layer.in_channels, *self.HINT[1:]]
        self.context = torch.ops.mkldnn_prepacked.conv2d_prepack(
            weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups, sizes, "none")
        weight.set_(torch.empty(0).untyped_storage())       # the context holds on to this tensor, though it never uses it again

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in, h, w) float32 -> (B, out, h', w'), channels innermost."""
        found: Tensor = torch.ops.mkldnn_prepacked.conv2d_run(x.contiguous(memory_format=torch.channels_last), self.context)
        return found

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}"


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


def replace(model: nn.Module, choose: Chooser, pool: Executor | None = None) -> int:
    """Ask `choose` about each convolution and linear layer of `model` and put what it names in its place. pool: does so side by side.

    Returns how many layers were given another implementation; with 0 the model runs bit for bit as before.
    """
    parents = [(path, module) for path, module in model.named_modules() if next(module.children(), None) is not None]
    asked = [(parent, child, shape_of(f"{path}.{child}" if path else child, layer)) for path, parent in parents
             for child, layer in parent.named_children()]
    chosen = [(parent, child, implementation) for parent, child, shape in asked if shape and (implementation := choose(shape))]

    def put(one: tuple[nn.Module, str, Implementation]) -> None:
        parent, child, implementation = one                 # not the layer itself: its memory goes when it is replaced
        setattr(parent, child, implementation(getattr(parent, child)))

    for _ in pool.map(put, chosen) if pool else map(put, chosen):
        pass
    return len(chosen)


def plain(shape: LayerShape) -> None:
    """Every layer as it was loaded."""
    return None


def channels_last(shape: LayerShape) -> Implementation | None:
    """Convolutions with channels innermost in memory: their outputs come in the same order, and so do those of all between them."""
    return _in_channels_last if shape.kind == "conv" else None


def _in_channels_last(layer: nn.Module) -> nn.Module:
    return layer.to(memory_format=torch.channels_last)          # type: ignore[call-overload]  # torch's stub does not know it


class Packing:
    """Convolutions as PackedConv2d; for float32 on a CPU. Their weights may still be in another type: they are widened here, one after the
    other in the same place (of each thread), since memory that is touched for the first time costs more than the work done in it."""

    def __init__(self) -> None:
        self._own = threading.local()

    def __call__(self, shape: LayerShape) -> Implementation | None:
        return self._pack if shape.kind == "conv" else None

    def _pack(self, layer: nn.Module) -> nn.Module:
        assert isinstance(layer, nn.Conv2d)
        if layer.weight.is_meta:
            return layer
        if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            return layer.float()
        out, channels, height, width = layer.weight.shape
        place: Tensor | None = getattr(self._own, "place", None)
        if place is None or len(place) < layer.weight.numel():
            place = self._own.place = torch.empty(layer.weight.numel())
        weight = place[:layer.weight.numel()].view(out, height, width, channels).permute(0, 3, 1, 2)
        return PackedConv2d(layer, weight.copy_(layer.weight))


KINDS = ("plain", "channels_last", "packed")


def chooser(kind: str) -> Chooser:
    """A fresh chooser of one of KINDS."""
    kinds: dict[str, Chooser] = {"plain": plain, "channels_last": channels_last, "packed": Packing()}
    return kinds[kind]


def usual(device: torch.device, dtype: torch.dtype) -> str:
    """The one of KINDS that is fastest on this device in this type, at no loss."""
    fits = device.type == "cpu" and dtype == torch.float32
    if fits and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn_prepacked, "conv2d_prepack"):  # type: ignore[no-untyped-call]
        return "packed"
    return "channels_last"
