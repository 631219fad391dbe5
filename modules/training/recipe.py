"""A recipe: everything that a training run depends on, read from a TOML file and checked before anything is computed."""
from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from modules.core.errors import NotFoundError, SettingsError


def _within(default: Any, low: float | None = None, high: float = math.inf, among: tuple[Any, ...] = ()) -> Any:
    """A field with a default and what its values may be: from low to high (each item, for a list), or one of a few."""
    return field(default=default, metadata={"low": low, "high": high, "among": among})


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which pictures, and how they are shown. folder is seen from the recipe's own folder."""

    folder: str = ""                                        # "" = the caller brings the pictures
    size: int = _within(128, 8, 4096)                       # pixels, edge of the square whose area a bucket has
    buckets: bool = True                                    # keep the shape of a picture as nearly as possible
    crop: int = _within(0, 0, 4096)                         # pixels, edge of a square cut at a random place; 0 = the whole. VAE only
    flip: bool = False                                      # show every picture mirrored too
    cache: bool = True                                      # diffusion: latents on disk; VAE: pictures kept in memory as bytes


@dataclass(frozen=True, kw_only=True)
class UNetSizes:
    """A U-Net from scratch; the published SD1 is channels 320, multiply (1, 2, 4, 4), depths (1, 1, 1, 0)."""

    channels: int = _within(64, 4, 4096)
    multiply: tuple[int, ...] = _within((1, 2, 4, 4), 1, 64)
    depths: tuple[int, ...] = _within((1, 1, 1, 0), 0, 16)  # transformer blocks behind each residual block, level by level
    middle_depth: int = _within(1, 0, 16)
    res_blocks: int = _within(2, 1, 8)
    heads: int = _within(8, 1, 64)
    concat_channels: int = _within(0, 0, 64)                # channels shown beside the latent


@dataclass(frozen=True, kw_only=True)
class TextSizes:
    """A text tower from scratch; the published CLIP-L is width 768, layers 12."""

    width: int = _within(256, 8, 4096)                      # heads are 64 wide, as in every published tower
    layers: int = _within(4, 1, 48)
    train: str = _within("auto", among=("auto", "yes", "no"))         # auto: yes from scratch, no for one that came from a checkpoint
    lr: float = _within(0.0, 0.0, 10.0)                     # 0 = that of the U-Net


@dataclass(frozen=True, kw_only=True)
class VaeSizes:
    """A VAE; the published one is channels 128, multiply (1, 2, 4, 4), res_blocks 2."""

    channels: int = _within(64, 4, 4096)
    multiply: tuple[int, ...] = _within((1, 1, 2, 2), 1, 64)
    res_blocks: int = _within(1, 1, 8)
    latent: int = _within(4, 1, 64)


