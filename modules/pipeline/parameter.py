"""What a table of parameters says about one field."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["int", "float", "bool", "str", "text", "choice", "list"]


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One field of Request or InitImage.

    infotext: A1111's label ("" = has none; `Size-1` = the first number of `Size`); also: labels that are read, too.
    minimum, maximum: the limits of `check`; shown: the narrower range of a slider; step: of that slider.
    choices: the catalogue's name ("samplers", "schedulers", "checkpoints", "vaes", "styles") or the values themselves.
    api_name: the field of /sdapi/v1 ("" = none); api_default: None = as in Request.
    setting: the option key that gives the default and that override_settings may carry ("" = none).
    """

    field: str
    label: str
    kind: Kind
    section: str
    help: str
    infotext: str = ""
    also: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    shown: tuple[float, float] | None = None
    step: float | None = None
    choices: str | tuple[str, ...] = ""
    api_name: str = ""
    api_default: Any = None
    setting: str = ""
