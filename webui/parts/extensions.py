"""The controls of extensions: an accordion each, and a list of those that can run the whole request."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from modules.engine import Engine
from modules.pipeline.extension import Control, Entry

NONE = "None"


class Extensions:
    """The controls of one tab, in the order of the entries, the list of scripts last where there is one."""

    def __init__(self, engine: Engine, tab: str) -> None:
        self._engine, self._tab = engine, tab
        entries = [entry for entry in engine.tools.extensions() if entry.extension]
        self._entries = [entry for entry in entries if entry.controls]
        self._scripts = [entry.name for entry in entries if entry.extension and entry.extension.selectable]
        self.controls: list[Component] = []

    def build(self) -> None:
        """Their layout, where it is called; nothing where there are none."""
        settings = self._engine.tools.settings()
        for entry in self._entries:
            with gr.Accordion(entry.name, open=False, elem_id=f"{self._tab}_extension_{_slug(entry.name)}"):
                for control in entry.controls:
                    value = settings.get(control.setting, control.default) if control.setting else control.default
                    self.controls.append(_component(control, value, f"{self._tab}_{_slug(entry.name)}_{_slug(control.name)}"))
        if self._scripts:
            names = [NONE, *self._scripts]
            self.controls.append(gr.Dropdown(label="Script", choices=names, value=NONE, elem_id=f"{self._tab}_script_list"))

    def extra(self, values: Sequence[Any]) -> dict[str, dict[str, Any]]:
        """The values of `controls` as Request.extra; an emptied control is left out."""
        values = list(values)
        found = {}
        for entry in self._entries if values else ():
            own = [values.pop(0) for _ in entry.controls]
            found[entry.name] = {control.name: value for control, value in zip(entry.controls, own, strict=True) if value not in (None, "")}
        chosen = values[0] if values else NONE
        for entry in self._entries:                         # a script's controls say something only where it is chosen
            if entry.extension and entry.extension.selectable and entry.name != chosen:
                found.pop(entry.name, None)
        return found if chosen in (NONE, None) else {chosen: {}, **found}

    def paste(self, extra: Mapping[str, Any] | None) -> list[Any]:
        """One update a control: what `extra` says, defaults for what it leaves out; None leaves all as they are."""
        if extra is None:
            return [gr.skip() for _ in self.controls]
        updates = [_update(entry, control, extra) for entry in self._entries for control in entry.controls] if self.controls else []
        chosen = next((name for name in self._scripts if name in extra), NONE)
        return [*updates, gr.update(value=chosen)] if self._scripts and self.controls else updates


def _update(entry: Entry, control: Control, extra: Mapping[str, Any]) -> Any:
    return gr.update(value=extra.get(entry.name, {}).get(control.name, control.default))


def _component(control: Control, value: Any, element: str) -> Component:
    given: dict[str, Any] = {"label": control.label, "value": value, "info": control.help or None, "elem_id": element}
    if control.kind == "bool":
        return gr.Checkbox(**given)
    if control.kind == "choice":
        return gr.Dropdown(choices=list(control.choices), **given)
    if control.minimum is not None and control.maximum is not None:
        return gr.Slider(control.minimum, control.maximum, step=control.step or (1 if control.kind == "int" else 0.01), buttons=[], **given)
    return gr.Textbox(lines=1, max_lines=6 if control.kind == "text" else 1, **{**given, "value": str(value)})


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