@dataclass(frozen=True, kw_only=True)
class Model:
    """Where the networks come from. Paths are seen from the recipe's own folder; "" = from scratch, in the sizes given."""

    checkpoint: str = ""                                    # U-Net, text tower and VAE of this file
    vae: str = ""                                           # this VAE instead; needed if there is no checkpoint
    norm_groups: int = _within(32, 1, 1024)                 # of every group norm from scratch; written into the file
    title: str = "trained"
    dtype: str = _within("float16", among=("float16", "float32"))     # of the file that is written


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the U-Net learns. weight "min_snr" takes gamma; snr weights are those of the prediction chosen."""

    prediction: str = _within("eps", among=("eps", "v"))    # x0 is known to objectives.py, but nothing samples from such a file
    conditioning: str = _within("crossattn", among=("none", "concat", "crossattn", "hybrid"))
    distance: str = _within("l2", among=("l1", "l2", "huber"))
    weight: str = _within("none", among=("none", "min_snr", "debiased"))
    gamma: float = _within(5.0, 0.01, 1000.0)
    elbo: float = _within(0.0, 0.0, 1000.0)                 # weight of the variational bound
    offset_noise: float = _within(0.0, 0.0, 1.0)
    perturbation: float = _within(0.0, 0.0, 1.0)            # more noise put in than asked back
    caption_dropout: float = _within(0.1, 0.0, 1.0)         # part of the captions that are replaced by ""
    betas: str = _within("scaled_linear", among=("scaled_linear", "linear", "cosine", "sqrt"))
    first: float = _within(0.00085, 1e-6, 0.99)
    last: float = _within(0.012, 1e-6, 0.99)
    zero_terminal_snr: bool = False
    scale_factor: float = _within(0.0, 0.0, 1000.0)         # 0 = the checkpoint's own, or 1 / std of the first batch from scratch


@dataclass(frozen=True, kw_only=True)
class VaeObjective:
    """What the VAE learns. A weight of 0 leaves its part out; perceptual and adversarial cost time."""

    pixel: str = _within("l1", among=("l1", "l2"))
    kl: float = _within(1e-6, 0.0, 100.0)                   # against the sum over all pixels
    perceptual: float = _within(0.0, 0.0, 100.0)
    perceptual_weights: str = ""                            # a VGG16 file (features.*, and lin* of LPIPS if it has them)
    adversarial: float = _within(0.0, 0.0, 100.0)
    adversarial_start: int = _within(0, 0)                  # the step from which the discriminator is listened to
    discriminator_channels: int = _within(64, 4, 1024)
    discriminator_layers: int = _within(3, 1, 6)
    learn_logvar: bool = False                              # one learned number weighs the reconstruction


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long, how fast, in what numbers."""

    steps: int = _within(1000, 1)
    batch: int = _within(8, 1, 65536)
    accumulate: int = _within(1, 1, 65536)                  # batches whose gradients make one step
    lr: float = _within(1e-4, 0.0, 10.0)
    warmup: int = _within(0, 0)                             # steps
    decay: str = _within("constant", among=("constant", "cosine"))
    lr_floor: float = _within(0.0, 0.0, 1.0)                # part of lr at which cosine ends
    betas: tuple[float, ...] = _within((0.9, 0.999), 0.0, 0.99999)
    weight_decay: float = _within(0.01, 0.0, 10.0)
    clip: float = _within(1.0, 0.0, 1e9)                    # largest norm of the gradient; 0 = any
    precision: str = _within("auto", among=("auto", "float32", "bfloat16", "float16"))
    minutes: float = _within(0.0, 0.0, 1e6)                 # stop after so much time, to go on later; 0 = no limit
    save_every: int = _within(500, 1)                       # steps between two states on disk
    sample_every: int = _within(0, 0)                       # steps between two sheets of sample pictures; 0 = none
    most_nan: int = _within(10, 1, 1000)                    # steps without a number in a row before the run ends


@dataclass(frozen=True, kw_only=True)
class Ema:
    """The running mean of the weights. keep: which weights the file holds, the mean, those of the last step, or both."""

    decay: float = _within(0.9999, 0.0, 1.0)                # 0 = no mean
    warm_up: bool = True
    keep: str = _within("mean", among=("mean", "last", "both"))


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The pictures on a sample sheet."""

    prompts: tuple[str, ...] = ("",)
    seed: int = _within(0, 0)
    steps: int = _within(20, 1, 1000)
    cfg_scale: float = _within(4.0, 1.0, 30.0)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run. Equal recipes on equal pictures give equal files on one machine."""

    kind: str = _within("diffusion", among=("diffusion", "vae"))
    seed: int = _within(0, 0)
    data: Data = Data()
    model: Model = Model()
    unet: UNetSizes = UNetSizes()
    text: TextSizes = TextSizes()
    vae: VaeSizes = VaeSizes()
    objective: Objective = Objective()
    vae_objective: VaeObjective = VaeObjective()
    training: Training = Training()
    ema: Ema = Ema()
    samples: Samples = Samples()
    home: Path = Path(".")                                  # what relative paths are seen from; not read from the file

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """The recipe in a TOML file. Raises NotFoundError without the file, SettingsError for whatever does not belong in it."""
        file = Path(path)
        try:
            found = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise NotFoundError(f"The recipe {file} cannot be read; check the path.") from error
        except ValueError as error:                         # no TOML, or no UTF-8
            raise SettingsError(f"The recipe {file.name} is not valid TOML: {error}.") from error
        return cls.of(found, home=file.resolve().parent)

    @classmethod
    def of(cls, found: Mapping[str, Any], home: Path = Path(".")) -> Recipe:
        """The recipe in a table of tables. Raises SettingsError."""
        sections: dict[str, Any] = {each.name: type(each.default) for each in fields(cls) if hasattr(each.default, "__dataclass_fields__")}
        top = {name: value for name, value in found.items() if name not in sections}
        values = _checked(cls, top, "", extra=tuple(sections), hidden=("home", *sections))
        for name, kind in sections.items():
            section = found.get(name, {})
            if not isinstance(section, Mapping):
                raise SettingsError(f"{name} is a section of a recipe; write [{name}] on a line of its own.")
            values[name] = kind(**_checked(kind, section, f"{name}."))
        recipe = cls(**values, home=home)
        _check_together(recipe)
        return recipe

    def path(self, name: str) -> Path:
        """A path of the recipe as the system knows it."""
        return self.home / Path(name).expanduser()


