"""The text tower of CLIP. Radford et al. 2021, arXiv:2103.00020: a causal transformer with layer norms before each part.

Stable Diffusion 1 reads its last layer, 2 and XL the one before (Podell et al. 2023, arXiv:2307.01952, 2.1), XL without the final norm,
and XL's larger tower also gives one vector for the whole text: ClipConfig says which.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.networks.attention import attend, join_heads, split_heads


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """All sizes of a text tower."""

    width: int
    layers: int
    inner: int                                              # width of the hidden layer of each MLP
    vocabulary: int
    positions: int
    heads: int
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    pad_id: int = 49407                                     # what fills a chunk behind its end token
    layer: int = 0                                          # whose answer is read, counted from the last (1); 0 = clip skip says it
    final_norm: bool = True                                 # whether what is read passes the final norm
    projection: int = 0                                     # numbers of the vector for the whole text, 0 = none is given


class SelfAttention(nn.Module):
    """Each token looks at itself and the tokens before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part(x), self.heads) for part in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(join_heads(attend(q, k, v, causal=True)))


class Mlp(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.quick = config.activation == "quick_gelu"
        self.fc1 = nn.Linear(config.width, config.inner)
        self.fc2 = nn.Linear(config.inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        return self.fc2(h * torch.sigmoid(1.702 * h) if self.quick else F.gelu(h))


class Layer(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config.width, config.heads)
        self.layer_norm1 = nn.LayerNorm(config.width)
        self.mlp = Mlp(config)
        self.layer_norm2 = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


def _table(rows: int, width: int) -> nn.Embedding:
    """An embedding whose rows are not drawn: nn.Embedding would draw them, and on the meta device that imports torch._dynamo (1.2 s)."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


class Embeddings(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.token_embedding = _table(config.vocabulary, config.width)
        self.position_embedding = _table(config.positions, config.width)


class Layers(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))


class TextModel(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Layers(config)
        self.final_layer_norm = nn.LayerNorm(config.width)


class ClipText(nn.Module):
    """Token ids -> one vector a token, and one for the whole text where config.projection."""

    vocabulary = "clip"

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextModel(config)
        if config.projection:
            self.text_projection = nn.Linear(config.width, config.projection, bias=False)

    @property
    def width(self) -> int:
        return self.config.width

    @property
    def pad_id(self) -> int:
        return self.config.pad_id

    def token_embedding(self, ids: Tensor) -> Tensor:
        """ids (B, T) int64 -> (B, T, width), without their positions."""
        return self.text_model.embeddings.token_embedding(ids)

    def encode(self, ids: Tensor, skip: int = 1) -> tuple[Tensor, Tensor | None]:
        """ids (B, T) int64, T up to 77 -> (B, T, width), and pooled (B, projection) or None. skip: see encode_embeddings."""
        return self.encode_embeddings(self.token_embedding(ids), ids, skip)

    def encode_embeddings(self, vectors: Tensor, ids: Tensor, skip: int = 1) -> tuple[Tensor, Tensor | None]:
        """vectors (B, T, width) in place of token embeddings -> (B, T, width), and pooled (B, projection) or None.

        skip 1 reads the last layer, skip n the n-th from the end (the embeddings themselves at most); a tower whose config names a layer
        reads that one whatever skip says. ids (B, T) are what the vectors stand for: the whole text's vector is the last layer's answer at
        the end token, which has the highest id.
        """
        model, layers = self.text_model, self.text_model.encoder.layers
        x = vectors + model.embeddings.position_embedding.weight[: vectors.shape[1]]
        read = max(0, self.config.layers + 1 - (self.config.layer or skip))
        for layer in layers[:read]:
            x = layer(x)
        seen = model.final_layer_norm(x) if self.config.final_norm else x
        if not self.config.projection:
            return seen, None
        for layer in layers[read:]:
            x = layer(x)
        ends = ids.argmax(dim=-1)
        last = x[torch.arange(len(x), device=x.device), ends]
        return seen, self.text_projection(model.final_layer_norm(last))
