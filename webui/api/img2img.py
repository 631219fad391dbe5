"""POST /img2img: a picture from a picture. The body is that of /txt2img with the fields of an init; pictures come as base64."""
from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Response

from modules.engine import Engine, Job
from webui.api import schemas
from webui.api.errors import ApiError
from webui.api.generate import new_task, reply
from webui.api.pictures import decoded
from webui.api.scripts import extra_of


def routes(engine: Engine) -> APIRouter:
    """The route under /sdapi/v1."""
    router = APIRouter()
    Body = schemas.img2img_model()

    async def img2img(body: Any = None) -> Response:
        filled, job = await asyncio.to_thread(_submit, engine, body or Body())
        result = await job.done()
        shown = filled if dict(filled)["include_init_images"] else filled.model_copy(update={"init_images": None, "mask": None})
        return await asyncio.to_thread(reply, engine, shown, job, result)

    img2img.__annotations__["body"] = Body | None           # made at run time, so it cannot stand in the signature
    router.add_api_route("/img2img", img2img, methods=["POST"], summary="A picture from a picture")
    return router


def _submit(engine: Engine, body: schemas.Txt2ImgBody) -> tuple[schemas.Txt2ImgBody, Job]:
    filled = schemas.with_infotext(body, auto_swap=False)
    schemas.refuse_what_is_missing(filled)
    values = dict(filled)
    overrides = values["override_settings"] or {}
    fields = {**schemas.fields_of(filled), "extra": extra_of(engine, filled)}
    fields["init"], notices = _init(engine, filled)
    request = engine.tools.request(fields, overrides, api=True)
    task = values["force_task_id"] or new_task("img2img")
    return filled, engine.submit(request, save=bool(values["save_images"]), task_id=task, overrides=overrides, notices=notices)


def _init(engine: Engine, body: schemas.Txt2ImgBody) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The fields of the init, its pictures put into the store, and what there is to say about their files."""
    values = dict(body)
    images = values["init_images"] or []
    if not images:
        raise ApiError("Init image not found", 404)
    if len(images) > 1:
        raise ApiError(f"init_images holds {len(images)} pictures and one request begins from one; send a request for each.")
    if values["latent_mask"]:
        raise ApiError("A mask for the latent alone (latent_mask) is not there in this version; send it as mask.")
    init = schemas.init_of(body)
    notices: list[str] = []
    for name, text in (("image", images[0]), ("mask", values["mask"]), ("depth", values["depth_map"])):
        if text:
            kept = engine.inputs.keep(decoded(str(text)), "picture" if name == "image" else name)
            init[name] = kept.sha256
            notices += kept.notices
    return init, tuple(notices)
