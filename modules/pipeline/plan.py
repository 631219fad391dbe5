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
from types import MappingProxyType
from typing import Any

from modules.pipeline.request import Request
from modules.prompts import grammar, styles, tags, wildcards
from modules.sampling import catalogue

TEMPLATES = MappingProxyType({                              # labels, as other tools write them for the first two
    "prompt": "Template", "negative_prompt": "Negative Template", "prompt_2": "Template 2", "negative_prompt_2": "Negative Template 2"})
SEEDS = 2**64                                               # a seed is an unsigned 64-bit number; counting on wraps around


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One picture to make. prompt and negative_prompt as the infotext will show them; text is the prompt without its tags.

    prompt_2, negative_prompt_2: what the text towers behind the first one read, "" = the same; text_2 is without tags.
    templates: (label, text) of each prompt that had wildcards, as it was before they were chosen.
    """

    index: int
    seed: int
    subseed: int
    prompt: str
    negative_prompt: str
    text: str
    uses: tuple[tags.Tag, ...] = ()
    prompt_2: str = ""
    negative_prompt_2: str = ""
    text_2: str = ""
    templates: tuple[tuple[str, str], ...] = ()


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
    asked = [grammar.without_comments(text) for text in (prompt, negative, request.prompt_2, request.negative_prompt_2)]
    files = source or wildcards.Nothing()

    def slot(index: int) -> Slot:
        seed, subseed = seeds(request, index)
        told = [_chosen(text, files, seed, field) for text, field in zip(asked, TEMPLATES, strict=True)]
        words, against, words_2, against_2 = told
        (text, uses), (text_2, uses_2) = tags.extract(words), tags.extract(words_2)
        return Slot(index=index, seed=seed, subseed=subseed, prompt=words, negative_prompt=against, text=text, uses=(*uses, *uses_2),
                    prompt_2=words_2, negative_prompt_2=against_2, text_2=text_2,
                    templates=tuple((label, before) for label, before, after in zip(TEMPLATES.values(), asked, told, strict=True)
                                    if before != after))

    size = 1 if request.deterministic or catalogue.sampler(request.sampler).alone else request.batch_size
    total = request.batch_size * request.n_iter
    for number, first in enumerate(range(0, total, size)):
        slots = [slot(index) for index in range(first, first + size) if index not in done]
        for _, together in groupby(slots, key=lambda one: one.index if one.templates else -1):
            group = tuple(together)
            yield Batch(request=request, number=number, slots=group, uses=group[0].uses)


def _chosen(text: str, files: wildcards.Source, seed: int, field: str) -> str:
    """The text with its wildcards chosen and without their comments."""
    words = wildcards.resolve(text, files, seed, field)
    return words if words == text else grammar.without_comments(words)
