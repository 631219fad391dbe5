"""A place on the page for HTML that parts/said.py made. The browser cleans it once more before it shows it."""
from typing import Any

import gradio as gr


def html(value: str, element: str, **more: Any) -> gr.Markdown:
    """gr.HTML needs a content policy that lets scripts be made of text; Markdown takes the same HTML, and without that."""
    return gr.Markdown(value, elem_id=element, latex_delimiters=[], sanitize_html=True, container=False, **more)
