"""The bodies of /sdapi/v1/txt2img and img2img, made from the parameter tables.

What the tables do not have stands here under A1111's names and defaults.

Fields that no body has are ignored, null means the default. Numbers may come as text and texts as numbers; booleans for numbers
and fractions for integers are refused (422).
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model
from pydantic_core import PydanticCustomError

from modules.core.errors import RequestError
from modules.pipeline import infotext as texts
from modules.pipeline import parameters
from modules.pipeline.request import InitImage, Request
from webui.api.errors import ApiError

TYPES: Mapping[str, type] = {"int": int, "float": float, "bool": bool, "list": list, "str": str, "text": str, "choice": str}
# Fields that are no part of a Request: (name, type, default). Those of features that are not here yet are read to be refused.
MORE: tuple[tuple[str, type, Any], ...] = (
    ("sampler_index", str, "Euler"), ("send_images", bool, True), ("save_images", bool, False), ("do_not_save_samples", bool, False),
    ("do_not_save_grid", bool, False), ("override_settings", dict, None), ("override_settings_restore_afterwards", bool, True),
    ("script_name", str, None), ("script_args", list, []), ("alwayson_scripts", dict, {}),
    ("force_task_id", str, None), ("infotext", str, None),
    ("restore_faces", bool, None), ("tiling", bool, None), ("denoising_strength", float, None),
    ("disable_extra_networks", bool, False),
    ("firstpass_image", str, None), ("comments", dict, None), ("enable_hr", bool, False), ("firstphase_width", int, 0),
    ("firstphase_height", int, 0), ("hr_scale", float, 2.0), ("hr_upscaler", str, None), ("hr_second_pass_steps", int, 0),
    ("hr_resize_x", int, 0), ("hr_resize_y", int, 0), ("hr_checkpoint_name", str, None), ("hr_sampler_name", str, None),
    ("hr_scheduler", str, None), ("hr_prompt", str, ""), ("hr_negative_prompt", str, ""),
)
PICTURES: tuple[tuple[str, type, Any], ...] = (             # of img2img: in base64, and what is said of them beside the table
    ("init_images", list, None), ("mask", str, None), ("latent_mask", str, None), ("depth_map", str, None), ("mask_blur", int, None),
    ("include_init_images", bool, False),
)
KINDS: Mapping[type, parameters.Kind] = {int: "int", float: "float", bool: "bool", str: "str"}
HIRES = ("Hires upscale", "Hires upscaler", "Hires resize-1")


class Txt2ImgBody(BaseModel):
    """What all bodies share; `body_model` adds the fields."""

    model_config = ConfigDict(extra="ignore")


def body_model() -> type[Txt2ImgBody]:
    """The class of txt2img's body. Each field is optional and may be null."""
    return _model("Txt2ImgBody", parameters.PARAMETERS, MORE)


def img2img_model() -> type[Txt2ImgBody]:
    """The class of img2img's body: without hires fix, with the fields of InitImage."""
    more = [field for field in MORE if not field[0].startswith(("hr_", "enable_hr", "firstp", "denoising"))]
    return _model("Img2ImgBody", (*parameters.PARAMETERS, *parameters.INIT), (*more, *PICTURES))


def _model(called: str, rows: Sequence[parameters.Parameter], more: Sequence[tuple[str, type, Any]]) -> type[Txt2ImgBody]:
    fields: dict[str, Any] = {}
    for row in rows:
        if row.api_name:
            check = BeforeValidator(_taking(row, _default(row)))
            fields[row.api_name] = (Annotated[TYPES[row.kind] | None, check], Field(default=_default(row), description=row.help))
    for name, kind, default in more:
        row = parameters.Parameter(field=name, label=name, kind=KINDS.get(kind, "str"), section="", help="")
        check = BeforeValidator(_taking(row, default) if kind in KINDS else _given(default))
        fields[name] = (Annotated[kind | None, check], Field(default=default))
    return create_model(called, __base__=Txt2ImgBody, **fields)


