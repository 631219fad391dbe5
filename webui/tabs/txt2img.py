"""txt2img: words on the left, pictures on the right. The button submits a Request; all else watches the job it became."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gradio as gr

from modules.core.errors import WebUIError
from modules.engine import Engine, Job
from modules.pipeline import infotext, parameters
from webui.form import Form
from webui.parts import said, watch
from webui.parts.header import QUIET, Header, chosen_checkpoint
from webui.parts.html import html

SEEDS = ("seed", "subseed")
VERDICTS = MappingProxyType({"identical": "good", "different": "warn", "cannot": "bad"})
NOT_RESTORED = (*SEEDS, "checkpoint", "vae")                # a page that is opened again shows the last request, but draws a new picture


@dataclass(frozen=True, kw_only=True)
class Txt2Img:
    """The parts of the tab that are wired."""

    tab: gr.Tab
    stage: watch.Stage
    counters: dict[str, gr.Markdown]
    swap: gr.Button
    random: dict[str, gr.Button]
    reuse: dict[str, gr.Button]


def build(engine: Engine, form: Form) -> Txt2Img:
    """The layout: prompts and buttons above, settings left, pictures right."""
    with gr.Tab("txt2img", id="txt2img", elem_id="tab_txt2img", render_children=True) as tab:
        with gr.Row(elem_id="txt2img_toprow", elem_classes="toprow"):
            with gr.Column(scale=6, elem_classes="prompts"):
                counters = {"prompt": prompt_box(form, "prompt", "Prompt (press Ctrl+Enter to generate)"),
                            "negative_prompt": prompt_box(form, "negative_prompt", "Negative prompt")}
            with gr.Column(scale=1, min_width=200, elem_classes="actions"):
                generate = gr.Button("Generate", variant="primary", size="lg", elem_id="txt2img_generate")
                with gr.Row(elem_classes="stop"):
                    interrupt = gr.Button("Interrupt", size="lg", elem_id="txt2img_interrupt", visible="hidden", min_width=0)
                    skip = gr.Button("Skip", size="lg", elem_id="txt2img_skip", visible="hidden", min_width=0)
                if engine.tools.choices("styles"):
                    form.make("styles", min_width=0)
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=1, elem_id="txt2img_settings", min_width=320):
                swap, random, reuse = _settings(form)
            with gr.Column(scale=1, elem_id="txt2img_results", min_width=320):
                stage = stage_of(form.tab, generate, interrupt, skip)
    return Txt2Img(tab=tab, stage=stage, counters=counters, swap=swap, random=random, reuse=reuse)


def prompt_box(form: Form, field: str, placeholder: str) -> gr.Markdown:
    """One prompt box with its token counter in the corner."""
    label = {"prompt": "Prompt", "negative_prompt": "Negative prompt"}[field]
    with gr.Column(elem_classes="prompt", min_width=0):
        form.make(field, label=label, show_label=False, placeholder=placeholder, lines=3, max_lines=12, container=False,
                  html_attributes=gr.InputHTMLAttributes(spellcheck=False, autocomplete="off"))
        words = "" if field == "prompt" else "negative_"
        return html(said.counter(0, 75), f"{form.tab}_{words}token_counter", elem_classes="token-counter")


def _settings(form: Form) -> tuple[gr.Button, dict[str, gr.Button], dict[str, gr.Button]]:
    """The left column; returns the buttons in it: swap, random seed, reuse seed."""
    with gr.Row():
        form.make("sampler", min_width=140)
        form.make("scheduler", min_width=140)
    form.make("steps")
    with gr.Row(elem_classes="size"):
        with gr.Column(scale=3, min_width=160):
            form.make("width")
            form.make("height")
        swap = icon("Swap width and height", "swap", "txt2img_res_switch_btn")
        with gr.Column(scale=2, min_width=140):
            form.make("n_iter")
            form.make("batch_size")
    form.make("cfg_scale")
    random, reuse = {}, {}
    with gr.Row(elem_classes="seed", equal_height=False):
        random["seed"], reuse["seed"] = seed_row(form, "seed", "random_seed", "reuse_seed")
        form.make("clip_skip", min_width=140)
    with gr.Accordion("Variation", open=False, elem_id="txt2img_subseed_show"):
        with gr.Row(elem_classes="seed", equal_height=False):
            random["subseed"], reuse["subseed"] = seed_row(form, "subseed", "random_subseed", "reuse_subseed")
            form.make("subseed_strength", min_width=140)
        with gr.Row():
            form.make("seed_resize_from_w", min_width=140)
            form.make("seed_resize_from_h", min_width=140)
    with gr.Accordion("Refiner", open=False, elem_id="txt2img_refiner_show"), gr.Row():
        form.make("refiner", min_width=140, choices=refiners(form))
        form.make("refiner_switch_at", min_width=140)
    with gr.Accordion("Second prompt", open=False, elem_id="txt2img_prompt_2_show"):
        form.make("prompt_2", lines=2, max_lines=8)
        form.make("negative_prompt_2", lines=2, max_lines=8)
    form.extensions.build()
    return swap, random, reuse


def refiners(form: Form) -> list[tuple[str, str]]:
    """(shown, value) of each checkpoint that may take over."""
    return [(name or "None", name) for name in form.choices(parameters.by_field("refiner"))]


def seed_row(form: Form, field: str, random: str, reuse: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row(elem_classes="seed-box", equal_height=False):
        form.make(field, min_width=90, html_attributes=gr.InputHTMLAttributes(autocomplete="off"))
        return (icon("Random: a new one each time", "dice", f"{form.tab}_{random}"),
                icon("Reuse the one of the picture shown", "again", f"{form.tab}_{reuse}"))


def icon(words: str, name: str, element: str) -> gr.Button:
    """A button that shows only an icon; its words are its name for screen readers and its tooltip."""
    return gr.Button(words, elem_id=element, elem_classes=["icon", name], min_width=0, scale=0)


def stage_of(tab: str, generate: gr.Button, interrupt: gr.Button, skip: gr.Button) -> watch.Stage:
    """The right column."""
    progress = html("", f"{tab}_progress")
    live = html("", f"{tab}_live", visible="hidden")
    gallery = gr.Gallery(label="Pictures", show_label=False, elem_id=f"{tab}_gallery", columns=3, object_fit="contain", preview=True,
                         interactive=False, buttons=["download", "fullscreen"], height=None)
    note = html("", f"{tab}_note")
    text = gr.Textbox(label="Generation parameters", elem_id=f"{tab}_infotext", lines=4, max_lines=10, interactive=False, buttons=["copy"],
                      elem_classes="infotext")
    with gr.Row(elem_classes="after"):
        replay = gr.Button("Replay", elem_id=f"{tab}_replay", interactive=False, size="sm", min_width=0)
        inspect = gr.Button("Send to PNG Info", elem_id=f"{tab}_send_to_pnginfo", interactive=False, size="sm", min_width=0)
        redraw = gr.Button("Send to img2img", elem_id=f"{tab}_send_to_img2img", interactive=False, size="sm", min_width=0)
    return watch.Stage(
        job=gr.BrowserState("", storage_key=f"easel.{tab}.job", secret="easel"), seen=gr.State(0), texts=gr.State([]),
        timer=gr.Timer(watch.PERIOD, active=False), generate=generate, interrupt=interrupt, skip=skip, progress=progress, live=live,
        gallery=gallery, infotext=text, note=note, replay=replay, inspect=inspect, redraw=redraw, chosen=gr.State(0))


def wire(engine: Engine, form: Form, top: Header, parts: Txt2Img, blocks: gr.Blocks, native: tuple[int, int]) -> None:
    """What each button and box does. native: the chosen model's own width and height in pixels."""
    known = gr.State(native)
    wire_job(engine, form, parts.stage, blocks, _Sizes(top=top, known=known, built=native),
             lambda *values: engine.submit(form.request(values)))
    wire_pictures(engine, parts.stage)
    for field, counter in parts.counters.items():
        count(engine, form, field, counter)
    parts.swap.click(lambda width, height: (height, width), [form["width"], form["height"]], [form["width"], form["height"]], **QUIET)
    for field in SEEDS:
        parts.random[field].click(lambda: "-1", None, form[field], **QUIET)
        parts.reuse[field].click(reuse(field), [parts.stage.texts, parts.stage.chosen], form[field], **QUIET)
    for event in (top.refresh.click, blocks.load):
        event(lambda: gr.update(choices=refiners(form)), None, form["refiner"], **QUIET)
    _follow_native_size(form, top, known)


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """known: width and height that the page last took from a model; built: those of the model that was chosen when the page was built."""

    top: Header
    known: gr.State
    built: tuple[int, int]

    def fresh(self, engine: Engine, form: Form) -> dict[Any, Any]:
        """For a page that begins anew: the size of the model that is chosen now, where no size of the user's own was asked for."""
        size = self.top.native_size(chosen_checkpoint(engine))
        if size == self.built:
            return {self.known: size}                       # all that is shown is right, and what was typed meanwhile stays
        own = (form.defaults.width, form.defaults.height) != self.built
        return {self.known: size, **({} if own else {form["width"]: size[0], form["height"]: size[1]})}


