"""A network that tells patches of real pictures from decoded ones, and a network whose features say how alike two pictures look."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.checkpoints import read
from modules.core.errors import CheckpointError

VGG_BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))   # indices of VGG16's convolutions between its poolings
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)      # of its training pictures, for pixels in -1..1
EPS = 1e-10


class PatchDiscriminator(nn.Module):
    """One judgement for each patch of a picture. Isola et al. 2017, arXiv:1611.07004; the sizes are those of Esser et al. 2021.

    Convolutions of 4 x 4: `layers` that halve the resolution, one that does not, and the judge.
    """

    def __init__(self, channels: int = 64, layers: int = 3, inputs: int = 3) -> None:
        super().__init__()
        made: list[nn.Module] = [nn.Conv2d(inputs, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for layer in range(1, layers + 1):
            wider = channels * min(2 ** layer, 8)
            made += [nn.Conv2d(width, wider, 4, stride=2 if layer < layers else 1, padding=1, bias=False), nn.BatchNorm2d(wider),
                     nn.LeakyReLU(0.2)]
            width = wider
        self.main = nn.Sequential(*made, nn.Conv2d(width, 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, H, W) in -1..1 -> (B, 1, h, w), positive where it looks real."""
        return self.main(pixels)


class Perceptual(nn.Module):
    """Distance between the features that VGG16 sees in two pictures. Zhang et al. 2018, arXiv:1801.03924.

    With `lin*` weights in the file each channel counts as they say; without, all alike.
    """

    def __init__(self, convolutions: Mapping[int, tuple[Tensor, Tensor]], weights: tuple[Tensor, ...] | None) -> None:
        """convolutions: index in VGG16's list -> weight and bias. weights: five of (1, C, 1, 1), or None."""
        super().__init__()
        self.layers = nn.ModuleDict()
        for index, (weight, bias) in convolutions.items():
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            layer.load_state_dict({"weight": weight, "bias": bias})
            self.layers[str(index)] = layer
        self.shift = nn.Parameter(torch.tensor(SHIFT)[None, :, None, None])
        self.scale = nn.Parameter(torch.tensor(SCALE)[None, :, None, None])
        self.weights = nn.ParameterList(weights) if weights else None
        self.requires_grad_(False).eval()

    @classmethod
    def of(cls, path: Path) -> Perceptual:
        """From a file with `features.N.weight` and `.bias`, and `lin0` .. `lin4` if it has them. Raises CheckpointError."""
        found = {name.removeprefix("net."): tensor.float() for name, tensor in read.weights(path).items() if tensor.is_floating_point()}
        convolutions = {}
        for index in (index for block in VGG_BLOCKS for index in block):
            weight, bias = found.get(f"features.{index}.weight"), found.get(f"features.{index}.bias")
            if weight is None or bias is None or weight.dim() != 4:
                raise CheckpointError(f"{path.name} lacks features.{index}.weight or .bias, so it is no VGG16; choose another file for "
                                      "vae_objective.perceptual_weights.")
            convolutions[index] = weight, bias
        lines = tuple(tensor for block in range(len(VGG_BLOCKS)) for name, tensor in found.items()
                      if name.startswith(f"lin{block}.") and tensor.dim() == 4)
        return cls(convolutions, lines if len(lines) == len(VGG_BLOCKS) else None)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Behind the last convolution of each block, each cell's channels of length 1."""
        x, found = (pixels - self.shift) / self.scale, []
        for number, block in enumerate(VGG_BLOCKS):
            if number:
                x = F.max_pool2d(x, 2)
            for index in block:
                x = F.relu(self.layers[str(index)](x))
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + EPS))
        return found

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """pixels (B, 3, H, W) in -1..1, H and W 16 or more -> (B, 1, 1, 1), 0 for equal pictures."""
        total = one.new_zeros(len(one), 1, 1, 1)
        for number, (a, b) in enumerate(zip(self.features(one), self.features(other), strict=True)):
            squared = (a - b).square()
            each = (squared * self.weights[number]).sum(1, keepdim=True) if self.weights is not None else squared.mean(1, keepdim=True)
            total = total + each.mean((2, 3), keepdim=True)
        return total
