"""The one table of what a request can say: field, label, range, and how A1111's texts, API and options call it.

Page, API, command line and infotext all read PARAMETERS. Defaults stand in `Request` alone; `api_default` only where A1111's
API has another one. `coerce` takes a value as a face got it, `normal` gives equal requests one form, `check` refuses the rest.
"""
from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from modules.core.errors import PromptError, RequestError
from modules.pipeline.init_parameters import INIT as INIT
from modules.pipeline.init_parameters import size_like as size_like
from modules.pipeline.parameter import Kind, Parameter
from modules.pipeline.request import InitImage, Request
from modules.sampling.levels import levels_of

MAX_SEED = 2**64 - 1
MAX_TEXT = 64 * 1024                                        # bytes of UTF-8 in one prompt
MAX_NAME = 1024                                             # bytes of UTF-8 in a name
MAX_EXTRA = 256 * 1024                                      # bytes of JSON in `extra` and in `notes`
MAX_PIXELS_AT_ONCE = 2**26                                  # width * height * batch_size
MAX_PIXEL_STEPS = 10**12                                    # width * height * batch_size * n_iter * steps
SEED_RESIZE = ("seed_resize_from_w", "seed_resize_from_h")


def _row(field: str, label: str, kind: Kind, section: str, help: str, **more: Any) -> Parameter:
    return Parameter(field=field, label=label, kind=kind, section=section, help=help, **more)


