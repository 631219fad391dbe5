"""One request -> the batches that will be computed: styles laid in, comments and tags taken out, a seed for every picture.

A picture is computed as if it were alone. A batch only groups pictures that may share a network call: equal tags,
since these change the model itself. Pictures that are already delivered are left out.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modules.pipeline.request import Request
from modules.prompts import grammar, styles, tags
from modules.sampling import catalogue

SEEDS = 2**64                                               # a seed is an unsigned 64-bit number; counting on wraps around


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One picture to make. prompt and negative_prompt as the infotext will show them; text is the prompt without its tags."""

    index: int
    seed: int
    subseed: int
    prompt: str
    negative_prompt: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Pictures that go through the network together. number: 0-based among the request's batches."""

    request: Request
    number: int
    slots: tuple[Slot, ...]
    uses: tuple[tags.Tag, ...]


def seeds(request: Request, index: int) -> tuple[int, int]:
    """(seed, subseed) of the picture with this index: the seed counts on unless a variation is asked for, the subseed always."""
    seed = request.seed if request.subseed_strength else request.seed + index
    return seed % SEEDS, (request.subseed + index) % SEEDS


def plan(request: Request, library: Mapping[str, Any], extensions: Sequence[Any], done: frozenset[int]) -> Iterator[Batch]:
    """The request's batches in order, without the pictures in `done`. library: style name -> Style."""
    chosen = [library[name] for name in request.styles if name in library]
    prompt, negative = styles.apply(request.prompt, request.negative_prompt, chosen)
    prompt, negative = grammar.without_comments(prompt), grammar.without_comments(negative)
    text, uses = tags.extract(prompt)
    size = 1 if request.deterministic or catalogue.sampler(request.sampler).alone else request.batch_size
    total = request.batch_size * request.n_iter
    for number, first in enumerate(range(0, total, size)):
        slots = []
        for index in range(first, first + size):
            if index not in done:
                seed, subseed = seeds(request, index)
                slots.append(Slot(index=index, seed=seed, subseed=subseed, prompt=prompt, negative_prompt=negative, text=text))
        if slots:
            yield Batch(request=request, number=number, slots=tuple(slots), uses=tuple(uses))
