"""Extensions under the names that A1111's clients have for scripts: lists of them, and the values that a request brings for controls."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter

from modules.engine import Engine
from modules.pipeline import infotext
from modules.pipeline.extension import Control, Entry
from webui.api.errors import ApiError
from webui.api.schemas import Txt2ImgBody

TABS = ("txt2img", "img2img")


def routes(engine: Engine) -> APIRouter:
    """The lists under /sdapi/v1."""
    router = APIRouter()

    @router.get("/scripts")
    def scripts() -> dict[str, list[str]]:
        names = [entry.name.lower() for entry in engine.tools.extensions() if entry.extension]
        return dict.fromkeys(TABS, names)

    @router.get("/script-info")
    def script_info() -> list[dict[str, Any]]:
        return [{"name": entry.name.lower(), "is_alwayson": not entry.extension.selectable, "is_img2img": tab == "img2img",
                 "args": [_argument(control) for control in entry.controls]}
                for tab in TABS for entry in engine.tools.extensions() if entry.extension and entry.controls]

    @router.get("/extensions")
    def extensions() -> list[dict[str, Any]]:
        return [{"name": entry.folder, "remote": "", "branch": "", "commit_hash": "", "version": "", "commit_date": "0",
                 "enabled": entry.enabled} for entry in engine.tools.extensions() if not entry.builtin]

    return router


def _argument(control: Control) -> dict[str, Any]:
    return {"label": control.label, "value": control.default, "minimum": control.minimum, "maximum": control.maximum, "step": control.step,
            "choices": list(control.choices) or None}


def extra_of(engine: Engine, body: Txt2ImgBody) -> dict[str, dict[str, Any]]:
    """Request.extra as the body has it: what its `infotext` says, over it script_name, over it alwayson_scripts. Raises ApiError (422)."""
    values = dict(body)
    entries = [entry for entry in engine.tools.extensions() if entry.extension]
    extra = engine.tools.extra_of_text(infotext.read(values["infotext"]).fields) if values["infotext"] else {}
    if values["script_name"]:
        chosen = _named(entries, values["script_name"], selectable=True)
        extra[chosen.name] = _given(chosen, values["script_args"])
    for name, told in values["alwayson_scripts"].items():
        if any(_is(entry, name) and entry.extension and entry.extension.selectable for entry in entries):
            raise ApiError("Cannot have a selectable script in the always on scripts params")
        entry = _named(entries, name, selectable=False)
        arguments = told.get("args", []) if isinstance(told, Mapping) else told
        extra[entry.name] = {**extra.get(entry.name, {}), **_given(entry, arguments)}
    return extra


def _is(entry: Entry, name: Any) -> bool:
    return entry.name.casefold() == str(name).casefold()


def _named(entries: Sequence[Entry], name: Any, *, selectable: bool) -> Entry:
    for entry in entries:
        if entry.extension and _is(entry, name) and entry.extension.selectable == selectable:
            return entry
    raise ApiError(f"Script '{str(name)[:100]}' not found")


def _given(entry: Entry, arguments: Any) -> dict[str, Any]:
    """A list in the order of the controls (further values are dropped, null is the default), or a map of their names."""
    if isinstance(arguments, Mapping):
        return {str(name): value for name, value in arguments.items() if value is not None}
    if not isinstance(arguments, list):
        raise ApiError(f"The args of {entry.name} must be a list in the order of its controls, or a map of their names.")
    return {control.name: value for control, value in zip(entry.controls, arguments, strict=False) if value is not None}
