"""The line above the tabs: which checkpoint and VAE draw, and a word of warning when the model is only a stand-in."""
from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from modules.core.errors import NotFoundError, WebUIError
from modules.engine import Engine
from modules.pipeline.request import Request
from webui.form import Form, nearest
from webui.parts import said
from webui.parts.html import html

STANDIN = "easel.standin"                                   # a checkpoint's metadata key: it is a stand-in for the model that is to come
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True, kw_only=True)
class Header:
    """native_size(title) -> (width, height) in pixels at which that model draws best.

    start: sentences about the start; seen: which of them this browser has shown already.
    """

    native_size: Callable[[str | None], tuple[int, int]]
    checkpoint: gr.Dropdown
    vae: gr.Dropdown
    refresh: gr.Button
    notice: gr.Markdown
    start: gr.Markdown
    seen: gr.BrowserState


def build(engine: Engine, form: Form) -> Header:
    """The line itself; its two lists are controls of the form."""
    with gr.Row(elem_id="quicksettings", equal_height=False):
        html("<h1>Easel</h1>", "brand")
        checkpoint = form.make("checkpoint", label="Checkpoint", value=chosen_checkpoint(engine), min_width=120, scale=4)
        vae = form.make("vae", label="VAE", value=engine.tools.settings()["sd_vae"], min_width=120, scale=2)
        refresh = gr.Button("Look for models again", elem_id="refresh_models", elem_classes=["icon", "reload"], min_width=0, scale=0)
    notice = html(notice_of(engine, chosen_checkpoint(engine)), "notice")
    return Header(native_size=lambda title: native_size(engine, title), checkpoint=checkpoint, vae=vae, refresh=refresh, notice=notice,
                  start=html("", "start_notes"), seen=gr.BrowserState("", storage_key="easel.start.notes", secret="easel"))


def wire(engine: Engine, header: Header, blocks: gr.Blocks) -> None:
    """Choosing a model keeps the choice in the settings; a page that is opened or refreshed shows what there is now."""
    def choose(title: str | None) -> str:
        return said.note(*_kept(engine, "sd_model_checkpoint", title)) or notice_of(engine, title)

    def choose_vae(name: str | None) -> str | Any:
        kept = said.note(*_kept(engine, "sd_vae", name))
        return kept if kept else gr.skip()

    def lists(refresh: bool) -> tuple[Any, Any, str]:
        if refresh:
            engine.tools.checkpoints(refresh=True)
        title = chosen_checkpoint(engine)
        vaes = engine.tools.choices("vae")
        return (gr.update(choices=list(engine.tools.choices("checkpoint")), value=title),
                gr.update(choices=list(vaes), value=nearest(engine.tools.settings()["sd_vae"], vaes) or "Automatic"),
                notice_of(engine, title))

    def of_the_start(seen: str) -> tuple[str, str]:
        """What went wrong at the start, told once to each browser."""
        sentences = engine.tools.warnings()
        mark = hashlib.sha256("\n".join(sentences).encode("utf-8", "replace")).hexdigest() if sentences else ""
        return ("" if mark == seen else said.notes([(text, "warn") for text in sentences])), mark

    shown = [header.checkpoint, header.vae, header.notice]
    header.checkpoint.input(choose, header.checkpoint, header.notice, **QUIET)
    header.vae.input(choose_vae, header.vae, header.notice, **QUIET)
    header.refresh.click(lambda: lists(True), None, shown, **QUIET)
    blocks.load(lambda: lists(False), None, shown, **QUIET)
    blocks.load(of_the_start, header.seen, [header.start, header.seen], **QUIET)


def chosen_checkpoint(engine: Engine) -> str | None:
    """The title of the model that draws when nobody says otherwise; None when there is none."""
    entry = engine.tools.checkpoint()
    return entry.title if entry else None


def native_size(engine: Engine, title: str | None) -> tuple[int, int]:
    """(width, height) in pixels for a model of this title; None = there is none."""
    try:
        return engine.tools.native_size(title or "")
    except NotFoundError:
        return Request().width, Request().height


def _entry(engine: Engine, title: str | None) -> Any | None:
    return next((entry for entry in engine.tools.checkpoints() if entry.title == title), None)


def notice_of(engine: Engine, title: str | None) -> str:
    """What the user should know about the model before pressing Generate."""
    if title is None:
        return said.note("There is no model to draw with yet; put a .safetensors checkpoint into models/Stable-diffusion, then look again.",
                         "bad")
    entry = _entry(engine, title)
    if entry is not None and (entry.metadata or {}).get(STANDIN):
        return said.note("The chosen model is a miniature stand-in with random weights: its pictures look like noise whatever the prompt "
                         "says, until the embedded model lands or you choose a checkpoint of your own.", "warn")
    return ""


def _kept(engine: Engine, key: str, value: str | None) -> tuple[str, str]:
    """Keeps a choice; what went wrong as (sentence, kind)."""
    try:
        engine.tools.set_options({key: value or ""}, remote=False)
    except WebUIError as error:
        return str(error), "bad"
    return "", "plain"
