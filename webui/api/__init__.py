"""The HTTP API: A1111's routes under /sdapi/v1 and /internal, our own under /easel.

Two functions for whoever builds the app:

    app.include_router(routes(engine, flags))               before the page is mounted on "/", else the page answers first
    install_handlers(app)                                   errors as clients parse them; no traceback, no path

/sdapi/v1 is there with --api or --nowebui; /internal with a page; /easel/v1 (jobs by id, for our own client) and /easel/static (the page's
script) always. Nobody is asked for credentials here: the door in front of everything does that.
"""
from typing import Any

from fastapi import APIRouter

from modules.engine import Engine
from webui.api import generate, img2img, internal, jobs, listings, pictures, prompts, scripts, settings, static
from webui.api.errors import install_handlers

__all__ = ["install_handlers", "routes"]


def routes(engine: Engine, flags: Any) -> APIRouter:
    """All routes that these flags ask for. flags: core.flags.Flags."""
    router = APIRouter()
    if flags.api or flags.nowebui:
        for part in (generate.routes(engine), img2img.routes(engine), listings.routes(engine), scripts.routes(engine),
                     settings.routes(engine, flags), pictures.routes(engine)):
            router.include_router(part, prefix="/sdapi/v1", tags=["sdapi"])
    if not flags.nowebui:
        router.include_router(internal.routes(engine), prefix="/internal", tags=["internal"])
    for part in (jobs.routes(engine), prompts.routes(engine)):
        router.include_router(part, prefix="/easel/v1", tags=["easel"])
    router.include_router(static.routes(), prefix="/easel/static", include_in_schema=False)
    return router
