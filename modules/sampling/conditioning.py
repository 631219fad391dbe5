"""What a network is told beside the noisy latent. One value for one row or many; rows are batched with `cat`."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """cross (B, T, C): text tokens; vector (B, D): pooled text and sizes; concat (B, C, H, W): mask, masked latent; label (B,): a class."""

    cross: Tensor | None = None
    vector: Tensor | None = None
    concat: Tensor | None = None
    label: Tensor | None = None

    def _each(self, change) -> Conditioning:
        present = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(value) for name, value in present.items() if value is not None})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """On another device or in another float type; a label keeps its integers."""
        return self._each(lambda t: t.to(device=device, dtype=dtype if t.is_floating_point() else None))

    def __getitem__(self, rows: slice) -> Conditioning:
        return self._each(lambda t: t[rows])

    @property
    def rows(self) -> int:
        return next((len(t) for t in (self.cross, self.vector, self.concat, self.label) if t is not None), 0)


def cat(parts: Sequence[Conditioning]) -> Conditioning:
    """Rows one below the other. All parts must carry the same fields, with equal token counts."""
    names = [f.name for f in fields(Conditioning) if getattr(parts[0], f.name) is not None]
    return Conditioning(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})
