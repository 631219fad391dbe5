"""The one attention call, and its backends, chosen by argument. Vaswani et al. 2017, arXiv:1706.03762, eq. 1."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fused(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """PyTorch's own kernel; the matrix of scores is never held as a whole."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def plain(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """The formula as written, with the whole matrix of scores in memory, for devices whose fused kernel cannot be trusted."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


BACKENDS: Mapping[str, Callable[..., Tensor]] = MappingProxyType({"fused": fused, "plain": plain})


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, backend: str = "fused") -> Tensor:
    """softmax(q k^T / sqrt(D)) v.

    q (B, heads, T, D); k, v (B, heads, S, D) -> (B, heads, T, D). causal: token i sees tokens 0..i only. backend: a name of BACKENDS.
    """
    return BACKENDS[backend](q, k, v, causal)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, heads * D) -> (B, heads, T, D), a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, heads, T, D) -> (B, T, heads * D)."""
    return x.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head attention of tokens to a context. q, k and v carry no bias, the output does."""

    def __init__(self, width: int, context: int, heads: int, backend: str = "fused") -> None:
        super().__init__()
        self.heads, self.backend = heads, backend
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, T, width), context (B, S, context) -> (B, T, width)."""
        q, k, v = (split_heads(part, self.heads) for part in (self.to_q(x), self.to_k(context), self.to_v(context)))
        return self.to_out(join_heads(attend(q, k, v, backend=self.backend)))
