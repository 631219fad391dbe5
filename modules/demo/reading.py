"""The text tower learns to read before the U-Net learns to draw: from a caption's tokens it tells what the scene holds.

A caption says what a picture says in a thousandth of the work, so what "a big red house on the left" binds together is learnt in minutes
here, and the U-Net begins with words that already mean something.
"""
from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules.demo import captions, scenes
from modules.demo.scenes import Layout
from modules.networks.clip import ClipText
from modules.prompts.tokens import Tokenizer, chunks

FACTS: tuple[str, ...] = (
    *scenes.KINDS, *(f"{kind} {other}" for kind in scenes.KINDS for other in (*scenes.COLOURS, *scenes.SIZES, *scenes.PLACES)),
    *(f"{colour} {place}" for colour in scenes.COLOURS for place in scenes.PLACES),
    *(f"{part} {value}" for part, values in (("sky", scenes.SKIES), ("weather", scenes.WEATHERS), ("ground", scenes.GROUNDS),
                                             ("style", scenes.STYLES)) for value in values),
    *(f"fault {fault}" for fault in captions.SPOILED_WORDS),
)
_NUMBER = {fact: number for number, fact in enumerate(FACTS)}
BATCH, LONGEST, RATE = 128, 40, 1.5e-3                      # captions a step; tokens, which few captions exceed; of AdamW


def facts_of(layout: Layout, said: str = "") -> Tensor:
    """(len(FACTS),) float32, 1 where it is true of the scene, and of the fault that `said` names."""
    true = [f"sky {layout.sky}", f"weather {layout.weather}", f"ground {layout.ground}", f"style {layout.style}"]
    for thing in layout.objects:
        true += [thing.kind, *(f"{thing.kind} {other}" for other in (thing.colour, thing.size, thing.place)),
                 f"{thing.colour} {thing.place}"]
    true += [f"fault {fault}" for fault, words in captions.SPOILED_WORDS.items() if said in words]
    told = torch.zeros(len(FACTS))
    told[[_NUMBER[fact] for fact in true]] = 1.0
    return told


def lesson(number: int, strangers: Sequence[str], strange: float, spoiled: float) -> tuple[str, Tensor]:
    """Caption and facts of one scene that may be trained on. strange, spoiled: how often strangers or a fault are named as well."""
    rng = random.Random(f"reading {number}")
    layout = scenes.training_layout(rng)
    fault = captions.fault(rng) if rng.random() < spoiled else ""
    parts = [captions.caption(layout, rng), *([fault] if fault else [])]
    if rng.random() < strange:
        parts += rng.sample(list(strangers), rng.choice((1, 2, 3)))
        rng.shuffle(parts)
    return ", ".join(parts), facts_of(layout, fault)


class Reader(nn.Module):
    """Facts as logits from what the tower gives for the end of the text, and for the last token of padding."""

    def __init__(self, text: ClipText) -> None:
        super().__init__()
        self.text = text
        self.at_end, self.at_padding = nn.Linear(text.width, len(FACTS)), nn.Linear(text.width, len(FACTS))
        for head in (self.at_end, self.at_padding):
            nn.init.constant_(head.bias, -3.0)              # most facts are true of few scenes

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids (B, T) int64 -> logits (B, len(FACTS)) twice."""
        seen, _ = self.text.encode(ids)
        ends = (ids == self.text.pad_id).int().argmax(dim=1)
        return self.at_end(seen[torch.arange(len(seen)), ends]), self.at_padding(seen[:, -1])


def teach(text: ClipText, tokenizer: Tokenizer, *, steps: int, strangers: Sequence[str], strange: float = 0.12, spoiled: float = 0.04,
          seed: int = 0, half: bool = False) -> list[float]:
    """Train the tower for so many steps; the loss of each, binary cross entropy in nats a fact. half: multiply in bfloat16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = Reader(text).train()
    learner = torch.optim.AdamW(reader.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(learner, RATE, total_steps=steps, pct_start=min(0.5, 100 / steps))
    losses = []
    for step in range(steps):
        lessons = [lesson(seed + step * BATCH + row, strangers, strange, spoiled) for row in range(BATCH)]
        ids = torch.tensor([chunks(said, tokenizer, emphasis="None")[0].padded(text.pad_id)[:LONGEST] for said, _ in lessons])
        facts = torch.stack([told for _, told in lessons])
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = reader(ids)
        loss = sum(F.binary_cross_entropy_with_logits(logits.float(), facts) for logits in found)
        assert isinstance(loss, Tensor)
        learner.zero_grad()
        loss.backward()     # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        learner.step()
        rate.step()
        losses.append(float(loss.detach()) / 2)
    return losses
