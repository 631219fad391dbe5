"""One request -> the batches that will be computed: styles laid in, comments and tags taken out, a seed for every picture, wildcards
chosen by it.

A picture is computed as if it were alone. A batch only groups pictures that may share a network call: equal tags,
since these change the model itself. A picture whose words were chosen for it is computed alone: its text may ask for other tags, and it
comes out the same again without its neighbours. Pictures that are already delivered are left out.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from modules.pipeline.request import Request
from modules.prompts import grammar, styles, tags, wildcards
from modules.sampling import catalogue

SEEDS = 2**64                                               # a seed is an unsigned 64-bit number; counting on wraps around


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One picture to make. prompt and negative_prompt as the infotext will show them; text is the prompt without its tags.

    template, negative_template: the prompts before wildcards were chosen, "" where there was nothing to choose.
    """

    index: int
    seed: int
    subseed: int
    prompt: str
    negative_prompt: str
    text: str
    uses: tuple[tags.Tag, ...] = ()
    template: str = ""
    negative_template: str = ""


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


def plan(request: Request, library: Mapping[str, Any], extensions: Sequence[Any], done: frozenset[int],
         source: wildcards.Source | None = None) -> Iterator[Batch]:
    """The request's batches in order, without the pictures in `done`. library: style name -> Style; source: the wildcards' files.

    Raises PromptError, also for a wildcard that has no file.
    """
    chosen = [library[name] for name in request.styles if name in library]
    prompt, negative = styles.apply(request.prompt, request.negative_prompt, chosen)
    prompt, negative = grammar.without_comments(prompt), grammar.without_comments(negative)
    files = source or wildcards.Nothing()

    def slot(index: int) -> Slot:
        seed, subseed = seeds(request, index)
        words, template = _chosen(prompt, files, seed, "prompt")
        against, negative_template = _chosen(negative, files, seed, "negative_prompt")
        text, uses = tags.extract(words)
        return Slot(index=index, seed=seed, subseed=subseed, prompt=words, negative_prompt=against, text=text, uses=uses,
                    template=template, negative_template=negative_template)

    size = 1 if request.deterministic or catalogue.sampler(request.sampler).alone else request.batch_size
    total = request.batch_size * request.n_iter
    for number, first in enumerate(range(0, total, size)):
        slots = [slot(index) for index in range(first, first + size) if index not in done]
        for _, together in groupby(slots, key=lambda one: one.index if one.template or one.negative_template else -1):
            group = tuple(together)
            yield Batch(request=request, number=number, slots=group, uses=group[0].uses)


def _chosen(text: str, files: wildcards.Source, seed: int, field: str) -> tuple[str, str]:
    """(the text with its wildcards chosen and without their comments, the text itself if that is another)."""
    words = wildcards.resolve(text, files, seed, field)
    return (text, "") if words == text else (grammar.without_comments(words), text)