PARAMETERS: tuple[Parameter, ...] = (
    _row("prompt", "Prompt", "text", "prompt", "What the picture shows.", infotext="Prompt", api_name="prompt"),
    _row("negative_prompt", "Negative prompt", "text", "prompt", "What the picture should not show.",
         infotext="Negative prompt", api_name="negative_prompt"),
    _row("prompt_2", "Second prompt", "text", "prompt", "What SDXL's second text encoder reads; empty = the prompt.",
         infotext="Prompt 2", api_name="prompt_2"),
    _row("negative_prompt_2", "Second negative prompt", "text", "prompt",
         "What SDXL's second text encoder reads as the negative prompt; empty = the negative prompt.",
         infotext="Negative prompt 2", api_name="negative_prompt_2"),
    _row("styles", "Styles", "list", "prompt", "Named pieces of prompt that are added to it.",
         choices="styles", api_name="styles"),
    _row("steps", "Sampling steps", "int", "sampling", "How often the picture is refined; more is slower.",
         infotext="Steps", minimum=1, maximum=1000, shown=(1, 150), step=1, api_name="steps", api_default=50),
    _row("sampler", "Sampling method", "choice", "sampling", "How each step is taken.",
         infotext="Sampler", choices="samplers", api_name="sampler_name", api_default="Euler"),
    _row("scheduler", "Schedule type", "choice", "sampling", "How the noise levels of the steps are spaced.",
         infotext="Schedule type", choices="schedulers", api_name="scheduler"),
    _row("cfg_scale", "CFG scale", "float", "sampling", "How strongly the picture follows the prompt; 1 = no guidance.",
         infotext="CFG scale", minimum=-100, maximum=1000, shown=(1, 30), step=0.5, api_name="cfg_scale"),
    _row("seed", "Seed", "int", "seed", "Which noise to begin with; the same seed gives the same picture, -1 picks one.",
         infotext="Seed", minimum=-1, maximum=MAX_SEED, step=1, api_name="seed"),
    _row("subseed", "Variation seed", "int", "seed", "The other noise that is mixed in; -1 picks one.",
         infotext="Variation seed", minimum=-1, maximum=MAX_SEED, step=1, api_name="subseed"),
    _row("subseed_strength", "Variation strength", "float", "seed", "How much of the variation seed is mixed in.",
         infotext="Variation seed strength", minimum=0, maximum=1, shown=(0, 1), step=0.01, api_name="subseed_strength"),
    _row("seed_resize_from_w", "Resize seed from width", "int", "seed", "Keeps the composition of this width; 0 = off.",
         infotext="Seed resize from-1", minimum=-1, maximum=8192, shown=(0, 2048), step=8, api_name="seed_resize_from_w", api_default=-1),
    _row("seed_resize_from_h", "Resize seed from height", "int", "seed", "Keeps the composition of this height; 0 = off.",
         infotext="Seed resize from-2", minimum=-1, maximum=8192, shown=(0, 2048), step=8, api_name="seed_resize_from_h", api_default=-1),
    _row("width", "Width", "int", "size", "Pixels across; rounded down to a multiple of 8.",
         infotext="Size-1", minimum=8, maximum=8192, shown=(64, 2048), step=8, api_name="width"),
    _row("height", "Height", "int", "size", "Pixels down; rounded down to a multiple of 8.",
         infotext="Size-2", minimum=8, maximum=8192, shown=(64, 2048), step=8, api_name="height"),
    _row("batch_size", "Batch size", "int", "batch", "Pictures computed at once; needs more memory.",
         also=("Batch size",), minimum=1, maximum=64, shown=(1, 8), step=1, api_name="batch_size"),
    _row("n_iter", "Batch count", "int", "batch", "Batches computed one after the other.",
         minimum=1, maximum=1000, shown=(1, 100), step=1, api_name="n_iter"),
    _row("checkpoint", "Checkpoint", "choice", "model", "The model that draws.",
         infotext="Model", choices="checkpoints", setting="sd_model_checkpoint"),
    _row("vae", "VAE", "choice", "model", "The part that turns the model's result into pixels; None = the checkpoint's own.",
         infotext="VAE", choices="vaes", setting="sd_vae"),
    _row("prediction", "Prediction", "choice", "model", "What the network predicts; Auto reads it from the file.",
         choices=("Auto", "eps", "v", "x0", "edm")),
    _row("refiner", "Refiner", "choice", "model", "A checkpoint that takes over for the last steps; empty = none.",
         infotext="Refiner", choices="refiners", api_name="refiner_checkpoint"),
    _row("refiner_switch_at", "Refiner switch at", "float", "model", "How far the picture is when the refiner takes over.",
         infotext="Refiner switch at", minimum=0, maximum=1, shown=(0.01, 1), step=0.01, api_name="refiner_switch_at"),
    _row("clip_skip", "Clip skip", "int", "model", "How many of the text encoder's last layers to leave out, counted from 1.",
         infotext="Clip skip", minimum=1, maximum=12, shown=(1, 12), step=1, setting="CLIP_stop_at_last_layers"),
    _row("eta", "Eta", "float", "sampler", "How much fresh noise a step adds, where the sampler knows it; empty = its own.",
         infotext="Eta", also=("Eta DDIM",), minimum=0, maximum=10, shown=(0, 1), step=0.01, api_name="eta"),
    _row("s_churn", "Sigma churn", "float", "sampler", "Noise added before a step, where the sampler knows it.",
         infotext="Sigma churn", minimum=0, maximum=1000, shown=(0, 100), step=0.01, api_name="s_churn", setting="s_churn"),
    _row("s_tmin", "Sigma tmin", "float", "sampler", "Lowest noise level at which churn is added.",
         infotext="Sigma tmin", minimum=0, maximum=1e6, shown=(0, 10), step=0.01, api_name="s_tmin", setting="s_tmin"),
    _row("s_tmax", "Sigma tmax", "float", "sampler", "Highest noise level at which churn is added; 0 = no limit.",
         infotext="Sigma tmax", minimum=0, maximum=1e6, shown=(0, 999), step=0.01, api_name="s_tmax", setting="s_tmax"),
    _row("s_noise", "Sigma noise", "float", "sampler", "Strength of the noise that a step adds.",
         infotext="Sigma noise", minimum=0, maximum=100, shown=(0, 1.1), step=0.001, api_name="s_noise", setting="s_noise"),
    _row("eta_noise_seed_delta", "Eta noise seed delta", "int", "sampler", "Added to the seed for every draw after the first (ENSD).",
         infotext="ENSD", minimum=-MAX_SEED, maximum=MAX_SEED, step=1, setting="eta_noise_seed_delta"),
    _row("randn_source", "Random number generator", "choice", "sampler", "NV gives one noise on every device.",
         infotext="RNG", choices=("NV", "CPU", "GPU"), setting="randn_source"),
    _row("emphasis", "Emphasis mode", "choice", "prompt", "How (words:1.2) change the weight of the text.",
         infotext="Emphasis", choices=("Original", "No norm", "Ignore", "None"), setting="emphasis"),
    _row("comma_padding_backtrack", "Prompt word wrap length limit", "int", "prompt",
         "How many tokens back a long prompt may be cut at a comma.", minimum=0, maximum=74, step=1, setting="comma_padding_backtrack"),
    _row("use_old_scheduling", "Old prompt editing timelines", "bool", "prompt",
         "Reads [a:b:n] as A1111 did before 1.6: below 1 a share of the steps, else a step.",
         infotext="Old prompt editing timelines", setting="use_old_scheduling"),
    _row("pad_cond_uncond", "Pad prompt and negative prompt", "bool", "prompt",
         "Fills the shorter of the two with empty chunks, so that both go through the network together.",
         infotext="Pad conds", setting="pad_cond_uncond"),
    _row("pad_cond_uncond_v0", "Pad the negative prompt (old)", "bool", "prompt",
         "Brings the negative prompt to the prompt's length as A1111 did before 1.6.",
         infotext="Pad conds v0", setting="pad_cond_uncond_v0"),
    _row("schedule_rho", "Schedule rho", "float", "sampler", "Curvature of the noise levels; 0 = the schedule's own.",
         infotext="Schedule rho", minimum=0, maximum=1000, step=0.01, setting="rho"),
    _row("schedule_sigma_min", "Schedule min sigma", "float", "sampler", "Lowest noise level; 0 = the model's own.",
         infotext="Schedule min sigma", minimum=0, maximum=1e6, step=0.001, setting="sigma_min"),
    _row("schedule_sigma_max", "Schedule max sigma", "float", "sampler", "Highest noise level; 0 = the model's own.",
         infotext="Schedule max sigma", minimum=0, maximum=1e6, step=0.001, setting="sigma_max"),
    _row("schedule_alpha", "Beta schedule alpha", "float", "sampler", "How many noise levels of Beta lie high; 1 = evenly.",
         infotext="Beta schedule alpha", minimum=0.01, maximum=100, step=0.01, setting="beta_dist_alpha"),
    _row("schedule_beta", "Beta schedule beta", "float", "sampler", "How many noise levels of Beta lie low; 1 = evenly.",
         infotext="Beta schedule beta", minimum=0.01, maximum=100, step=0.01, setting="beta_dist_beta"),
    _row("schedule_levels", "Noise levels", "str", "sampler", "Levels of your own, falling, such as 14.6, 7.3, 2.1, 0.",
         infotext="Schedule levels"),
    _row("uni_pc_variant", "UniPC variant", "choice", "sampler", "Which of its two factors.",
         infotext="UniPC variant", choices=("bh1", "bh2"), setting="uni_pc_variant"),
    _row("uni_pc_skip_type", "UniPC skip type", "choice", "sampler", "In what the steps of UniPC are even.",
         infotext="UniPC skip type", choices=("time_uniform", "time_quadratic", "logSNR"), setting="uni_pc_skip_type"),
    _row("uni_pc_order", "UniPC order", "int", "sampler", "How many guesses a step of UniPC looks back on.",
         infotext="UniPC order", minimum=1, maximum=50, step=1, setting="uni_pc_order"),
    _row("uni_pc_lower_order_final", "UniPC lower order final", "bool", "sampler", "Whether the last steps of UniPC look back on fewer.",
         infotext="UniPC lower order final", setting="uni_pc_lower_order_final"),
    _row("discard_penultimate_sigma", "Discard penultimate sigma", "bool", "sampler", "Leaves out the last noise level above zero.",
         infotext="Discard penultimate sigma", setting="always_discard_next_to_last_sigma"),
    _row("sgm_noise_multiplier", "SGM noise multiplier", "bool", "sampler", "Scales the first noise as the SGM code does.",
         infotext="SGM noise multiplier", setting="sgm_noise_multiplier"),
    _row("s_min_uncond", "Negative guidance minimum sigma", "float", "sampler",
         "Below this noise level every second step leaves the negative prompt out, which is faster; 0 = never.",
         infotext="NGMS", minimum=0, maximum=1e6, shown=(0, 15), step=0.01, api_name="s_min_uncond", setting="s_min_uncond"),
    _row("s_min_uncond_all", "Negative guidance minimum sigma all steps", "bool", "sampler", "Leaves it out in all of those steps.",
         infotext="NGMS all steps", setting="s_min_uncond_all"),
    _row("skip_early_cond", "Ignore negative prompt during early sampling", "float", "sampler",
         "Leaves the negative prompt out in this share of the first steps.",
         infotext="Skip Early CFG", minimum=0, maximum=1, shown=(0, 1), step=0.01, setting="skip_early_cond"),
    _row("token_merging_ratio", "Token merging ratio", "float", "sampler",
         "Merges like cells before they look at each other; faster and rougher.",
         infotext="Token merging ratio", minimum=0, maximum=0.9, shown=(0, 0.9), step=0.1, setting="token_merging_ratio"),
    _row("deterministic", "Deterministic", "bool", "batch", "One picture at a time, so that it has the same bits in any batch."),
    _row("image_format", "Image format", "choice", "saving", "File format of the pictures.",
         choices=("png", "jpg", "webp"), setting="samples_format"),
)


