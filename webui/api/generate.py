"""POST /txt2img, and what goes with it: progress, interrupt, skip. A job is awaited without holding a thread."""
from __future__ import annotations

import asyncio
import base64
import io
import json
import secrets
import string
from typing import Any

from fastapi import APIRouter, Response

from modules.engine import Engine, Job
from webui.api import schemas
from webui.api.replies import info, timestamp
from webui.api.scripts import extra_of

SIGNS = string.ascii_uppercase + string.digits


def routes(engine: Engine) -> APIRouter:
    """The routes under /sdapi/v1."""
    router = APIRouter()
    Body = schemas.body_model()

    async def txt2img(body: Any = None) -> Response:
        filled, job = await asyncio.to_thread(_submit, engine, body or Body())
        result = await job.done()
        return await asyncio.to_thread(reply, engine, filled, job, result)

    txt2img.__annotations__["body"] = Body | None           # made at run time, so it cannot stand in the signature
    router.add_api_route("/txt2img", txt2img, methods=["POST"], summary="Words to pictures")

    @router.get("/progress")
    def progress(skip_current_image: bool = False) -> dict[str, Any]:
        return progress_of(engine, skip_current_image)

    @router.post("/interrupt")
    def interrupt() -> dict[str, Any]:
        engine.interrupt()
        return {}

    @router.post("/skip")
    def skip() -> None:
        engine.skip()

    return router


def _submit(engine: Engine, body: schemas.Txt2ImgBody) -> tuple[schemas.Txt2ImgBody, Job]:
    filled = schemas.with_infotext(body, auto_swap=False)
    schemas.refuse_what_is_missing(filled)
    values = dict(filled)
    overrides = values["override_settings"] or {}
    request = engine.tools.request({**schemas.fields_of(filled), "extra": extra_of(engine, filled)}, overrides, api=True)
    task = values["force_task_id"] or new_task("txt2img")
    return filled, engine.submit(request, save=bool(values["save_images"]), task_id=task, overrides=overrides)


def new_task(kind: str) -> str:
    """A task's name as A1111 makes them."""
    return f"task({kind}-{''.join(secrets.choice(SIGNS) for _ in range(7))})"


def reply(engine: Engine, body: schemas.Txt2ImgBody, job: Job, result: Any) -> Response:
    """images: the very bytes of the files, in base64; parameters: the body with its defaults; info: JSON as text."""
    values = dict(body)
    if not values["override_settings_restore_afterwards"] and values["override_settings"]:
        engine.tools.set_options(values["override_settings"])
    images = [base64.b64encode(picture.file).decode("ascii") for picture in result.pictures] if values["send_images"] else []
    told = {"images": images, "parameters": body.model_dump(), "info": json.dumps(info(job, result, values), ensure_ascii=False)}
    headers = {"X-Easel-Job": job.id}
    if job.warnings:
        headers["X-Easel-Warning"] = " ".join(job.warnings).encode("ascii", "replace").decode("ascii").replace("\n", " ")
    return Response(json.dumps(told), media_type="application/json", headers=headers)


def progress_of(engine: Engine, skip_current_image: bool) -> dict[str, Any]:
    """What the running job, or the next one, has come to; all zero when there is none."""
    job = engine.running() or next(iter(engine.waiting()), None)
    if job is None:
        return {"progress": 0.0, "eta_relative": 0.0, "state": _state(), "current_image": None, "textinfo": None}
    view = job.progress
    count = max(view.batches, job.request.n_iter)
    inside = min(view.step / view.steps, 1.0) if view.steps else 0.0
    state = _state(
        skipped=view.skipped, interrupted=view.interrupted, job_count=count, job_no=min(view.batch, count), sampling_step=view.step,
        sampling_steps=view.steps or job.request.steps, job_timestamp=timestamp(job.created),
        job=f"scripts_{job.kind}" if count == 1 else f"Batch {min(view.batch + 1, count)} out of {count}")
    image = None if skip_current_image else job.preview()
    return {
        "progress": min(0.01 + (view.batch + inside) / count, 1.0), "eta_relative": max(view.eta or 0.0, 0.0), "state": state,
        "current_image": None if image is None else picture_text(image), "textinfo": view.stage or None,
    }


def _state(**changes: Any) -> dict[str, Any]:
    return {"skipped": False, "interrupted": False, "stopping_generation": False, "job": "", "job_count": 0, "job_timestamp": "0",
            "job_no": 0, "sampling_step": 0, "sampling_steps": 0, **changes}


def picture_text(image: Any) -> str:
    """A PIL image as PNG in plain base64."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode("ascii")