def wire_job(engine: Engine, form: Form, stage: watch.Stage, blocks: gr.Blocks, sizes: _Sizes | None, submit: Callable[..., Job],
             first: Sequence[Any] = ()) -> None:
    """submit: makes a job of the values of `first` and of the form's controls."""
    def press(*values: Any) -> dict[Any, Any]:
        try:
            return stage.begun(submit(*values))
        except Exception as error:                          # a face is a door at which errors become sentences
            return stage.failed(error)

    def tick(job_id: str, seen: int) -> dict[Any, Any]:
        return stage.look(engine, job_id, seen)

    def attach(job_id: str) -> dict[Any, Any]:
        return _attached(engine, form, stage, sizes, job_id)

    def stop(job_id: str) -> None:
        if job_id:
            engine.job(job_id).cancel()

    def pass_over(job_id: str) -> None:
        if job_id:
            engine.job(job_id).skip()

    stage.generate.click(press, [*first, *form.controls], stage.outputs, **QUIET)
    stage.timer.tick(tick, [stage.job, stage.seen], stage.outputs, **QUIET)
    stage.interrupt.click(stop, stage.job, None, **QUIET)
    stage.skip.click(pass_over, stage.job, None, **QUIET)
    blocks.load(attach, stage.job, [*stage.outputs, *form.controls, *([sizes.known] if sizes else [])], **QUIET)


