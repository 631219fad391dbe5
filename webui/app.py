"""Page and API as one ASGI application, to be served behind the door. FastAPI and Gradio are imported here and not before."""
from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from modules.core.flags import Flags
from webui.api import install_handlers, routes


def build(engine: Any, flags: Flags) -> FastAPI:
    """The application. Its lifespan is to be entered by whoever serves it (`app.router.lifespan_context(app)`)."""
    app = FastAPI(title="Easel", version="0.1.0", docs_url=None, redoc_url=None)    # their pages fetch scripts from the network
    install_handlers(app)
    app.include_router(routes(engine, flags))               # before the page, which answers every other path
    if not flags.nowebui:
        _mount_page(app, engine, flags)
    return app


def _mount_page(app: FastAPI, engine: Any, flags: Flags) -> None:
    # Gradio takes seconds to import, and an API alone does without it.
    import gradio as gr

    from webui.tabs import mounting, page
    gr.mount_gradio_app(app, page(engine, flags), path="/", **mounting(engine, flags))
