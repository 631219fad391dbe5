"""Errors as A1111's clients parse them. A user's mistake is 4xx, 5xx is ours alone; no traceback and no path leaves the house.

    422 {"detail": [{"loc": ["body", "steps"], "msg": ..., "type": ...}]}                      a field that does not fit
    4xx {"error": "HTTPException", "detail": <sentence>, "body": "", "errors": ""}             all else that the user can mend
    5xx {"error": <class>, "detail": "", "body": "", "errors": <sentence>}                     what only we can
"""
from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from modules.core.errors import NanError, RequestError, WebUIError
from modules.pipeline import parameters

log = logging.getLogger("easel.api")
CLASSES: Mapping[type[WebUIError], str] = MappingProxyType({NanError: "NansException"})     # names that clients know
OUR_FAULT = "Easel made a mistake here; its log says what happened."


class ApiError(WebUIError):
    """A mistake in a call, in A1111's words."""

    code = "api"

    def __init__(self, sentence: str, status: int = 422) -> None:
        super().__init__(sentence)
        self.status = status


def install_handlers(app: FastAPI) -> None:
    """Make `app` answer errors as this file's head says."""
    app.add_exception_handler(RequestValidationError, invalid)  # type: ignore[arg-type]
    app.add_exception_handler(WebUIError, refused)          # type: ignore[arg-type]
    app.add_exception_handler(Exception, broken)


async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    """A body or query that does not fit. What was sent is not sent back: it may be large, or no text that JSON can carry."""
    found = [{"loc": [_plain(part) for part in item["loc"]], "msg": _plain(item["msg"]), "type": item["type"]} for item in error.errors()]
    return JSONResponse({"detail": found}, 422)


async def refused(request: Request, error: WebUIError) -> JSONResponse:
    """A sentence of ours."""
    sentence = _plain(str(error))
    if isinstance(error, RequestError) and error.field:
        return JSONResponse({"detail": [{"loc": ["body", _api_name(error.field)], "msg": sentence, "type": error.code}]}, 422)
    if error.status < 500:
        return JSONResponse({"error": "HTTPException", "detail": sentence, "body": "", "errors": ""}, error.status)
    name = CLASSES.get(type(error), type(error).__name__)
    return JSONResponse({"error": name, "detail": "", "body": "", "errors": sentence}, error.status)


async def broken(request: Request, error: Exception) -> JSONResponse:
    """Our own fault: the log gets everything, the client its name."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse({"error": type(error).__name__, "detail": "", "body": "", "errors": OUR_FAULT}, 500)


def _api_name(field: str) -> str:
    row = next((row for row in parameters.PARAMETERS if row.field == field), None)
    return row.api_name or row.setting or field if row else field


def _plain(text: Any) -> Any:
    """Text that UTF-8 can carry: half a surrogate pair becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8") if isinstance(text, str) else text