def _checked(kind: type[Any], found: Mapping[str, Any], prefix: str, extra: tuple[str, ...] = (),
             hidden: tuple[str, ...] = ()) -> dict[str, Any]:
    known = {each.name: each for each in fields(kind) if each.name not in hidden}
    values = {}
    for name, value in found.items():
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *extra], 1)
            where = f"The section [{prefix[:-1]}]" if prefix else "A recipe"
            hint = f"did you mean {near[0]}?" if near else f"it may have {', '.join([*known, *extra])}."
            raise SettingsError(f"{where} has no {name!r}; {hint}")
        values[name] = _value(prefix + name, value, known[name].default, known[name].metadata)
    return values


def _value(name: str, value: Any, default: Any, rule: Mapping[str, Any]) -> Any:
    """The value in the type of the default, within its rule. Raises SettingsError naming the key."""
    if isinstance(default, tuple):
        if not isinstance(value, list) or not value:
            raise SettingsError(f"{name} is {value!r}; it must be a list like {list(default)}.")
        return tuple(_value(f"{name}[{place}]", item, default[0], rule) for place, item in enumerate(value))
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(default):
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}[type(default)]
        raise SettingsError(f"{name} is {value!r}; it must be {words}.")
    if rule.get("among") and value not in rule["among"]:
        raise SettingsError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, rule['among']))}.")
    low, high = rule.get("low"), rule.get("high", math.inf)
    if low is not None and not low <= value <= high:        # also true for nan
        raise SettingsError(f"{name} is {value!r}; it must be {low:g} or more." if high == math.inf
                            else f"{name} is {value!r}; it must be from {low:g} to {high:g}.")
    return value


def _check_together(recipe: Recipe) -> None:
    """What no single value can tell. Raises SettingsError."""
    unet, vae, groups = recipe.unet, recipe.vae, recipe.model.norm_groups
    if recipe.kind == "diffusion" and not (recipe.model.checkpoint or recipe.model.vae):
        raise SettingsError("A diffusion model needs a VAE; name one in model.vae (train it first with kind = \"vae\"), "
                            "or a model.checkpoint to go on from.")
    if len(unet.multiply) != len(unet.depths):
        raise SettingsError(f"unet.multiply has {len(unet.multiply)} levels and unet.depths {len(unet.depths)}; give one depth for each.")
    scratch = not (recipe.model.vae if recipe.kind == "vae" else recipe.model.checkpoint)
    channels = vae.channels if recipe.kind == "vae" else unet.channels
    if scratch and channels % groups:
        raise SettingsError(f"{channels} channels cannot be normalised in {groups} groups; choose model.norm_groups that divides them.")
    if recipe.objective.first > recipe.objective.last:
        raise SettingsError("objective.first is larger than objective.last; the noise must grow.")
    if recipe.objective.zero_terminal_snr and recipe.objective.prediction == "eps":
        raise SettingsError("objective.zero_terminal_snr needs objective.prediction = \"v\": pure noise tells nothing about eps.")
    if (recipe.objective.conditioning in ("concat", "hybrid")) != bool(unet.concat_channels) and not recipe.model.checkpoint:
        raise SettingsError("objective.conditioning and unet.concat_channels must agree: concat and hybrid need channels, the others none.")
    if recipe.data.crop > recipe.data.size or recipe.data.crop % 2 ** (len(vae.multiply) - 1):
        raise SettingsError(f"data.crop is {recipe.data.crop}; it must be at most data.size ({recipe.data.size}) and a multiple of "
                            f"{2 ** (len(vae.multiply) - 1)}, one cell of the latent.")
    if len(recipe.training.betas) != 2:
        raise SettingsError("training.betas must hold two numbers, like [0.9, 0.999].")
    if recipe.vae_objective.perceptual and not recipe.vae_objective.perceptual_weights:
        raise SettingsError("vae_objective.perceptual needs vae_objective.perceptual_weights, a VGG16 file; or set it to 0.")