def _attached(engine: Engine, form: Form, stage: watch.Stage, sizes: _Sizes | None, job_id: str) -> dict[Any, Any]:
    """A page that was just opened: this browser's last job, else the one that runs, else nothing."""
    try:
        job = engine.job(job_id) if job_id else engine.running()
    except WebUIError:
        job = engine.running()
    if job is None or job.kind != form.tab:
        forgotten = {stage.job: ""} if job_id or not sizes else {}          # else a job that was submitted meanwhile would be
        return {**forgotten, **(sizes.fresh(engine, form) if sizes else {})}
    changes = stage.finished(engine, job) if job.ended else stage.begun(job)
    entry = engine.tools.checkpoint()
    same_model = entry is not None and entry.name == job.request.checkpoint     # what it predicts was said of that model alone
    without = NOT_RESTORED if same_model and sizes else (*NOT_RESTORED, "prediction")
    return {**changes, **dict(zip(form.controls, form.values(job.request, without=without), strict=True))}


def wire_pictures(engine: Engine, stage: watch.Stage) -> None:
    """The text under the gallery follows the picture that is looked at; replay makes that one again."""
    def select(texts: list[tuple[str, str]], event: gr.SelectData) -> tuple[str, int]:
        index = event.index if isinstance(event.index, int) else 0
        return (texts[index][0], index) if index < len(texts) else ("", 0)

    def replay(texts: list[tuple[str, str]], chosen: int) -> str:
        return verdict(engine, Path(texts[chosen][1])) if chosen < len(texts) else ""

    stage.gallery.select(select, stage.texts, [stage.infotext, stage.chosen], **QUIET)
    stage.replay.click(lambda: said.note("Drawing the picture again …"), None, stage.note, **QUIET).then(
        replay, [stage.texts, stage.chosen], stage.note, concurrency_limit=None, **QUIET)


def verdict(engine: Engine, file: Path) -> str:
    """Whether the picture comes out the same when it is made again, in one sentence."""
    try:
        found = engine.tools.replay(file)
    except Exception as error:                              # a face is a door at which errors become sentences
        return said.note(said.trouble(error), "bad")
    return said.note(found.sentence, VERDICTS[found.state])


def count(engine: Engine, form: Form, field: str, counter: gr.Markdown) -> None:
    """The counter follows its prompt, and the styles where there are any."""
    styles = [form["styles"]] if "styles" in form.names else []

    def counted(text: str, chosen: list[str] | None = None) -> str:
        try:
            return said.counter(*engine.tools.token_count(text or "", negative=field == "negative_prompt", styles=chosen or ()))
        except WebUIError as error:
            return said.note(str(error), "bad")

    for event in (form[field].input, form[field].change, *(box.change for box in styles)):
        event(counted, [form[field], *styles], counter, trigger_mode="always_last", concurrency_limit=None, **QUIET)


def reuse(field: str) -> Callable[[list[tuple[str, str]], int], Any]:
    label = {"seed": "Seed", "subseed": "Variation seed"}[field]

    def reuse(texts: list[tuple[str, str]], chosen: int) -> Any:
        fields = infotext.read(texts[chosen][0]).fields if chosen < len(texts) else {}
        return fields.get(label) or gr.skip()

    return reuse


def _follow_native_size(form: Form, top: Header, known: gr.State) -> None:
    """Another model brings its own size, unless the user has chosen a size of theirs."""
    width, height = form["width"], form["height"]

    def follow(title: str | None, now: tuple[int, int], wide: int, high: int) -> tuple[Any, Any, tuple[int, int]]:
        size = top.native_size(title)
        return (*size, size) if (wide, high) == tuple(now) else (gr.skip(), gr.skip(), size)

    top.checkpoint.input(follow, [top.checkpoint, known, width, height], [width, height, known], **QUIET)
