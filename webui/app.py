"""Page and API as one ASGI application, to be served behind the door. Gradio is imported here and not before."""
from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from modules.core.errors import WebUIError
from modules.core.flags import Flags
from webui.door import four_keys

log = logging.getLogger("easel.web")


def build(engine: Any, flags: Flags) -> FastAPI:
    """The application. Its lifespan is to be entered by whoever serves it (`app.router.lifespan_context(app)`)."""
    app = FastAPI(title="Easel", docs_url=None, redoc_url=None, version="0.1.0")
    app.add_exception_handler(WebUIError, _user_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _own_fault)
    if flags.api or flags.nowebui:
        from webui.api import routes                        # the schemas take their time; not needed without the API
        app.include_router(routes(engine, flags))
    if not flags.nowebui:
        _mount_page(app, engine, flags)
    return app


def _mount_page(app: FastAPI, engine: Any, flags: Flags) -> None:
    import gradio as gr                                     # seconds to import, and not wanted by an API alone

    from webui.tabs import mounting, page
    gr.mount_gradio_app(app, page(engine, flags), path="/", **mounting(engine, flags))


async def _user_error(_: Request, error: Exception) -> JSONResponse:
    status = error.status if isinstance(error, WebUIError) else 500
    return JSONResponse(four_keys(str(error)), status_code=status)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if request.scope.get("route") is None:                  # no such path, or the wrong method: FastAPI's own words
        return JSONResponse({"detail": error.detail}, status_code=error.status_code, headers=error.headers)
    return JSONResponse(four_keys(str(error.detail)), status_code=error.status_code, headers=error.headers)


async def _own_fault(request: Request, error: Exception) -> JSONResponse:
    """Our own fault: the log gets the traceback, the client the kind of error alone, for its words may hold paths."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse(four_keys("", error=type(error).__name__, errors="Easel failed inside; its log says more."), status_code=500)
