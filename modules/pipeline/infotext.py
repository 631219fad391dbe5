"""The generation parameters as text under a picture, in A1111's wording: written, and read again by a linear scanner.

    <prompt, any number of lines>
    Negative prompt: <any number of lines>
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, ...        (always one line, the last)

The text cannot carry everything: outer spaces of the whole and of its lines, and a prompt line that begins with
"Negative prompt:", come back changed. The record of provenance.py carries any text.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from modules.core.errors import PromptError, WebUIError
from modules.pipeline import init_text, old_texts, parameters
from modules.pipeline.request import Request
from modules.prompts import grammar
from modules.sampling import catalogue

VERSION = "easel-0.1.0"                                     # no PEP 440 version, or A1111 would switch old behaviour on when pasting
NEGATIVE = "Negative prompt:"
LEAST_PAIRS = 3                                             # a last line with fewer belongs to the prompt
MAX_JSON_VALUES = 16                                        # unquoted JSON values that are looked for in one line
LABELS = frozenset(row.infotext for row in parameters.PARAMETERS)
SIZE = re.compile(r"([0-9]+)x([0-9]+)")
QUOTE_OR_ESCAPE = re.compile(r'["\\]')


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the text says about one picture and its Request does not.

    schedule: the label of the ladder that was used, "" = as the catalogue has it. Hashes: 10 hex digits, "" = not known. The VAE is
    named only when it is not the checkpoint's own. notes: pairs that only this picture has (hashes of its networks).
    """

    seed: int
    subseed: int
    prompt: str
    negative_prompt: str
    schedule: str = ""
    model_name: str = ""                                    # without ending
    model_hash: str = ""
    vae_name: str = ""                                      # with ending
    vae_hash: str = ""
    refiner: str = ""                                       # "name [10 hex]" where one took over
    notes: Mapping[str, Any] = field(default_factory=dict)
    user: str = ""
    version: str = VERSION


# ---- writing

def write(request: Request, facts: Facts) -> str:
    """The text of one picture. A pair of `notes` whose key the line cannot hold is left out (the record has it).

    Raises NotFoundError for a sampler that the catalogue does not have.
    """
    lines = [facts.prompt]
    if facts.negative_prompt:
        lines.append(f"{NEGATIVE} {facts.negative_prompt}")
    lines.append(", ".join(_pair(key, value) for key, value in _pairs(request, facts).items() if value is not None))
    return "\n".join(lines).strip()


def schedule_used(request: Request) -> str:
    """The label of the schedule that a request walks: Automatic becomes the sampler's own where that has a name."""
    own = catalogue.sampler(request.sampler).default_schedule
    if request.scheduler == "Automatic" and own:
        return catalogue.schedule(own).label
    return request.scheduler


def _pairs(request: Request, facts: Facts) -> dict[str, Any]:
    """Key -> value in the order of the line; None = not written."""
    entry = catalogue.sampler(request.sampler)
    schedule = facts.schedule or schedule_used(request)
    resized = request.seed_resize_from_w > 0 and request.seed_resize_from_h > 0
    varied = request.subseed_strength != 0
    pairs: dict[str, Any] = {
        "Steps": request.steps,
        "Sampler": request.sampler,
        "Schedule type": schedule,
        "CFG scale": request.cfg_scale,
        "Image CFG scale": None,                            # facts.notes, where the model looks at it
        "Seed": facts.seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": facts.model_hash or None,
        "Model": facts.model_name or None,
        "VAE hash": facts.vae_hash or None,
        "VAE": facts.vae_name or None,
        "Variation seed": facts.subseed if varied else None,
        "Variation seed strength": request.subseed_strength if varied else None,
        "Seed resize from": f"{request.seed_resize_from_w}x{request.seed_resize_from_h}" if resized else None,
        "Denoising strength": request.init.denoising_strength if request.init else None,
        "Conditional mask weight": None,
        "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
        "ENSD": request.eta_noise_seed_delta if entry.uses_ensd and request.eta_noise_seed_delta and request.eta != 0 else None,
        "Token merging ratio": request.token_merging_ratio or None,
        "RNG": "CPU" if request.randn_source == "CPU" else "NV",
        "Refiner": facts.refiner or None,
        "Refiner switch at": request.refiner_switch_at if facts.refiner else None,
    }
    pairs |= init_text.pairs(request.init) if request.init else {}
    for key, value in {**request.notes, **facts.notes}.items():
        if is_key(key) and key not in ("Version", "User"):
            pairs[key] = value                              # a key that stands above keeps its place
    weighted = any(mark in facts.prompt + facts.negative_prompt for mark in "([")
    pairs["Emphasis"] = request.emphasis if request.emphasis != "Original" and weighted else None
    pairs |= {"Old prompt editing timelines": request.use_old_scheduling or None, "Pad conds": request.pad_cond_uncond or None,
              "Pad conds v0": request.pad_cond_uncond_v0 or None}
    pairs |= _sampling_pairs(request, entry, named=schedule not in ("", "Automatic"))
    pairs["Version"] = facts.version or None
    pairs["User"] = facts.user or None
    return pairs


