"""File-name patterns: `[seed]-[sampler]` and the facts of a picture become a name. Any text may come out; the caller makes it safe."""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Naming:
    """What a pattern can name. now: when the picture is saved; started: when its job began; generation_number: 1-based in the job."""

    now: datetime
    started: datetime | None = None
    seed: int = 0
    prompt: str = ""
    negative_prompt: str = ""
    styles: tuple[str, ...] = ()
    steps: int = 0
    cfg_scale: float = 0.0
    sampler: str = ""
    scheduler: str = ""
    width: int = 0
    height: int = 0
    clip_skip: int = 1
    model_name: str = ""
    model_hash: str = ""
    vae_name: str = ""
    batch_number: int = 1
    batch_size: int = 1
    generation_number: int = 1


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)


TOKENS: Mapping[str, Callable[[Naming], str]] = MappingProxyType({
    "seed": lambda facts: str(facts.seed),
    "steps": lambda facts: str(facts.steps),
    "cfg": lambda facts: _number(facts.cfg_scale),
    "width": lambda facts: str(facts.width),
    "height": lambda facts: str(facts.height),
    "styles": lambda facts: ", ".join(facts.styles) or "None",
    "sampler": lambda facts: facts.sampler,
    "scheduler": lambda facts: facts.scheduler,
    "sampler_scheduler": lambda facts: facts.sampler if facts.scheduler == "Automatic" else f"{facts.sampler} {facts.scheduler}",
    "model_name": lambda facts: facts.model_name,
    "model_hash": lambda facts: facts.model_hash,
    "vae_filename": lambda facts: facts.vae_name or "None",
    "clip_skip": lambda facts: str(facts.clip_skip),
    "date": lambda facts: facts.now.strftime("%Y-%m-%d"),
    "datetime": lambda facts: facts.now.strftime("%Y%m%d%H%M%S"),
    "job_timestamp": lambda facts: (facts.started or facts.now).strftime("%Y%m%d%H%M%S"),
    "prompt": lambda facts: facts.prompt[:120].replace(" ", "_"),
    "prompt_spaces": lambda facts: " ".join(facts.prompt[:400].split())[:120],
    "prompt_words": lambda facts: " ".join(_words(facts.prompt[:1000])[:8]),
    "prompt_hash": lambda facts: _hash(facts.prompt),
    "negative_prompt_hash": lambda facts: _hash(facts.negative_prompt),
    "full_prompt_hash": lambda facts: _hash(f"{facts.prompt} {facts.negative_prompt}"),
    "batch_number": lambda facts: str(facts.batch_number),
    "batch_size": lambda facts: str(facts.batch_size),
    "generation_number": lambda facts: str(facts.generation_number),
})


def expand(pattern: str, facts: Naming) -> str:
    """The pattern with every known `[token]` replaced, once, from left to right; brackets around anything else stay as they are."""
    out = []
    place = 0
    while (start := pattern.find("[", place)) >= 0:
        end = pattern.find("]", start)
        if end < 0:
            break
        token = TOKENS.get(pattern[start + 1:end].lower())
        out.append(pattern[place:start])
        if token is None:
            out.append("[")
            place = start + 1
        else:
            out.append(token(facts))
            place = end + 1
    return "".join(out) + pattern[place:]


def _words(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() or letter in "'-" else " " for letter in text).split()
