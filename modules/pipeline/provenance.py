"""The record inside every picture: versioned JSON with all that made it, for any text at all. `replay` makes it again from this.

No time, duration, job id, path or count of threads stands in it, so the same request gives the same bytes from every face.
"""
from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from modules.core.errors import ImageMetaError
from modules.pipeline import parameters
from modules.pipeline.request import Request

FORMAT = 1                                                  # grows when a reader of the old form would misread the new one
KEYWORD = "easel"
MAX_RECORD = 2_500_000                                      # bytes of UTF-8
TEXTS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")
SURROGATE = re.compile("[\ud800-\udfff]")


def record(request: Request, *, index: int, seed: int, subseed: int, prompt: str, negative_prompt: str,
           prompt_2: str | None = None, negative_prompt_2: str | None = None,
           model: Mapping[str, Any], vae: Mapping[str, Any] | None = None, refiner: Mapping[str, Any] | None = None,
           files: Sequence[Mapping[str, Any]] = (),
           libraries: Mapping[str, str], device: str, dtype: str, layers: Mapping[str, Any] | str,
           pixels: Mapping[str, Any], complete: bool = True) -> dict[str, Any]:
    """What made this picture, as plain JSON values.

    request: the job's, with its seeds drawn and its names resolved. index, seed, subseed, prompt, negative_prompt: this picture's.
    model: {name, sha256, family, prediction}; vae: {name, sha256}, None = the checkpoint's own; refiner: {name, sha256}, None = none;
    files: other files put on the model, {kind, name, sha256, weight}. layers: the mode of the layer implementations and the digest of
    their table.
    pixels: {sha256, width, height} of the decoded picture.
    """
    texts = {"prompt": prompt, "negative_prompt": negative_prompt, "prompt_2": prompt_2, "negative_prompt_2": negative_prompt_2}
    picture: dict[str, Any] = {"index": index, "seed": seed, "subseed": subseed, "complete": complete}
    picture |= {field: text for field, text in texts.items() if text is not None and text != getattr(request, field)}
    return _plain({
        KEYWORD: FORMAT, "request": parameters.normal(request).to_json(), "picture": picture, "model": model, "vae": vae,
        **({"refiner": refiner} if refiner else {}),
        "files": list(files), "libraries": libraries, "device": device, "dtype": dtype, "layers": layers, "pixels": pixels,
    })


def write(record: Mapping[str, Any]) -> str:
    """The record as one line of canonical JSON: sorted keys, no spaces, one form for a number. Encodes as UTF-8 whatever it holds."""
    text = json.dumps(_plain(record), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def read(text: str) -> dict[str, Any]:
    """The record that `write` wrote. Raises ImageMetaError for what is none, is too large, or comes from a later Easel."""
    if len(text) > MAX_RECORD:
        raise ImageMetaError(f"The picture's record is larger than {MAX_RECORD} bytes and is not read.")
    try:
        values = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ImageMetaError("The picture's record is not valid JSON; the file was changed by another program.") from error
    if not isinstance(values, dict) or not isinstance(values.get(KEYWORD), int):
        raise ImageMetaError("The picture's record is not one of Easel's.")
    if values[KEYWORD] != FORMAT:
        raise ImageMetaError(f"The picture's record has format {str(values[KEYWORD])[:20]} of another version; this one reads {FORMAT}.")
    for part in ("request", "picture", "model", "pixels"):
        if not isinstance(values.get(part), dict):
            raise ImageMetaError(f"The picture's record has no part “{part}”; the file was changed by another program.")
    return values


def request_of(record: Mapping[str, Any]) -> Request:
    """The job's request, checked against today's limits. Raises ImageMetaError or RequestError."""
    try:
        request = Request.from_json(record["request"])
    except (TypeError, KeyError) as error:
        raise ImageMetaError("The picture's record holds no request that can be read.") from error
    parameters.check(request)
    return parameters.normal(request)


def alone(record: Mapping[str, Any]) -> Request:
    """A request for this one picture: its own seeds, its prompt as it was after styles, one picture in one batch."""
    request, picture = request_of(record), record["picture"]
    single = dataclasses.replace(
        request, batch_size=1, n_iter=1, styles=(), seed=picture.get("seed", request.seed), subseed=picture.get("subseed", request.subseed),
        **{field: picture.get(field, getattr(request, field)) for field in TEXTS})
    parameters.check(single)
    return single


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _plain(value: Any) -> Any:
    """Tuples as lists, maps as dicts, 7.0 as 7: one form for equal values."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return parameters.plain_number(value)
    return value