def _sampling_pairs(request: Request, entry: catalogue.SamplerEntry, *, named: bool) -> dict[str, Any]:
    """Settings of the ladder (where its schedule has a name) and of the sampler (where it knows them), if not the usual ones."""
    timesteps = entry.eta_option == "eta_ddim"
    usual_eta = 0.0 if timesteps else 1.0

    def knob(name: str, usual: float) -> float | None:
        value = getattr(request, name)
        return value if name in entry.knobs and value != usual else None

    def own(name: str) -> Any:
        value = getattr(request, name)
        return value if "variant" in entry.knobs and value != getattr(Request, name) else None

    beta = schedule_used(request) == "Beta"
    return {
        "Discard penultimate sigma": True if request.discard_penultimate_sigma and not entry.discard else None,
        "Schedule min sigma": (request.schedule_sigma_min or None) if named else None,
        "Schedule max sigma": (request.schedule_sigma_max or None) if named else None,
        "Schedule rho": (request.schedule_rho or None) if named else None,
        "Beta schedule alpha": request.schedule_alpha if beta and request.schedule_alpha != Request.schedule_alpha else None,
        "Beta schedule beta": request.schedule_beta if beta and request.schedule_beta != Request.schedule_beta else None,
        "Schedule levels": request.schedule_levels.strip() or None,
        "SGM noise multiplier": True if request.sgm_noise_multiplier else None,
        "Eta DDIM" if timesteps else "Eta": request.eta if entry.eta_option and request.eta != usual_eta else None,
        "Sigma churn": knob("s_churn", 0.0),
        "Sigma tmin": knob("s_tmin", 0.0),
        "Sigma tmax": knob("s_tmax", 0.0),
        "Sigma noise": knob("s_noise", 1.0),
        **{f"UniPC {name.replace('_', ' ')}": own(f"uni_pc_{name}") for name in ("variant", "skip_type", "order", "lower_order_final")},
        "Skip Early CFG": request.skip_early_cond or None,
        "NGMS": request.s_min_uncond or None,
        "NGMS all steps": True if request.s_min_uncond and request.s_min_uncond_all else None,
    }


def _pair(key: str, value: Any) -> str:
    text = _text(value)
    if text != key:
        return f"{key}: {quote(text)}"
    return f"{key}: {json.dumps(text, ensure_ascii=False)}" if key in LABELS else key


