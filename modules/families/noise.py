"""What a network predicts, its noise schedule and its latents' scale: from the user, from beside the tensors, or as its family has it."""
from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from modules.core.errors import CheckpointError
from modules.families.base import Weights
from modules.sampling.prediction import Kind, Prediction, continuous_alphas, scaled_linear_alphas, zero_terminal_snr

NO_HINTS: Mapping[str, str] = MappingProxyType({})
KINDS: Mapping[str, Kind] = MappingProxyType({
    "eps": "eps", "epsilon": "eps", "v": "v", "v_prediction": "v", "v-prediction": "v", "v_pred": "v",
    "x0": "x0", "sample": "x0", "edm": "edm",
})
V_NOISE = (0.002, 120.0)                                    # levels of "v" without indices, where the file names none
EDM_NOISE = (0.002, 80.0)                                   # of Playground 2.5, which predicts "edm"


def prediction_of(weights: Weights, hints: Mapping[str, str], *, kind: Kind = "eps",
                  alphas: Tensor | None = None) -> tuple[Prediction, str]:
    """The prediction and a word on where it comes from: "v (chosen)", "eps (guessed)".

    kind: the family's guess; alphas: its schedule (1000,), else that of Stable Diffusion. hints: "prediction" as the user chose it,
    "modelspec.prediction_type", "easel.zero_terminal_snr". Marker tensors of a file (v_pred, ztsnr, edm_vpred.*, edm_mean) come before
    the guess. Raises CheckpointError for an unknown kind.
    """
    found, source = prediction_kind(hints)
    if found is None:
        found, source = _marked(weights) or (kind, "guessed")
    levels = _continuous(weights, found)
    if levels:
        return Prediction(found, continuous_alphas(*levels), continuous=True), f"{found} ({source})"
    table = alphas_of(weights, told_alphas(hints) if alphas is None else told_alphas(hints, alphas))
    if "ztsnr" in weights or str(hints.get("easel.zero_terminal_snr", "")).lower() == "true":
        table = zero_terminal_snr(table)
    return Prediction(found, table), f"{found} ({source})"


def prediction_kind(hints: Mapping[str, str]) -> tuple[Kind | None, str]:
    """What the network predicts and who says so, "chosen" or "metadata"; None if nobody does. Raises CheckpointError."""
    for source, name in (("chosen", "prediction"), ("metadata", "modelspec.prediction_type")):
        said = hints.get(name, "").strip().lower()
        if said not in ("", "auto"):
            if said not in KINDS:
                raise CheckpointError(f"The prediction type {said[:40]!r} is not known; choose eps, v, x0 or edm.")
            return KINDS[said], source
    return None, ""


def _marked(weights: Weights) -> tuple[Kind, str] | None:
    if "edm_mean" in weights and "edm_std" in weights:
        return "edm", "marked in the file"
    if "v_pred" in weights or "edm_vpred.sigma_max" in weights:
        return "v", "marked in the file"
    return None


def _continuous(weights: Weights, kind: Kind) -> tuple[float, float] | None:
    """The least and the highest level of a model that is told levels and not indices."""
    if kind == "edm":
        return EDM_NOISE
    if "edm_vpred.sigma_max" not in weights:
        return None
    lowest, highest = (_number(weights, f"edm_vpred.sigma_{end}", least) for end, least in zip(("min", "max"), V_NOISE, strict=True))
    return (lowest, highest) if 0 < lowest < highest else V_NOISE


def told_alphas(hints: Mapping[str, str], otherwise: Tensor | None = None) -> Tensor:
    """The schedule whose first and last beta stand beside the file ("easel.beta_start", "easel.beta_end"), else the other one."""
    first, last = (_told(hints, f"easel.beta_{end}") for end in ("start", "end"))
    if 0 < first < last < 1:
        return scaled_linear_alphas(first, last)
    return scaled_linear_alphas() if otherwise is None else otherwise


def _told(hints: Mapping[str, str], name: str) -> float:
    """A number among the hints, nan for none."""
    try:
        return float(hints.get(name, "nan"))
    except ValueError:
        return math.nan


def alphas_of(weights: Weights, otherwise: Tensor) -> Tensor:
    """The schedule that the file carries, or the other where it carries none, in too few bits, or no falling one; (1000,) float32."""
    stored = weights.get("alphas_cumprod")
    if stored is None or str(stored.dtype) != "torch.float32" or stored.shape != (1000,) or stored.is_meta:
        return otherwise
    falling = bool(((stored > 0) & (stored < 1)).all()) and bool((stored.diff() < 0).all())      # false for NaN as well
    return stored if falling else otherwise


def scale_of(weights: Weights, hints: Mapping[str, str], otherwise: float) -> float:
    """What latents are multiplied by: the file's own number where it carries one in full, or one beside it, else the family's."""
    stored = weights.get("scale_factor")
    full = stored is not None and str(stored.dtype) == "torch.float32" and stored.numel() == 1
    scale = _number(weights, "scale_factor", math.nan) if full else math.nan
    if not 0 < scale < math.inf:
        scale = _told(hints, "easel.scale_factor")
    return scale if 0 < scale < math.inf else otherwise


def _number(weights: Weights, name: str, otherwise: float) -> float:
    stored = weights.get(name)
    return otherwise if stored is None or stored.is_meta or stored.numel() != 1 else float(stored)
