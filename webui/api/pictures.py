"""Pictures that come in as text, and POST /png-info, which reads them."""
from __future__ import annotations

import base64
import binascii
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from modules.core.errors import ImageMetaError
from modules.engine import Engine
from modules.pipeline import infotext
from webui.api.errors import ApiError


class PngInfoBody(BaseModel):
    image: str


def routes(engine: Engine) -> APIRouter:
    """The routes under /sdapi/v1."""
    router = APIRouter()

    @router.post("/png-info")
    def png_info(body: PngInfoBody) -> dict[str, Any]:
        try:
            found = engine.tools.read_picture(decoded(body.image))
        except ImageMetaError as error:
            raise ApiError("Invalid encoded image", 422) from error
        return {"info": found.infotext, "items": dict(found.items), "parameters": infotext.with_defaults(infotext.read(found.infotext))}

    return router


def decoded(text: str) -> bytes:
    """The file inside a base64 text, with or without `data:image/png;base64,` before it. Addresses are not fetched. Raises ApiError."""
    text = text.strip()
    if text[:8].lower().startswith(("http://", "https://")):
        raise ApiError("Requests not allowed", 422)
    if text.startswith("data:image/"):
        text = text.partition(";")[2].partition(",")[2]
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError) as error:
        raise ApiError("Invalid encoded image", 422) from error
