"""The text encoders of the first latent diffusion models: a transformer in BERT's manner, and a table of classes.

Rombach et al. 2022, arXiv:2112.10752, E.2; the names of its tensors are those of the x-transformers package that it was trained with.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.networks.attention import attend, join_heads, split_heads


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """All sizes of the encoder. vocabulary: 30,522 word pieces, or 8,192 marks for boxes and what stands in them."""

    width: int
    layers: int                                             # each one attention and one feed-forward
    inner: int                                              # width of q, k and v together
    vocabulary: int
    positions: int
    heads: int
    reads: Literal["bert", "boxes"] = "bert"                # what its ids mean


class _Attention(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(config.width, config.inner, bias=False) for _ in range(3))
        self.to_out = nn.Linear(config.inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part(x), self.heads) for part in (self.to_q, self.to_k, self.to_v))
        return self.to_out(join_heads(attend(q, k, v)))


class _FeedForward(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Sequential(nn.Linear(config.width, 4 * config.width), nn.GELU()), nn.Identity(), nn.Linear(4 * config.width, config.width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _Residual(nn.ModuleList):
    """A norm and a part, beside a shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self[1](self[0](x))


class _Layers(nn.Module):
    """Norm and part, in pairs: an attention at the even places, a feed-forward at the odd ones."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Residual([nn.LayerNorm(config.width), part(config)])
                                    for _ in range(config.layers) for part in (_Attention, _FeedForward))

    def forward(self, x: Tensor) -> Tensor:
        for pair in self.layers:
            x = pair(x)
        return x


class _Positions(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.emb = _table(config.positions, config.width)


class BertText(nn.Module):
    """Token ids -> one vector a token; every token sees every other, also those that only fill up."""

    pad_id = 0

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = config.reads
        self.token_emb = _table(config.vocabulary, config.width)
        self.pos_emb = _Positions(config)
        self.attn_layers = _Layers(config)
        self.norm = nn.LayerNorm(config.width)

    @property
    def width(self) -> int:
        return self.config.width

    def encode(self, ids: Tensor, skip: int = 1) -> tuple[Tensor, None]:
        """ids (B, T) int64, T up to config.positions -> (B, T, width), and no vector for the whole. skip is not asked for."""
        x = self.token_emb(ids) + self.pos_emb.emb.weight[: ids.shape[1]]
        return self.norm(self.attn_layers(x)), None


class ClassEmbedder(nn.Module):
    """The number of a class -> one token. Of n rows the last stands for no class at all."""

    pad_id = 0
    vocabulary = "class"

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes, self.width = classes, width
        self.embedding = _table(classes, width)

    def encode(self, ids: Tensor, skip: int = 1) -> tuple[Tensor, None]:
        """ids (B, 1) int64, 0..classes - 1, or -1 for no class -> (B, 1, width), and no vector for the whole."""
        return F.embedding(ids % self.classes, self.embedding.weight), None


def _table(rows: int, width: int) -> nn.Embedding:
    """An embedding whose rows are not drawn, since they will be loaded."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)