def _text(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return parameters.number(value)
    return value if isinstance(value, str) else str(value)


def quote(text: str) -> str:
    """A value as the line holds it: bare, or a JSON string where the bare text would not come back."""
    bare = text and text == text.strip() and not text.startswith(('"', "[", "{")) and not any(c in ",:\n\r" for c in text)
    return text if bare else json.dumps(text, ensure_ascii=False)


def is_key(text: Any) -> bool:
    """Whether the line can hold this key: two or more word characters, spaces, hyphens, slashes, the first a word character."""
    return (isinstance(text, str) and len(text) > 1 and _is_word(text[0]) and text == text.strip()
            and all(_is_word(c) or c in " -/" for c in text))


# ---- reading

@dataclass(frozen=True, kw_only=True)
class Parsed:
    """A text taken apart. fields: label -> text as A1111 names them (`Size` as `Size-1` and `Size-2`); raw: before that split."""

    prompt: str = ""
    negative_prompt: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    raw: Mapping[str, str] = field(default_factory=dict)


def read(text: str) -> Parsed:
    """Any text at all; time grows with its length. Without a last line of three or more pairs the whole is a prompt."""
    lines = text.strip().split("\n")
    pairs = list(scan(lines[-1]))
    if len(pairs) < LEAST_PAIRS:
        pairs = []
    else:
        lines.pop()
    prompt, negative = _prompts(lines)
    raw = {key: _unquote(value) for key, value in pairs if value}
    fields: dict[str, str] = {}
    for key, value in raw.items():
        size = SIZE.fullmatch(value)
        fields |= {f"{key}-1": size[1], f"{key}-2": size[2]} if size else {key: value}
    fields, prompt = old_texts.modernised(fields, prompt)
    return Parsed(prompt=prompt, negative_prompt=negative, fields=fields, raw=raw)


def scan(line: str) -> Iterator[tuple[str, str]]:
    """The (key, value) pairs of a parameter line, in order, values still quoted. One pass, no backtracking."""
    start = 0
    json_left = MAX_JSON_VALUES
    while True:
        colon = line.find(":", start)
        if colon < 0:
            return
        key = _key_before(line, start, colon)
        start = colon + 1
        if not key:
            continue
        while start < len(line) and line[start].isspace():
            start += 1
        end = _end_of_string(line, start)
        if end is None and json_left and line[start:start + 1] in ("[", "{"):
            json_left -= 1
            end = _end_of_json(line, start)
        if end is None:
            end = line.find(",", start)
            end = len(line) if end < 0 else end
        yield key, line[start:end].strip()
        start = end + 1


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _key_before(line: str, start: int, colon: int) -> str:
    """The key that ends at this colon, "" if none does."""
    first = colon
    while first > start and (_is_word(line[first - 1]) or line[first - 1] in " -/"):
        first -= 1
    while first < colon and not _is_word(line[first]):
        first += 1
    return line[first:colon] if colon - first > 1 else ""


def _end_of_string(line: str, start: int) -> int | None:
    """Where the quoted, non-empty string that begins here ends, if a comma or the line's end follows it."""
    if line[start:start + 1] != '"':
        return None
    place = start + 1
    while found := QUOTE_OR_ESCAPE.search(line, place):
        if found[0] == "\\":
            place = found.end() + 1
            continue
        end = found.end()
        return end if end - start > 2 and (end == len(line) or line[end] == ",") else None
    return None


def _end_of_json(line: str, start: int) -> int | None:
    """Where an unquoted JSON list or map ends (Civitai writes such), if a comma or the line's end follows it."""
    try:
        _, end = json.JSONDecoder().raw_decode(line, start)
    except (ValueError, RecursionError):
        return None
    return end if end == len(line) or line[end] == "," else None


def _unquote(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value


def _prompts(lines: list[str]) -> tuple[str, str]:
    prompt: list[str] = []
    negative: list[str] = []
    target = prompt
    for line in (line.strip() for line in lines):
        if target is prompt and line.startswith(NEGATIVE):
            target, line = negative, line[len(NEGATIVE):].strip()
        target.append(line)
    return "\n".join(prompt), "\n".join(negative)


# ---- what a text means by saying nothing

DEFAULTS: tuple[tuple[str, Any], ...] = (
    ("Clip skip", "1"), ("Hires resize-1", 0), ("Hires resize-2", 0), ("Hires sampler", "Use same sampler"),
    ("Hires schedule type", "Use same scheduler"), ("Hires checkpoint", "Use same checkpoint"), ("Hires prompt", ""),
    ("Hires negative prompt", ""), ("Mask mode", "Inpaint masked"), ("Masked content", "original"),
    ("Inpaint area", "Whole picture"), ("Masked area padding", 32), ("RNG", "GPU"), ("Schedule type", "Automatic"),
    ("Schedule max sigma", 0), ("Schedule min sigma", 0), ("Schedule rho", 0), ("VAE Encoder", "Full"), ("VAE Decoder", "Full"),
    ("FP8 weight", "Disable"), ("Refiner switch by sampling steps", False),
)


def with_defaults(parsed: Parsed) -> dict[str, Any]:
    """All that A1111 reports for a text (/png-info `parameters`): prompts, the labels found, and the ones it takes as given."""
    values: dict[str, Any] = {"Prompt": parsed.prompt, "Negative prompt": parsed.negative_prompt, **parsed.fields}
    for key, value in DEFAULTS:
        values.setdefault(key, value)
    if values["FP8 weight"] != "Disable":
        values.setdefault("Cache FP16 weight for LoRA", False)
    if _is_weighted(parsed.prompt) or _is_weighted(parsed.negative_prompt):
        values.setdefault("Emphasis", "Original")
    return values


def _is_weighted(prompt: str) -> bool:
    try:
        return any(piece.weight != 1 and piece != grammar.BREAK for piece in grammar.attention(prompt))
    except PromptError:                                     # too long to be used at all
        return False


# ---- from labels to fields

TAKEN_AS_GIVEN: Mapping[str, Any] = {"clip_skip": 1, "randn_source": "NV", "schedule_rho": 0.0, "schedule_sigma_min": 0.0,
                                     "schedule_sigma_max": 0.0, "scheduler": "Automatic", "refiner": "",
                                     "prompt_2": "", "negative_prompt_2": "",
                                     **{name: getattr(Request, name) for name in (
                                         "schedule_alpha", "schedule_beta", "schedule_levels", "uni_pc_variant", "uni_pc_skip_type",
                                         "uni_pc_order", "uni_pc_lower_order_final")}}


TOLD = frozenset({"Version", "User", "Model hash", "VAE hash", "TI hashes", "Template", "Negative Template", "Template 2",
                  "Negative Template 2"})                   # facts beside the request
NOT_PAIRS = frozenset({"prompt", "negative_prompt", "sampler", "scheduler"})


def fields_of(parsed: Parsed, *, defaults: bool = False) -> dict[str, Any]:
    """Request fields that the text gives, each within its limits. defaults: also those that a text means by saying nothing.

    `checkpoint` is "name [hash]" as far as the text knows it. A value that does not fit is left out; `leftovers` names it.
    """
    values = {"prompt": parsed.prompt, "negative_prompt": parsed.negative_prompt, **_translated(parsed)[0]}
    return {**TAKEN_AS_GIVEN, **values} if defaults else values


def init_fields_of(parsed: Parsed) -> dict[str, Any]:
    """InitImage fields that the text gives; {} for a picture that began from noise."""
    return init_text.fields_of(parsed.fields)


def leftovers(parsed: Parsed) -> dict[str, str]:
    """Labels that became no field of a Request, with their values: extensions' pairs, and what did not fit."""
    used = _translated(parsed)[1] | TOLD
    return {key: value for key, value in parsed.fields.items() if key not in used}


def _translated(parsed: Parsed) -> tuple[dict[str, Any], set[str]]:
    """(fields, labels that they came from)."""
    values: dict[str, Any] = {}
    used: set[str] = set()
    for row in parameters.PARAMETERS:
        for label in (row.infotext, *row.also):
            text = parsed.fields.get(label, parsed.raw.get(label))
            if not label or text is None or row.field in NOT_PAIRS:
                continue
            try:
                value = parameters.coerce(row, text)
                parameters.check_value(row, value)
            except WebUIError:
                continue
            values[row.field] = value
            used |= {label, f"{label}-1", f"{label}-2"}
    if values.get("randn_source") == "GPU":
        values["randn_source"] = "NV"
    _translate_sampler(parsed.raw, values, used)
    checkpoint = " ".join(part for part in (values.get("checkpoint", ""), _bracketed(parsed.raw.get("Model hash", ""))) if part)
    if checkpoint:
        values["checkpoint"] = checkpoint.strip("[]") if checkpoint.startswith("[") else checkpoint
    return values, used


def _bracketed(text: str) -> str:
    return f"[{text}]" if text and text.isalnum() else ""


def _translate_sampler(raw: Mapping[str, str], values: dict[str, Any], used: set[str]) -> None:
    name, schedule = raw.get("Sampler", ""), raw.get("Schedule type", "")
    if not name:
        return
    try:
        values["sampler"], values["scheduler"] = catalogue.resolve(name, schedule)
    except WebUIError:
        return
    used |= {"Sampler", "Schedule type"}