def _default(row: parameters.Parameter) -> Any:
    """A1111's default. None where the settings, or sampler_index, decide."""
    if row.setting or row.kind in ("choice", "list") or row.field == "image_cfg_scale":
        return None
    return getattr(InitImage if row in parameters.INIT else Request(), row.field) if row.api_default is None else row.api_default


def _taking(row: parameters.Parameter, default: Any) -> Callable[[Any], Any]:
    def take(value: Any) -> Any:
        if value is None:
            return default
        try:
            taken = parameters.coerce(row, value)
            parameters.check_value(row, taken)
        except RequestError as error:
            raise PydanticCustomError(error.code, "{sentence}", {"sentence": str(error)}) from error
        return list(taken) if isinstance(taken, tuple) else taken
    return take


def _given(default: Any) -> Callable[[Any], Any]:
    return lambda value: default if value is None else value


def with_infotext(body: Txt2ImgBody, auto_swap: bool) -> Txt2ImgBody:
    """The body with what its `infotext` says filled in, wherever the client did not name the field itself.

    auto_swap: also let the text choose the checkpoint.
    """
    values = dict(body)
    if not values["infotext"]:
        return body
    parsed = texts.read(values["infotext"])
    overrides = dict(values["override_settings"] or {})
    changes: dict[str, Any] = {}
    for field, value in {**texts.fields_of(parsed), **texts.init_fields_of(parsed)}.items():
        row = parameters.by_field(field)
        if row in parameters.INIT and row.api_name not in values:
            continue                                        # a body that begins from noise
        named = {row.api_name, "sampler_index"} if field == "sampler" else {row.api_name}
        if row.api_name:
            if not named & body.model_fields_set:
                changes[row.api_name] = list(value) if isinstance(value, tuple) else value
        elif row.setting and (auto_swap or field != "checkpoint"):
            overrides.setdefault(row.setting, value)
    if "Denoising strength" in parsed.raw and any(label in parsed.fields for label in HIRES) and "enable_hr" in values and \
            "enable_hr" not in body.model_fields_set:
        changes["enable_hr"] = True
    return body.model_copy(update={**changes, "override_settings": overrides or values["override_settings"]})


def fields_of(body: Txt2ImgBody) -> dict[str, Any]:
    """Request fields by name, as `engine.tools.request` takes them. None (the settings decide) is left out."""
    values = dict(body)
    fields = {row.field: values[row.api_name] for row in parameters.PARAMETERS if row.api_name and values[row.api_name] is not None}
    if not fields.get("sampler"):
        fields["sampler"] = values["sampler_index"] or "Euler"
    overrides = values["override_settings"] or {}
    for key, field in (("sd_model_checkpoint", "checkpoint"), ("sd_vae", "vae")):
        if isinstance(overrides.get(key), str) and overrides[key]:
            fields[field] = overrides[key]                  # named for this picture: an unknown one is refused, not replaced
    return fields


def init_of(body: Txt2ImgBody) -> dict[str, Any]:
    """InitImage fields by name, without the pictures. None (the settings decide) is left out; mask_blur stands for both axes."""
    values = dict(body)
    fields = {row.field: values[row.api_name] for row in parameters.INIT if row.api_name and values[row.api_name] is not None}
    if values["mask_blur"] is not None:
        fields |= {"mask_blur_x": values["mask_blur"], "mask_blur_y": values["mask_blur"]}
    return fields


def refuse_what_is_missing(body: Txt2ImgBody) -> None:
    """Raises ApiError (422) for a feature that was asked for and is not here, so that no picture pretends to have it."""
    values = dict(body)
    for asked, words in (
        (values.get("enable_hr"), "Hires fix (enable_hr)"),
        (values.get("firstphase_width") or values.get("firstphase_height"), "A first pass of another size (firstphase_width)"),
        (values["restore_faces"], "Face restoration (restore_faces)"),
        (values["tiling"], "Tiling (tiling)"),
    ):
        if asked:
            raise ApiError(f"{words} is not there yet in this version; leave it out.")
