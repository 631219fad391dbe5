"""PNG Info: what a picture says about how it was made; send it to txt2img, or make the picture again and compare."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from modules.engine import Engine
from modules.pipeline import infotext
from webui.form import Form
from webui.parts import said, watch
from webui.parts.header import QUIET
from webui.parts.html import html
from webui.tabs.txt2img import verdict

EMPTY = "Drop a picture to read how it was made."


@dataclass(frozen=True, kw_only=True)
class PngInfo:
    """The parts of the tab that are wired. found: the Request fields that the picture's text gives."""

    file: gr.File
    picture: gr.Image
    text: gr.Textbox
    facts: gr.Markdown
    note: gr.Markdown
    send: gr.Button
    redraw: gr.Button
    replay: gr.Button
    found: gr.State


def build() -> PngInfo:
    """The layout: the picture left, what it says right."""
    with gr.Tab("PNG Info", id="pnginfo", elem_id="tab_pnginfo", render_children=True), gr.Row(elem_classes="columns"):
        with gr.Column(scale=1, min_width=320):
            # A file keeps its metadata; a picture component would hand on the pixels alone.
            file = gr.File(label="Drop a picture here", elem_id="pnginfo_image", file_types=["image"], height=150)
            picture = gr.Image(label="Picture", show_label=False, elem_id="pnginfo_picture", type="filepath", interactive=False,
                               buttons=["fullscreen"])      # the style sheet hides it while it is empty
        with gr.Column(scale=1, min_width=320):
            note = html(said.note(EMPTY), "pnginfo_note")
            text = gr.Textbox(label="Generation parameters", elem_id="pnginfo_generation_info", lines=6, max_lines=16, interactive=False,
                              buttons=["copy"], elem_classes="infotext")
            with gr.Row(elem_classes="after"):
                send = gr.Button("Send to txt2img", elem_id="pnginfo_send_to_txt2img", interactive=False, size="sm", min_width=0)
                redraw = gr.Button("Send to img2img", elem_id="pnginfo_send_to_img2img", interactive=False, size="sm", min_width=0)
                replay = gr.Button("Replay", elem_id="pnginfo_replay", interactive=False, size="sm", min_width=0)
            facts = html("", "pnginfo_facts")
    return PngInfo(file=file, picture=picture, text=text, facts=facts, note=note, send=send, redraw=redraw, replay=replay,
                   found=gr.State({}))


def wire(engine: Engine, form: Form, parts: PngInfo, stage: watch.Stage, tabs: gr.Tabs) -> None:
    """Reading a dropped picture, sending it on, replaying it; and looking at a picture that txt2img has just drawn."""
    shown = [parts.picture, parts.text, parts.facts, parts.note, parts.send, parts.redraw, parts.replay, parts.found]

    def read(path: str | None) -> dict[Any, Any]:
        return _read(engine, parts, path)

    def send(found: dict[str, Any]) -> list[Any]:
        return [gr.Tabs(selected="txt2img"), *form.paste(found)]

    def replay(path: str | None) -> str:
        return verdict(engine, Path(path)) if path else ""

    def inspect(texts: list[tuple[str, str]], chosen: int) -> dict[Any, Any]:
        if chosen >= len(texts):
            return {parts.note: gr.skip()}                  # Gradio takes an empty table for a mistake
        return {tabs: gr.Tabs(selected="pnginfo"), parts.file: texts[chosen][1], **_read(engine, parts, texts[chosen][1])}

    parts.file.upload(read, parts.file, shown, **QUIET)
    parts.file.clear(lambda: _read(engine, parts, None), None, shown, **QUIET)
    parts.send.click(send, parts.found, [tabs, *form.controls], **QUIET)
    parts.replay.click(lambda: said.note("Drawing the picture again …"), None, parts.note, **QUIET).then(
        replay, parts.file, parts.note, concurrency_limit=None, **QUIET)
    stage.inspect.click(inspect, [stage.texts, stage.chosen], [tabs, parts.file, *shown], **QUIET)


def _read(engine: Engine, parts: PngInfo, path: str | None) -> dict[Any, Any]:
    """The updates that show what a picture file says; None = there is no picture."""
    empty: dict[Any, Any] = {
        parts.picture: None, parts.text: "", parts.facts: "", parts.found: {},
        **{button: gr.update(interactive=False) for button in (parts.send, parts.redraw, parts.replay)}}
    if not path:
        return {**empty, parts.note: said.note(EMPTY)}
    try:
        found = engine.tools.read_picture(Path(path))
    except Exception as error:                              # a face is a door at which errors become sentences
        return {**empty, parts.note: said.note(said.trouble(error), "bad")}
    told = infotext.read(found.infotext).raw
    rows = [("File", f"{found.format}, {found.width} × {found.height}"), *told.items(), *found.items.items()]
    words = said.note("" if found.infotext else "This picture says nothing about how it was made.", "warn")
    return {
        parts.picture: path, parts.text: found.infotext,
        parts.facts: said.table([(str(name), str(value)) for name, value in rows]), parts.note: words, parts.found: dict(found.request),
        parts.send: gr.update(interactive=bool(found.infotext)), parts.redraw: gr.update(interactive=True),
        parts.replay: gr.update(interactive=bool(found.infotext) or found.record is not None),
    }
