"""img2img: a picture, and what of it is to be painted anew. The rest is as on txt2img, whose parts it takes."""
from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from modules.core.errors import WebUIError
from modules.engine import Engine, Job
from modules.pipeline import parameters
from webui.form import Form
from webui.parts import said, watch
from webui.parts.header import QUIET, Header
from webui.parts.html import html
from webui.parts.model_info import Panel
from webui.tabs.png_info import PngInfo
from webui.tabs.txt2img import SEEDS, count, icon, prompt_box, reuse, seed_row, stage_of, wire_job, wire_pictures

LARGEST = 1 << 20                                           # pixels: a larger picture is drawn with its shape and so many
MASK, COLOURS, BOTH = "Mask", "Colours", "Colours and mask"
RESIZE = (("Just resize", 0), ("Crop and resize", 1), ("Resize and fill", 2), ("Resize the latent", 3))
FILL = (("fill", 0), ("original", 1), ("latent noise", 2), ("latent nothing", 3))
AREA = (("Whole picture", False), ("Only masked", True))
MODE = (("Inpaint masked", False), ("Inpaint not masked", True))


@dataclass(frozen=True, kw_only=True)
class Img2Img:
    """The parts of the tab that are wired. drawing: the strokes over it, as static/drawing.js leaves them; meaning: what they stand for."""

    source: gr.Image
    drawing: gr.Textbox
    meaning: gr.Radio
    mask: gr.Image
    note: gr.Markdown
    stage: watch.Stage
    counters: dict[str, gr.Markdown]
    swap: gr.Button
    random: dict[str, gr.Button]
    reuse: dict[str, gr.Button]

    @property
    def pictures(self) -> list[Any]:
        return [self.source, self.drawing, self.meaning, self.mask]


def build(engine: Engine, form: Form, top: Header, panel: Panel) -> Img2Img:
    """The layout: prompts and buttons above, the picture and settings left, results right."""
    for field, control in (("checkpoint", top.checkpoint), ("vae", top.vae), ("prediction", panel.prediction)):
        form.add(field, control)                            # one for all tabs
    with gr.Tab("img2img", id="img2img", elem_id="tab_img2img", render_children=True):
        with gr.Row(elem_id="img2img_toprow", elem_classes="toprow"):
            with gr.Column(scale=6, elem_classes="prompts"):
                counters = {"prompt": prompt_box(form, "prompt", "Prompt (press Ctrl+Enter to generate)"),
                            "negative_prompt": prompt_box(form, "negative_prompt", "Negative prompt")}
            with gr.Column(scale=1, min_width=200, elem_classes="actions"):
                generate = gr.Button("Generate", variant="primary", size="lg", elem_id="img2img_generate")
                with gr.Row(elem_classes="stop"):
                    interrupt = gr.Button("Interrupt", size="lg", elem_id="img2img_interrupt", visible="hidden", min_width=0)
                    skip = gr.Button("Skip", size="lg", elem_id="img2img_skip", visible="hidden", min_width=0)
                if engine.tools.choices("styles"):
                    form.make("styles", min_width=0)
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=1, elem_id="img2img_settings", min_width=320):
                source, drawing, meaning, mask, note = _pictures()
                swap, random, again = _settings(form)
            with gr.Column(scale=1, elem_id="img2img_results", min_width=320):
                stage = stage_of("img2img", generate, interrupt, skip)
    return Img2Img(source=source, drawing=drawing, meaning=meaning, mask=mask, note=note, stage=stage, counters=counters, swap=swap,
                   random=random, reuse=again)


def _pictures() -> tuple[gr.Image, gr.Textbox, gr.Radio, gr.Image, gr.Markdown]:
    """Where pictures come in: the one to begin from, what is drawn over it, a mask from a file."""
    with gr.Tabs(elem_id="mode_img2img"):
        with gr.Tab("Picture", id="picture", render_children=True):
            source = gr.Image(label="Picture to begin from", elem_id="img2img_image", type="filepath", image_mode=None,
                              sources=["upload", "clipboard"], height=320)
        with gr.Tab("Draw on it", id="draw", render_children=True):
            meaning = gr.Radio([MASK, COLOURS, BOTH], value=MASK, label="What is drawn is", elem_id="img2img_meaning")
            gr.Column(elem_id="img2img_canvas", min_width=0)
            drawing = gr.Textbox("", elem_id="img2img_drawing", visible="hidden", lines=1, max_lines=1)
        with gr.Tab("Mask from a file", id="mask", render_children=True):
            mask = gr.Image(label="Mask, as large as the picture: white or opaque is painted anew", elem_id="img_inpaint_mask",
                            type="filepath", image_mode=None, sources=["upload", "clipboard"], height=320)
    return source, drawing, meaning, mask, html("", "img2img_source_note")


