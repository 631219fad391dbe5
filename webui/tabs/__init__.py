"""The page: a header line and one tab for each thing to do.

Two functions for whoever mounts it:

    blocks = page(engine, flags)
    gr.mount_gradio_app(app, blocks, path="/", **mounting(engine, flags))

A tab is `build(engine, form, ...)` in its own file: layout above, wiring below, work elsewhere.
"""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from modules.engine import Engine
from webui.form import Form
from webui.parts import header, model_info
from webui.parts.theme import theme
from webui.tabs import img2img, png_info, txt2img

STATIC = Path(__file__).resolve().parent.parent / "static"


def page(engine: Engine, flags: Any) -> gr.Blocks:
    """The whole page. Building it starts nothing and serves nothing."""
    native = header.native_size(engine, header.chosen_checkpoint(engine))
    own = {"width": native[0], "height": native[1], **engine.tools.page_defaults("txt2img")}
    with gr.Blocks(title="Easel", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as blocks:
        form = Form(engine, "txt2img", engine.tools.request(own))
        other = Form(engine, "img2img", engine.tools.request({**own, **engine.tools.page_defaults("img2img")}))
        top = header.build(engine, form)
        panel = model_info.build(form)
        with gr.Tabs(elem_id="tabs") as tabs:
            draw = txt2img.build(engine, form)
            redraw = img2img.build(engine, other, top, panel)
            info = png_info.build()
        header.wire(engine, top, blocks)
        model_info.wire(engine, top, panel)
        txt2img.wire(engine, form, top, draw, blocks, native)
        img2img.wire(engine, other, redraw, blocks)
        png_info.wire(engine, form, info, draw.stage, tabs)
        img2img.wire_sending(engine, other, redraw, tabs, (draw.stage, redraw.stage), info)
    return blocks


def mounting(engine: Engine, flags: Any) -> Mapping[str, Any]:
    """What gr.mount_gradio_app is to be told beside the page and its path: theme, style, script, and which folder pictures come from."""
    # Served from where they lie: the gallery hands out the saved files themselves, not copies.
    gr.set_static_paths([engine.paths.outputs, engine.paths.spool, engine.paths.inputs, STATIC])
    return {
        "theme": theme(), "css_paths": [STATIC / "style.css"], "head_paths": [STATIC / "head.html"],
        "footer_links": [], "run_history": False, "show_error": True, "max_file_size": "64mb",
        "favicon_path": str(STATIC / "favicon.svg"), "pwa": False, "mcp_server": False, "enable_monitoring": False, "ssr_mode": False,
    }