def by_field(name: str) -> Parameter:
    """The row of a field of Request or InitImage. Raises RequestError if there is none."""
    for row in (*PARAMETERS, *INIT):
        if row.field == name:
            return row
    raise RequestError(f"A request has no field “{name}”.", field=name)


def by_api_name(name: str) -> Parameter | None:
    """The row of a field of /sdapi/v1/txt2img, or None."""
    return next((row for row in PARAMETERS if row.api_name == name and name), None)


def by_setting(key: str) -> Parameter | None:
    """The row whose value this option carries, or None."""
    return next((row for row in PARAMETERS if row.setting == key and key), None)


def number(value: float) -> str:
    """A number as text, by one rule on every road: 7 and 7.0 -> `7`, 7.5 -> `7.5`."""
    return str(plain_number(value)) if math.isfinite(value) else str(value)


def plain_number(value: float) -> float:
    """7.0 -> 7; what is no whole number, or too large to be exact, stays."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


# ---- values as the faces get them

def coerce(parameter: Parameter, value: Any) -> Any:
    """A value from JSON, a form or a command line as the field's type.

    Numeric strings are taken for numbers, numbers for strings, whole floats for integers; booleans for numbers, fractions for
    integers and None (where a field has a value) raise RequestError naming the field. Ranges are the business of `check`.
    """
    if value is None and parameter.field == "eta":
        return None
    kind = parameter.kind
    taken: Any = None
    if kind == "int":
        taken = _integer(value)
    elif kind == "float":
        taken = _float(value)
    elif kind == "bool":
        taken = _bool(value)
    elif kind == "list":
        taken = _names(value)
    elif isinstance(value, str):
        taken = value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        taken = number(value)
    if taken is None:
        raise RequestError(f"{parameter.label} must be {_WANTED[kind]}, not {_show(value)}.", field=parameter.field)
    return taken


_WANTED: Mapping[str, str] = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "text": "text",
    "choice": "a name", "list": "a list of names",
}


def _show(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to print very large ones
        return "a very large number"
    text = repr(value) if isinstance(value, str | int | float) or value is None else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def _integer(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        text = value.strip()
        if text.removeprefix("-").removeprefix("+").isdecimal() and text.isascii() and len(text) <= 64:
            return int(text)
        value = _float(text)
    return int(value) if isinstance(value, float) and value.is_integer() else None


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and (len(value) > 64 or not value.isascii() or "_" in value):
        return None
    try:
        taken = float(value)
    except (ValueError, OverflowError):
        return None
    return taken if math.isfinite(taken) else None


def _bool(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return bool(value) if value in (0, 1) else None
    if isinstance(value, str):
        return {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}.get(
            value.strip().lower())
    return None


def _names(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, str):
        return (value,) if value else ()
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(value)
    return None


def init_with(values: Mapping[str, Any], settings: Mapping[str, Any], *, api: bool = False) -> InitImage:
    """An InitImage of field values as a face got them; what is not named comes from the settings as far as these know it.

    api: the rest has the API's defaults where those differ. Raises RequestError naming the field.
    """
    fields = {name: values[name] for name in ("image", "mask", "depth") if values.get(name)}
    for row in INIT:
        if values.get(row.field) is not None:
            fields[row.field] = coerce(row, values[row.field])
        elif row.setting in settings:
            fields[row.field] = coerce(row, settings[row.setting])
        elif api and row.api_default is not None:
            fields[row.field] = row.api_default
    return InitImage(**fields)


# ---- one form for equal requests, and the limits

def normal(request: Request) -> Request:
    """The same request in the one form that all roads share: RNG `GPU` is NV, a seed resize that is off is 0, a refiner that is none
    switches nowhere, a list of noise levels has as many steps as it has, floats are floats. Raises ScheduleError for levels that are no
    numbers."""
    changes: dict[str, Any] = {}
    if request.randn_source == "GPU":
        changes["randn_source"] = "NV"
    if any(_is_int(getattr(request, name)) and getattr(request, name) <= 0 for name in SEED_RESIZE):
        changes.update(dict.fromkeys(SEED_RESIZE, 0))
    if request.schedule_levels.strip():
        changes["steps"] = max(1, len(levels_of(request.schedule_levels)) - 1)
    if not request.refiner:
        changes["refiner_switch_at"] = Request.refiner_switch_at
    for row in PARAMETERS:
        value = changes.get(row.field, getattr(request, row.field))
        if row.kind == "float" and _is_int(value) and abs(value) < 2**53:
            changes[row.field] = float(value)
    if request.init is not None:
        changes["init"] = _normal_init(request.init)
    return dataclasses.replace(request, **changes)


def _normal_init(init: InitImage) -> InitImage:
    """What only a mask gives a meaning has its default where there is none; floats are floats."""
    changes: dict[str, Any] = {}
    for row in INIT:
        value = getattr(init, row.field)
        if row.section == "mask" and not init.mask:
            changes[row.field] = getattr(InitImage(), row.field)
        elif row.kind == "float" and _is_int(value):
            changes[row.field] = float(value)
    return dataclasses.replace(init, **changes)


def check(request: Request) -> None:
    """Refuses what cannot be computed, before anything is queued or allocated. Raises RequestError naming the first such field.

    Names of samplers, checkpoints and other catalogues are not looked up here.
    """
    for row in PARAMETERS:
        check_value(row, getattr(request, row.field))
    if request.init is not None:
        _check_init(request.init)
    if 0 < request.schedule_sigma_max <= request.schedule_sigma_min:
        raise RequestError(f"Schedule min sigma ({request.schedule_sigma_min:g}) must be below Schedule max sigma "
                           f"({request.schedule_sigma_max:g}).", field="schedule_sigma_min")
    _check_json("extra", request.extra)
    _check_json("notes", request.notes)
    at_once = request.width * request.height * request.batch_size
    if at_once > MAX_PIXELS_AT_ONCE:
        raise RequestError(f"{request.batch_size} × {request.width} × {request.height} pixels at once are more than "
                           f"{MAX_PIXELS_AT_ONCE}; choose a smaller size or batch.",
                           field="batch_size" if request.batch_size > 1 else "width")
    if at_once * request.n_iter * request.steps > MAX_PIXEL_STEPS:
        raise RequestError(f"{request.n_iter} batches of {request.batch_size} pictures with {request.steps} steps are more work than "
                           f"one job may be; ask for fewer pictures or steps.", field="n_iter")


def _check_init(init: InitImage) -> None:
    for row in INIT:
        check_value(row, getattr(init, row.field))
    for name in ("image", "mask", "depth"):
        digest = getattr(init, name)
        if not isinstance(digest, str) or (digest and not (len(digest) == 64 and set(digest) <= set("0123456789abcdef"))):
            raise RequestError(f"“{name}” names a picture by 64 hexadecimal digits, not by {_show(digest)}.", field=name)
    if not init.image:
        raise RequestError("There is no picture to begin from; give one.", field="image")
    colour = init.img2img_background_color
    if not (len(colour) == 7 and colour[0] == "#" and set(colour[1:].lower()) <= set("0123456789abcdef")):
        raise RequestError(f"Background colour must be like #ffffff, not {_show(colour)}.", field="img2img_background_color")


def check_value(parameter: Parameter, value: Any) -> None:
    """Refuses a value of the wrong type, outside the field's limits or not among its fixed choices. Raises RequestError."""
    kind, name = parameter.kind, parameter.field
    if name == "eta" and value is None:
        return
    if not _has_type(kind, value):
        raise RequestError(f"{parameter.label} must be {_WANTED[kind]}, not {_show(value)}.", field=name)
    if kind in ("int", "float"):
        _check_range(parameter, value)
    elif kind == "list":
        if len(value) > 100:
            raise RequestError(f"{parameter.label} has {len(value)} entries; at most 100 fit.", field=name)
        for item in value:
            if not isinstance(item, str):
                raise RequestError(f"{parameter.label} must be {_WANTED[kind]}.", field=name)
            check_text(item, parameter, MAX_NAME)
    elif kind != "bool":
        check_text(value, parameter, MAX_TEXT if kind == "text" else MAX_NAME)
        if isinstance(parameter.choices, tuple) and value not in parameter.choices:
            raise RequestError(f"{parameter.label} must be one of {', '.join(parameter.choices)}, not {_show(value)}.", field=name)


