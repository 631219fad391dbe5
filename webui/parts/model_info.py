"""The panel under the header line: what the chosen checkpoint is, who says so, and what its network predicts if the user knows better."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import gradio as gr

from modules.core.errors import WebUIError
from modules.engine import Engine
from webui.form import Form
from webui.parts import said
from webui.parts.header import QUIET, Header
from webui.parts.html import html

VARIANTS = MappingProxyType({"inpaint": "for inpainting", "edit": "edits pictures as it is told", "depth": "redraws by depth",
                             "upscale": "enlarges pictures", "unclip": "varies pictures", "layout": "draws what boxes say"})
PREDICTIONS = MappingProxyType({"eps": "eps (the noise)", "v": "v (velocity)", "x0": "x0 (the picture)", "edm": "EDM"})
CREDITS = (("modelspec.title", "Title"), ("modelspec.author", "Author"), ("modelspec.license", "License"), ("modelspec.date", "Date"))
LONGEST = 2000                                              # letters of a text that are shown


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The parts that are wired."""

    accordion: gr.Accordion
    facts: gr.Markdown
    picture: gr.Markdown
    prediction: gr.Dropdown


def build(form: Form) -> Panel:
    """Closed at first; what it shows is read when it is opened, or another model is chosen."""
    with gr.Accordion("About this model", open=False, elem_id="model_info") as accordion:
        with gr.Row(elem_classes="model"):
            with gr.Column(scale=3, min_width=280):
                facts = html("", "model_facts")
            with gr.Column(scale=1, min_width=200):
                prediction = form.make("prediction", min_width=140)
                picture = html("", "model_picture")
    return Panel(accordion=accordion, facts=facts, picture=picture, prediction=prediction)


def wire(engine: Engine, top: Header, panel: Panel) -> None:
    def show(title: str | None) -> tuple[str, str]:
        return shown(engine, title)

    for event in (top.checkpoint.change, panel.accordion.expand):
        event(show, top.checkpoint, [panel.facts, panel.picture], trigger_mode="always_last", **QUIET)
    top.checkpoint.input(lambda: "Auto", None, panel.prediction, **QUIET)      # it was said of the other model
    top.refresh.click(show, top.checkpoint, [panel.facts, panel.picture], **QUIET)


def shown(engine: Engine, title: str | None) -> tuple[str, str]:
    """(facts, picture) of the model of this title as HTML."""
    if not title:
        return "", ""
    try:
        found = engine.tools.model_info(title)
    except WebUIError as error:
        return said.note(str(error), "bad"), ""
    guessed = tuple(found.described.guessed) if found.described else ()
    sentences = [(found.fault, "bad")] if found.fault else []
    if guessed:
        sentences.append((f"Guessed, since the file does not say it: {', '.join(guessed)}. If its pictures fall apart, choose another "
                          "prediction.", "plain"))
    rows = [(name, text if len(text) <= LONGEST else text[:LONGEST] + " ...") for name, text in _rows(found)]
    marked = ("Prediction",) if found.described and found.described.prediction_by == "guessed" else ()
    facts = said.table(rows, marked) + said.notes(sentences)
    name = found.entry.name
    return facts, said.picture(f"easel/v1/models/preview?name={quote(name, safe='')}", f"Picture of {name}") if found.preview else ""


def _rows(found: Any) -> Iterator[tuple[str, str]]:
    """(name, text) of what is known; what is not is left out."""
    entry, told = found.entry, found.described
    if told is None:
        yield "File", entry.name
        return
    yield "File", f"{entry.name}, {told.form}, {_bytes(told.size)}"
    if told.family:
        yield "Family", f"{told.family}{', ' + VARIANTS.get(told.variant, told.variant) if told.variant else ''}"
    if told.prediction:
        who = "" if told.prediction_by in ("", "guessed") else f", {_who(told.prediction_by)}"
        yield "Prediction", f"{PREDICTIONS.get(told.prediction, told.prediction)}{who}"
    if told.native_size:
        yield "Size", f"{told.native_size} × {told.native_size} pixels"
    if told.latent_channels and told.downscale:
        scale = f", scale {told.latent_scale}" if told.latent_scale else ""
        yield "Latents", f"{told.latent_channels} channels, a cell of {told.downscale} pixels{scale}"
    for part in told.parts:
        if part.name != "other":
            yield part.name[0].upper() + part.name[1:], f"{part.values:,} values, {' and '.join(part.dtypes)}"
    yield "Hash", f"{entry.shorthash} (SHA-256 {entry.sha256})" if entry.sha256 else "computed with the first picture"
    if found.preferred_vae:
        yield "VAE", f"{found.preferred_vae}, as you tied it"
    yield from ((name, told.metadata[key]) for key, name in CREDITS if told.metadata.get(key))
    for name, text in (("Trigger words", found.trigger_words), ("Description", found.description), ("Notes", found.notes)):
        if text:
            yield name, text


def _who(by: str) -> str:
    return "as its metadata say" if by == "metadata" else f"as {by}"


def _bytes(count: int) -> str:
    """1234567 -> "1.2 MB"."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
