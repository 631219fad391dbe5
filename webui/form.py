"""The controls of one tab, joined by name to the fields of a Request: made from the parameter table, read from it, pasted through it."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import gradio as gr
from gradio.components import Component

from modules.engine import Engine
from modules.pipeline import parameters
from modules.pipeline.request import InitImage, Request
from webui.parts.extensions import Extensions

FILES = ("checkpoints", "vaes", "refiners")                 # choices that are names of files
# Ids as A1111 names its elements, where they are not the field's own name.
IDS = MappingProxyType({"negative_prompt": "neg_prompt", "sampler": "sampling", "n_iter": "batch_count"})
SETTINGS = MappingProxyType({
    "checkpoint": "setting_sd_model_checkpoint", "vae": "setting_sd_vae", "clip_skip": "setting_CLIP_stop_at_last_layers",
})

Choices = Sequence[str]


class Form:
    """One tab's controls by the name of the Request field each of them fills.

    names: the fields in the order in which their controls were added; `controls` in the same order, so that handlers which take
    `form.controls` get their values in the order of `names`. Behind them stand those of extensions.
    """

    def __init__(self, engine: Engine, tab: str, defaults: Request) -> None:
        """tab: what the elements' ids begin with; defaults: what the controls show first, and what an emptied one means."""
        self.tab = tab
        self.defaults = defaults
        self._engine = engine
        self._controls: dict[str, Component] = {}
        self.extensions = Extensions(engine, tab)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._controls)

    @property
    def controls(self) -> list[Component]:
        return [*self._controls.values(), *self.extensions.controls]

    def __getitem__(self, field: str) -> Any:
        return self._controls[field]

    def add(self, field: str, control: Any) -> Any:
        """Join a control to a field of Request. Raises RequestError for a field that no Request has."""
        parameters.by_field(field)
        self._controls[field] = control
        return control

    def make(self, field: str, **changes: Any) -> Any:
        """The control that the table describes, joined to its field. changes: arguments of the component that differ here."""
        return self.add(field, self.control(parameters.by_field(field), **changes))

    def control(self, row: parameters.Parameter, **changes: Any) -> Any:
        """A component for this row: a slider where the row shows a range, a list where it has choices, else a box to type in."""
        value = shown(row, self.default(row.field))
        given: dict[str, Any] = {"label": row.label, "value": value, "elem_id": self.element(row.field)}
        if row.choices:
            names = [*self.choices(row)]
            many = row.kind == "list"
            if many:
                given["value"] = [name for name in given["value"] if name in names]
            elif given["value"] not in names:
                given["value"] = names[0] if names else None
            if row.choices in FILES:                        # a title gets its hash while the page is open: Gradio would refuse the old one
                given["allow_custom_value"] = True
            return gr.Dropdown(**{**given, "choices": names, "multiselect": many or None, **changes})
        if row.kind == "bool":
            return gr.Checkbox(**{**given, **changes})
        if row.shown is not None:
            low, high = _ends(row, value)
            return gr.Slider(**{**given, "minimum": low, "maximum": high, "step": row.step, "buttons": [], **changes})
        return gr.Textbox(**{**given, "lines": 1, "max_lines": 1, **changes})

    def element(self, field: str) -> str:
        own = SETTINGS.get(field) if self.tab == "txt2img" else None        # an id stands on a page but once
        return own or f"{self.tab}_{IDS.get(field, field)}"

    def choices(self, row: parameters.Parameter) -> Choices:
        """The names that this row may take now."""
        return self._engine.tools.choices(row.field)

    def request(self, values: Sequence[Any], init: Mapping[str, str] | None = None) -> Request:
        """The values of `controls` as a Request; what has no control here comes from the settings.

        init: names of the pictures in the store that it begins from. Raises RequestError naming the field.
        """
        given: dict[str, Any] = {"extra": self.extensions.extra(values[len(self.names):])}
        for field, value in zip(self.names, values[:len(self.names)], strict=True):
            row = parameters.by_field(field)
            empty = value is None or (value == "" and row.kind in ("int", "float"))
            given[field] = self.default(field) if empty else value
        if init is None:
            return self._engine.tools.request(given)
        told = {field: given.pop(field) for field in self.names if hasattr(InitImage, field)}
        return self._engine.tools.request({**given, "init": {**told, **init}})

    def default(self, field: str) -> Any:
        """What the control of this field shows first."""
        return getattr(self.defaults.init or InitImage() if hasattr(InitImage, field) else self.defaults, field)

    def paste(self, fields: Mapping[str, Any]) -> list[Any]:
        """One update a control, in the order of `controls`: what `fields` (Request fields) gives is set, all else stays as it is.

        A name that is in no catalogue here leaves its control alone.
        """
        own = [self._pasted(name, fields[name]) if name in fields else gr.skip() for name in self.names]
        return [*own, *self.extensions.paste(fields.get("extra"))]

    def _pasted(self, field: str, value: Any) -> Any:
        row = parameters.by_field(field)
        if isinstance(self._controls[field], gr.Radio):
            return gr.update(value=value)
        if row.choices and row.kind != "list":
            name = nearest(str(value), self.choices(row))
            return gr.skip() if name is None else gr.update(value=name)
        if row.kind == "list":
            return gr.update(value=[name for name in value if name in self.choices(row)])
        if row.shown is not None and value is not None:
            low, high = _ends(row, value)
            return gr.update(value=value, minimum=low, maximum=high)
        return gr.update(value=shown(row, value))

    def values(self, request: Request, *, without: Sequence[str] = ()) -> list[Any]:
        """Updates that show a Request in the controls, but for the fields named in `without`."""
        init = request.init or InitImage()
        told = {name: getattr(init if hasattr(InitImage, name) else request, name) for name in self.names if name not in without}
        return self.paste({**told, "extra": request.extra})


def _ends(row: parameters.Parameter, value: Any) -> tuple[float, float]:
    """Of the slider; a value beyond them moves them."""
    assert row.shown is not None
    all_of = row.shown if value is None else (*row.shown, value)
    return min(all_of), max(all_of)


def shown(row: parameters.Parameter, value: Any) -> Any:
    """A field's value as its control holds it. Integers without a slider are text: a browser's numbers end at 2 ** 53, seeds at 2 ** 64."""
    if isinstance(value, tuple):
        return list(value)
    if value is None:
        return None if row.shown is not None else ""
    if row.kind in ("int", "float") and row.shown is None:
        return parameters.number(value)
    return value


def nearest(name: str, choices: Choices) -> str | None:
    """The choice that is meant: the name itself, the same in another case, or the one title that holds the bracketed hash or the name."""
    if name in choices:
        return name
    wanted = name.casefold()
    for choice in choices:
        if choice.casefold() == wanted:
            return choice
    mark = name[name.rindex("["):] if name.endswith("]") and "[" in name else ""
    if mark:
        return next((choice for choice in choices if choice.endswith(mark)), None)
    stem = [choice for choice in choices if choice.casefold().split(" [")[0].rsplit(".", 1)[0] == wanted]
    return stem[0] if len(stem) == 1 else None