def check_text(text: str, parameter: Parameter, limit: int) -> None:
    """Refuses more than `limit` bytes, a NUL, and half of a surrogate pair (no file can hold one). Raises RequestError."""
    error = PromptError if parameter.kind == "text" else RequestError
    if len(text) > limit:
        raise error(f"{parameter.label} is longer than {limit} bytes; shorten it.", field=parameter.field)
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as problem:
        raise error(f"{parameter.label} has half a character (a lone surrogate) at position {problem.start}; remove it.",
                    field=parameter.field) from None
    if size > limit:
        raise error(f"{parameter.label} is longer than {limit} bytes; shorten it.", field=parameter.field)
    if "\0" in text:
        raise error(f"{parameter.label} has a NUL character at position {text.index(chr(0))}; remove it.", field=parameter.field)


def _has_type(kind: Kind, value: Any) -> bool:
    if kind in ("int", "float"):
        return _is_int(value) or (kind == "float" and isinstance(value, float))
    return isinstance(value, {"bool": bool, "list": tuple}.get(kind, str))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_range(parameter: Parameter, value: float) -> None:
    low, high = parameter.minimum, parameter.maximum
    if isinstance(value, float) and not math.isfinite(value):
        raise RequestError(f"{parameter.label} must be a number, not {value}.", field=parameter.field)
    if low is not None and high is not None and not low <= value <= high:
        raise RequestError(f"{parameter.label} must lie from {number(low)} to {number(high)}, not {_show(value)}.", field=parameter.field)


def _check_json(name: str, values: Any) -> None:
    if not isinstance(values, Mapping):
        raise RequestError(f"“{name}” must be a map of names to values.", field=name)
    try:
        size = len(json.dumps(dict(values), allow_nan=False, ensure_ascii=False).encode("utf-8"))
    except (TypeError, ValueError, RecursionError):         # UnicodeEncodeError is a ValueError
        raise RequestError(f"“{name}” holds a value that JSON cannot carry; use texts, numbers, lists and maps.", field=name) from None
    if size > MAX_EXTRA:
        raise RequestError(f"“{name}” is larger than {MAX_EXTRA} bytes; send less.", field=name)
