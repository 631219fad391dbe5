"""Requests and results are values: frozen, comparable, and written as JSON. No torch here."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.core.errors import NotFoundError, RequestError

if TYPE_CHECKING:
    from PIL import Image

    from modules.core.progress import Progress


@dataclass(frozen=True, kw_only=True)
class InitImage:
    """What a picture is begun from instead of noise alone. Labels, ranges and API names: pipeline/init_parameters.py.

    image, mask, depth: SHA-256 of pictures in the store of incoming pictures (jobs/inputs.py); "" = none.
    """

    image: str = ""
    mask: str = ""                                          # white = painted anew; as large as the picture
    depth: str = ""                                         # for models that are told depth: light = near
    denoising_strength: float = 0.75                        # 0..1: how far up the ladder of noise it is entered
    img2img_fix_steps: bool = False                         # all steps are walked, on a longer ladder
    resize_mode: int = 0                                    # 0 stretch, 1 crop, 2 fill, 3 stretch the latent
    mask_blur_x: int = 4                                    # pixels, standard deviation
    mask_blur_y: int = 4
    mask_round: bool = True                                 # a latent cell is painted anew or kept
    inpainting_mask_invert: bool = False
    inpainting_fill: int = 1                                # 0 fill, 1 original, 2 latent noise, 3 latent nothing
    inpaint_full_res: bool = False                          # only the masked part is drawn, at the full size
    inpaint_full_res_padding: int = 32                      # pixels around that part
    soft_inpainting: bool = False                           # a grey of the mask says in which share of the steps a place may change
    initial_noise_multiplier: float = 1.0
    img2img_extra_noise: float = 0.0
    img2img_color_correction: bool = False
    img2img_background_color: str = "#ffffff"               # behind what is transparent
    overlay_inpaint: bool = True                            # what was not masked is pasted back
    inpainting_mask_weight: float = 1.0                     # how much of the masked part inpainting models are not shown
    image_cfg_scale: float = 1.5                            # of models that edit pictures
    noise_level: int = 20                                   # that the x4 upscaler adds to its picture, 0..350

    def to_json(self) -> dict[str, Any]:
        """Only what differs from a default `InitImage()`."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if getattr(self, item.name) != item.default}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> InitImage:
        """Raises RequestError for a field that it has not."""
        names = {item.name for item in dataclasses.fields(InitImage)}
        for name in values:
            if name not in names:
                raise RequestError(f"An init picture has no field “{name}”; it was made by another version of Easel.", field=name)
        return InitImage(**values)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One press of the button. No field changes after the engine takes it; a stage that needs another value makes another Request.

    Labels, ranges and infotext names stand in pipeline/parameters.py. "" for a name means: the one chosen in the settings.
    """

    prompt: str = ""
    negative_prompt: str = ""
    prompt_2: str = ""                                      # for the text towers behind the first one (SDXL); "" = the same
    negative_prompt_2: str = ""
    styles: tuple[str, ...] = ()
    steps: int = 20
    sampler: str = "DPM++ 2M"
    scheduler: str = "Automatic"                            # Automatic = the sampler's own
    cfg_scale: float = 7.0                                  # 1 = no guidance
    seed: int = -1                                          # -1 = choose one
    subseed: int = -1
    subseed_strength: float = 0.0                           # 0..1
    seed_resize_from_w: int = 0                             # pixels; 0 = off
    seed_resize_from_h: int = 0
    width: int = 512                                        # pixels, a multiple of 8 is used
    height: int = 512
    batch_size: int = 1                                     # pictures at once
    n_iter: int = 1                                         # batches
    checkpoint: str = ""
    vae: str = ""                                           # "" = settings; "Automatic"; "None" = the checkpoint's own
    prediction: str = "Auto"                                # Auto, eps, v, x0, edm
    refiner: str = ""                                       # a checkpoint that takes over; "" = none
    refiner_switch_at: float = 0.8                          # when, 0..1 of the training's noise levels gone through
    clip_skip: int = 1
    eta: float | None = None                                # None = the sampler's own
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = 0.0                                     # 0 = no upper end
    s_noise: float = 1.0
    eta_noise_seed_delta: int = 0                           # ENSD
    randn_source: str = "NV"                                # NV, CPU, GPU (= NV, decisions.md 1)
    emphasis: str = "Original"                              # Original, No norm, Ignore, None
    comma_padding_backtrack: int = 20                       # tokens
    use_old_scheduling: bool = False                        # [a:b:n] as before A1111 1.6
    pad_cond_uncond: bool = False                           # prompt and negative prompt of one length: empty chunks behind the shorter
    pad_cond_uncond_v0: bool = False                        # as before A1111 1.6: the negative one's last vector again, or cut off
    schedule_rho: float = 0.0                               # 0 = the schedule's own
    schedule_sigma_min: float = 0.0                         # 0 = the model's own
    schedule_sigma_max: float = 0.0
    schedule_alpha: float = 0.6                             # of Beta
    schedule_beta: float = 0.6
    schedule_levels: str = ""                               # noise levels of one's own, "14.6, 7.3, 2.1, 0", instead of a schedule's
    uni_pc_variant: str = "bh1"                             # of UniPC: bh1, bh2
    uni_pc_skip_type: str = "time_uniform"                  # time_uniform, time_quadratic, logSNR
    uni_pc_order: int = 3
    uni_pc_lower_order_final: bool = True
    discard_penultimate_sigma: bool = False
    sgm_noise_multiplier: bool = False
    s_min_uncond: float = 0.0                               # below this noise level the negative prompt is left out, 0 = never
    s_min_uncond_all: bool = False                          # at every step; else at every second
    skip_early_cond: float = 0.0                            # in this share of the first steps, too
    token_merging_ratio: float = 0.0                        # of the cells, before they look at each other
    deterministic: bool = False                             # one picture at a time: bit-identical in any batch
    image_format: str = "png"                               # png, jpg, webp
    init: InitImage | None = None                           # None = from noise alone
    extra: Mapping[str, Any] = field(default_factory=dict)  # values of extensions' controls, by extension name
    notes: Mapping[str, Any] = field(default_factory=dict)  # extra infotext pairs

    def to_json(self) -> dict[str, Any]:
        """Only what differs from a default `Request()`, as JSON values; `from_json` gives an equal Request."""
        plain = Request()
        out = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value != getattr(plain, item.name):
                out[item.name] = _as_json(value)
        return out

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Request:
        """Raises RequestError for a field that no Request has."""
        names = {item.name for item in dataclasses.fields(Request)}
        for name in values:
            if name not in names:
                raise RequestError(f"A request has no field “{name}”; it was made by another version of Easel.", field=name)
        given: dict[str, Any] = {name: tuple(value) if name == "styles" else value for name, value in values.items()}
        if given.get("init") is not None:
            if not isinstance(given["init"], Mapping):
                raise RequestError("The init picture of a request must be a map of names to values.", field="init")
            given["init"] = InitImage.from_json(given["init"])
        return Request(**given)


def _as_json(value: Any) -> Any:
    if isinstance(value, InitImage):
        return value.to_json()
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value


def _no_pictures(sha256: str) -> Any:
    raise NotFoundError(f"The picture {sha256[:10]}… that this request begins from is not here; give it again.")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One finished picture. `file` holds the encoded bytes that go to disk and to the API alike."""

    index: int                                              # 0-based within the job
    seed: int
    subseed: int
    prompt: str                                             # after styles, with tags and editing syntax
    negative_prompt: str
    image: Image.Image
    infotext: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)  # provenance, see pipeline/provenance.py
    complete: bool = True                                   # False: interrupted before the last step
    file: bytes = b""
    sha256: str = ""                                        # of `file`
    path: Path | None = None                                # where it was saved; None = in the spool only
    warnings: tuple[str, ...] = ()                          # what could not be written as asked


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a job gave. warnings: sentences for the user (a file not found, an extension that failed)."""

    request: Request
    pictures: tuple[Picture, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Resources:
    """All that the spine may use; the engine fills it for each job. Nothing below asks for more.

    models: checkpoints.residency.Residency: `with models.borrow(request.checkpoint, request.vae, request.prediction) as model`.
    tokenizer: prompts.tokens.Tokenizer; encodings: prompts.encode.EncodeCache. Both outlive the job and belong to the engine.
    deliver: saves one picture and commits it to the store, and returns it with `file`, `sha256` and `path` filled.
    done: indices already delivered (a job that is taken up again).
    wildcards: a prompts.wildcards.Source; embeddings: adapters.embedding.Embeddings. None = there are no files.
    inputs: the picture of this SHA-256 that came in with the request; raises NotFoundError.
    """

    settings: Mapping[str, Any]
    models: Any
    adapters: Any
    upscalers: Any
    styles: Mapping[str, Any]
    tokenizer: Any
    encodings: Any
    extensions: tuple[Any, ...]
    progress: Progress
    done: frozenset[int]
    deliver: Callable[[Picture], Picture]
    wildcards: Any = None
    inputs: Callable[[str], Image.Image] = _no_pictures
    embeddings: Any = None
