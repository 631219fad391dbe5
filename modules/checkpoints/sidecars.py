"""What people put beside a model file: a configuration (NAME.yaml), their own notes (NAME.json), a preview picture. Nothing here runs.

Read anew each time, since people change them while Easel runs; whatever cannot be read counts as not there.
"""
from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

LONGEST = 1 << 20                                           # bytes looked at
PREVIEWS = tuple(f"{kind}.{ending}" for ending in ("png", "jpg", "jpeg", "webp") for kind in (".preview", ""))
LINE = re.compile(r"(?P<indent> *)(?P<item>- +)?(?P<key>[A-Za-z_][\w.-]{0,99}) *:(?: +(?P<value>[^ ].*))?")
NUMBERS = MappingProxyType({                                # where the configurations of the published models say what no tensor tells
    "model.params.linear_start": "easel.beta_start", "model.params.linear_end": "easel.beta_end",
    "model.params.scale_factor": "easel.scale_factor",
    "model.params.unet_config.params.num_heads": "easel.heads", "model.params.unet_config.params.num_head_channels": "easel.head_dim",
    "model.params.network_config.params.num_heads": "easel.heads", "model.params.network_config.params.num_head_channels": "easel.head_dim",
})
WHOLE = ("easel.heads", "easel.head_dim")
SCALINGS = MappingProxyType({"EpsScaling": "eps", "VScaling": "v", "VScalingWithEDMcNoise": "v", "EDMScaling": "edm"})
SCALING = "model.params.denoiser_config.params.scaling_config.target"       # as the SDXL trainer writes it


def yaml_hints(model: Path) -> dict[str, str]:
    """What NAME.yaml says: "modelspec.prediction_type", "easel.beta_start", "easel.beta_end", "easel.scale_factor", "easel.heads" or
    "easel.head_dim"; {} where there is none."""
    found: dict[str, str] = {}
    for path, value in _scalars(_text(beside(model, ".yaml"))):
        if path.rsplit(".", 1)[-1] == "parameterization" and value in ("v", "eps", "x0"):
            found["modelspec.prediction_type"] = value
        if path == SCALING and value.rsplit(".", 1)[-1] in SCALINGS:
            found["modelspec.prediction_type"] = SCALINGS[value.rsplit(".", 1)[-1]]
        name = NUMBERS.get(path, "")
        if name and _number(value) > 0:
            found[name] = str(int(_number(value))) if name in WHOLE else value
    return found


def json_hints(model: Path) -> dict[str, str]:
    """The entries "easel.*" of NAME.json, with "easel.prediction" under its name in metadata; {} where there are none."""
    found = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in notes(model).items()
             if name.startswith("easel.") and isinstance(value, (str, int, float))}
    prediction = found.pop("easel.prediction", "")
    return found | ({"modelspec.prediction_type": prediction} if prediction else {})


def notes(model: Path) -> dict[str, Any]:
    """The table in NAME.json, as A1111's "edit metadata" writes it ("description", "activation text", "preferred weight", "notes", "vae",
    "sd version"); {} where there is none."""
    try:
        found = json.loads(_text(beside(model, ".json")) or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def note(model: Path, name: str) -> str:
    """One text of NAME.json; "" where it is not there."""
    value = notes(model).get(name)
    return value if isinstance(value, str) else ""


def description(model: Path) -> str:
    """What NAME.json calls the description, else the text of NAME.txt or NAME.description.txt."""
    texts = (note(model, "description"), *(_text(beside(model, ending)).strip() for ending in (".txt", ".description.txt")))
    return next(filter(None, texts), "")


def preview(model: Path) -> Path | None:
    """The picture beside the model: NAME.preview.png, NAME.png, or the same as .jpg or .webp."""
    return next((path for path in (beside(model, ending) for ending in PREVIEWS) if os.path.isfile(path)), None)


def beside(model: Path, ending: str) -> Path:
    """The file of the model's name with another ending; a folder's name has none of its own."""
    return model.parent / f"{model.name if os.path.isdir(model) else model.stem}{ending}"


def _text(path: Path) -> str:
    """An ordinary file's text; "" for what is none."""
    try:
        if not os.path.isfile(path):
            return ""
        with open(path, "rb") as file:
            return file.read(LONGEST).decode("utf-8-sig")
    except (OSError, ValueError):
        return ""


def _scalars(text: str) -> Iterator[tuple[str, str]]:
    """(dotted path, value) of each `key: value` line of a YAML file; lists, anchors and blocks of text are passed over."""
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = LINE.fullmatch(line.rstrip())
        if not match:
            continue
        indent = len(match["indent"]) + len(match["item"] or "")
        while above and above[-1][0] >= indent:
            above.pop()
        path = ".".join([*(key for _, key in above), match["key"]])
        value = re.sub(r"\s+#.*", "", match["value"] or "").strip().strip("\"'")
        if value and not value.startswith("#"):
            yield path, value
        else:
            above.append((indent, match["key"]))
        if len(above) > 100:
            return


def _number(text: str) -> float:
    """The number that a text is; NaN for a text that is none."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
