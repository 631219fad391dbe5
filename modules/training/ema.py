"""A running mean of weights that follows them at a distance; pictures come from the mean. Polyak and Juditsky 1992."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

PREFIX = "model_ema."
NO_WARM_UP = -1


def published_name(name: str) -> str:
    """The name of a shadow in published checkpoints: no dots at all behind the prefix. `name` begins with `diffusion_model.` for a U-Net.

    Taking dots away cannot be undone in general, so names are only ever mapped in this direction.
    """
    return PREFIX + name.replace(".", "")


class LitEma:
    """shadow -= (1 - d) (shadow - weight) at every update, d = min(decay, (1 + n) / (10 + n)) at the n-th, counted from 1.

    num_updates -1: d is always `decay`.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float = 0.9999, *, warm_up: bool = True) -> None:
        """weights: name -> the tensors that are trained; they are copied here and read again at each update."""
        if not 0 <= decay <= 1:
            raise ValueError(f"decay {decay}")
        self.decay, self.num_updates = decay, 0 if warm_up else NO_WARM_UP
        self.names = tuple(weights)
        self._weights = [tensor.detach() for tensor in weights.values()]
        self.shadows = [tensor.clone() for tensor in self._weights]

    def effective_decay(self) -> float:
        """d of the latest update."""
        n = self.num_updates
        return self.decay if n == NO_WARM_UP else min(self.decay, (1 + n) / (10 + n))

    @torch.no_grad()
    def update(self) -> None:
        """One step towards the weights as they are now."""
        if self.num_updates != NO_WARM_UP:
            self.num_updates += 1
        torch._foreach_lerp_(self.shadows, self._weights, 1 - self.effective_decay())

    def published(self) -> dict[str, Tensor]:
        """The shadows under their published names, with `model_ema.decay` and `model_ema.num_updates`."""
        return {**{published_name(name): shadow for name, shadow in zip(self.names, self.shadows, strict=True)},
                PREFIX + "decay": torch.tensor(self.decay, dtype=torch.float32),
                PREFIX + "num_updates": torch.tensor(self.num_updates, dtype=torch.int32)}

    def state(self) -> dict[str, Tensor]:
        """Shadows by name, and `num_updates`, to go on from later."""
        return {**dict(zip(self.names, self.shadows, strict=True)), "num_updates": torch.tensor(self.num_updates)}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up a state() again. Raises KeyError for a name that is missing."""
        for name, shadow in zip(self.names, self.shadows, strict=True):
            shadow.copy_(state[name])
        self.num_updates = int(state["num_updates"])

    def reset_num_updates(self) -> None:
        """Begin the warm-up again, as one does when the shadows were loaded as weights."""
        self.num_updates = 0

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the networks hold the shadows; afterwards their own weights again, bit for bit."""
        own = [tensor.clone() for tensor in self._weights]
        self._copy(self.shadows)
        try:
            yield
        finally:
            self._copy(own)

    @torch.no_grad()
    def _copy(self, tensors: list[Tensor]) -> None:
        for weight, tensor in zip(self._weights, tensors, strict=True):
            weight.copy_(tensor)