def _settings(form: Form) -> tuple[gr.Button, dict[str, gr.Button], dict[str, gr.Button]]:
    """Below the pictures; returns the buttons: swap, random seed, reuse seed."""
    _radio(form, "resize_mode", RESIZE)
    form.make("denoising_strength")
    with gr.Accordion("Mask", open=False, elem_id="img2img_mask_show"):
        form.make("mask_blur_x", label="Mask blur")
        with gr.Row():
            _radio(form, "inpainting_mask_invert", MODE)
            _radio(form, "inpaint_full_res", AREA)
        _radio(form, "inpainting_fill", FILL)
        form.make("inpaint_full_res_padding")
        form.make("soft_inpainting")
    with gr.Row():
        form.make("sampler", min_width=140)
        form.make("scheduler", min_width=140)
    form.make("steps")
    with gr.Row(elem_classes="size"):
        with gr.Column(scale=3, min_width=160):
            form.make("width")
            form.make("height")
        swap = icon("Swap width and height", "swap", "img2img_res_switch_btn")
        with gr.Column(scale=2, min_width=140):
            form.make("n_iter")
            form.make("batch_size")
    form.make("cfg_scale")
    random, again = {}, {}
    with gr.Row(elem_classes="seed", equal_height=False):
        random["seed"], again["seed"] = seed_row(form, "seed", "random_seed", "reuse_seed")
        form.make("clip_skip", min_width=140)
    with gr.Accordion("Variation", open=False, elem_id="img2img_subseed_show"), gr.Row(elem_classes="seed", equal_height=False):
        random["subseed"], again["subseed"] = seed_row(form, "subseed", "random_subseed", "reuse_subseed")
        form.make("subseed_strength", min_width=140)
    with gr.Accordion("More about the picture", open=False, elem_id="img2img_more_show"):
        with gr.Row():
            form.make("initial_noise_multiplier", min_width=140)
            form.make("img2img_extra_noise", min_width=140)
        with gr.Row():
            form.make("image_cfg_scale", min_width=140)
            form.make("inpainting_mask_weight", min_width=140)
        form.make("img2img_fix_steps")
        form.make("img2img_color_correction")
    form.extensions.build()
    return swap, random, again


def _radio(form: Form, field: str, choices: Sequence[tuple[str, Any]]) -> None:
    row = parameters.by_field(field)
    form.add(field, gr.Radio(choices=list(choices), value=form.default(field), label=row.label, elem_id=form.element(field), min_width=140))


def wire(engine: Engine, form: Form, parts: Img2Img, blocks: gr.Blocks) -> None:
    """What each button and box does."""
    def submit(source: str | None, drawing: str, meaning: str, mask: str | None, *values: Any) -> Job:
        pictures, notices = _kept(engine, source, drawing, meaning, mask)
        at = form.names.index("mask_blur_x")
        request = form.request(values, {**pictures, "mask_blur_y": values[at]})
        return engine.submit(request, notices=notices)

    def took(path: str | None) -> dict[Any, Any]:
        """A picture was given: the size follows its shape."""
        if not path:
            return {parts.note: ""}
        try:
            kept = engine.inputs.keep(Path(path).read_bytes())
        except (WebUIError, OSError) as error:
            return {parts.note: said.note(said.trouble(error), "bad")}
        size = parameters.size_like((kept.width, kept.height), LARGEST)
        words = [(f"{kept.width} × {kept.height} pixels", "quiet"), *((text, "warn") for text in kept.notices)]
        return {parts.note: said.notes(words), form["width"]: size["width"], form["height"]: size["height"]}

    wire_job(engine, form, parts.stage, blocks, None, submit, parts.pictures)
    wire_pictures(engine, parts.stage)
    parts.source.change(took, parts.source, [parts.note, form["width"], form["height"]], **QUIET)
    for field, counter in parts.counters.items():
        count(engine, form, field, counter)
    parts.swap.click(lambda width, height: (height, width), [form["width"], form["height"]], [form["width"], form["height"]], **QUIET)
    for field in SEEDS:
        parts.random[field].click(lambda: "-1", None, form[field], **QUIET)
        parts.reuse[field].click(reuse(field), [parts.stage.texts, parts.stage.chosen], form[field], **QUIET)


def _kept(engine: Engine, source: str | None, drawing: str, meaning: str, mask: str | None) -> tuple[dict[str, str], tuple[str, ...]]:
    """The names of picture and mask in the store, and what there is to say about the files. A mask from a file comes before a drawn one."""
    if not source:
        return {"image": ""}, ()                            # the check of the request says what is missing
    layers = [base64.b64decode(drawing.partition(",")[2])] if drawing else []
    image, drawn = engine.inputs.keep_drawn(Path(source).read_bytes(), layers, mask=meaning != COLOURS, colours=meaning != MASK)
    given = engine.inputs.keep(Path(mask).read_bytes(), "mask") if mask else drawn
    return {"image": image.sha256, **({"mask": given.sha256} if given else {})}, (*image.notices, *(given.notices if given else ()))


def wire_sending(engine: Engine, form: Form, parts: Img2Img, tabs: gr.Tabs, stages: Sequence[watch.Stage], info: PngInfo) -> None:
    """"Send to img2img" below the results of both tabs and on PNG Info: the picture, and what its text says."""
    shown = [tabs, parts.source, parts.stage.note, *form.controls]

    def send(path: str | None) -> list[Any]:
        if not path:
            return [gr.skip()] * len(shown)
        try:
            found = dict(engine.tools.read_picture(Path(path)).request)
        except WebUIError as error:
            return [gr.skip(), gr.skip(), said.note(said.trouble(error), "bad"), *[gr.skip()] * len(form.controls)]
        kept = {name: value for name, value in found.items() if name not in ("width", "height")}
        return [gr.Tabs(selected="img2img"), path, "", *form.paste(kept)]

    def chosen(texts: list[tuple[str, str]], at: int) -> list[Any]:
        return send(texts[at][1] if at < len(texts) else None)

    for stage in stages:
        stage.redraw.click(chosen, [stage.texts, stage.chosen], shown, **QUIET)
    info.redraw.click(send, info.file, shown, **QUIET)
