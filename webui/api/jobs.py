"""/easel/v1: jobs by their id, so that whoever lost the line can still fetch what was made. Requests here are Requests as JSON."""
from __future__ import annotations

import asyncio
import dataclasses
import io
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from fastapi.responses import FileResponse
from PIL import Image
from pydantic import BaseModel

from modules.core.errors import ImageMetaError
from modules.engine import Engine, Job
from modules.pipeline.request import Request

FORMATS = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}

MOST_PIXELS = 2**26                                         # of a preview that lies beside a model
PREVIEW_SIDE = 768                                          # pixels; a preview is never sent larger


class JobBody(BaseModel):
    """request: fields of a Request that differ from the default; overrides: settings for this job only."""

    request: dict[str, Any] = {}
    save: bool = True
    task_id: str | None = None
    overrides: dict[str, Any] = {}


def routes(engine: Engine) -> APIRouter:
    """The routes under /easel/v1."""
    router = APIRouter()

    @router.get("/ready")
    def ready() -> dict[str, str]:
        return dict(engine.readiness())

    @router.post("/jobs")
    def submit(body: JobBody) -> dict[str, Any]:
        request = Request.from_json(body.request)
        return told(engine.submit(request, save=body.save, task_id=body.task_id, overrides=body.overrides))

    @router.post("/inputs")
    async def keep(request: HttpRequest, what: str = "picture") -> dict[str, Any]:
        """The body is a picture file; its name in the store comes back."""
        file = await request.body()
        return dataclasses.asdict(await asyncio.to_thread(engine.inputs.keep, file, what[:20]))

    @router.get("/jobs/{job_id}")
    def job(job_id: str) -> dict[str, Any]:
        return told(engine.job(job_id))

    @router.post("/jobs/{job_id}/cancel")
    def cancel(job_id: str) -> dict[str, Any]:
        found = engine.job(job_id)
        found.cancel()
        return told(found)

    @router.post("/jobs/{job_id}/skip")
    def skip(job_id: str) -> dict[str, Any]:
        found = engine.job(job_id)
        found.skip()
        return told(found)

    @router.post("/jobs/{job_id}/resume")
    def resume(job_id: str, force: bool = False) -> dict[str, Any]:
        return told(engine.resume(job_id, force=force))

    @router.get("/jobs/{job_id}/preview")
    def preview(job_id: str) -> Response:
        image = engine.job(job_id).preview()
        if image is None:
            return Response(status_code=204)                # nothing yet, or no more: the job has ended
        return Response(as_jpeg(image), media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    @router.get("/jobs/{job_id}/pictures/{index}")
    def picture(job_id: str, index: int) -> FileResponse:
        file = engine.tools.picture_file(job_id, index)
        return FileResponse(file, media_type=FORMATS.get(file.suffix, "application/octet-stream"), filename=file.name,
                            content_disposition_type="inline", headers={"X-Content-Type-Options": "nosniff"})

    @router.get("/models/preview")
    def model_preview(name: str) -> Response:
        return Response(as_jpeg(_opened(engine.tools.preview_file(name))), media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    return router


def _opened(path: Path) -> Any:
    """A picture that somebody put beside a model. Raises ImageMetaError."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ImageMetaError(f"{path.name} is too large for a preview.")
            image.load()
            return image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageMetaError(f"{path.name} cannot be read as a picture.") from error


def as_jpeg(image: Any) -> bytes:
    """A PIL image, small enough to be sent a few times a second."""
    small = image.convert("RGB")
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80)
    return out.getvalue()


def told(job: Job) -> dict[str, Any]:
    """A job as JSON: where it stands, and the pictures that are finished."""
    view = job.progress
    return {
        "id": job.id, "task_id": job.task_id, "kind": job.kind, "state": job.state, "created": job.created, "ended": job.ended,
        "position": job.position, "request": job.request.to_json(),
        "progress": {"fraction": view.fraction, "stage": view.stage, "batch": view.batch, "batches": view.batches, "step": view.step,
                     "steps": view.steps, "eta": view.eta},
        "error": None if job.error is None else {"code": job.error.code, "sentence": str(job.error)}, "warnings": list(job.warnings),
        "pictures": [{"index": row.index, "seed": row.seed, "subseed": row.subseed, "width": row.width, "height": row.height,
                      "complete": row.complete, "sha256": row.sha256, "infotext": row.infotext,
                      "file": f"easel/v1/jobs/{job.id}/pictures/{row.index}"} for row in job.pictures()],
    }
