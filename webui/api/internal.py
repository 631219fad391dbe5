"""/internal: what A1111's own page asks its server, and scripts have learned to ask too."""
from __future__ import annotations

import base64
import io
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from modules.core import options
from modules.engine import Engine, Job


class ProgressBody(BaseModel):
    id_task: str
    id_live_preview: int | None = -1
    live_preview: bool | None = True


def routes(engine: Engine) -> APIRouter:
    """The routes under /internal."""
    router = APIRouter()

    @router.get("/ping")
    def ping() -> dict[str, Any]:
        return {}

    @router.get("/pending-tasks")
    def pending_tasks() -> dict[str, Any]:
        tasks = [job.task_id or job.id for job in engine.waiting()]
        return {"size": len(tasks), "tasks": tasks}

    @router.get("/quicksettings-hint")
    def quicksettings_hint() -> list[dict[str, str]]:
        return [{"name": option.key, "label": option.label} for option in options.OPTIONS]

    @router.post("/progress")
    def progress(body: ProgressBody) -> dict[str, Any]:
        job = engine.task(body.id_task)
        return seen(job, -1 if body.id_live_preview is None else body.id_live_preview, body.live_preview is not False)

    return router


def seen(job: Job | None, shown: int, want_preview: bool) -> dict[str, Any]:
    """How a task stands. shown: number of the preview that the asker has."""
    state = job.state if job is not None else ""
    reply: dict[str, Any] = {"active": state == "running", "queued": state == "pending", "completed": state == "done", "progress": None,
                             "eta": None, "live_preview": None, "id_live_preview": -1, "textinfo": "Waiting..."}
    if job is None:
        return reply
    if state == "pending":
        reply["textinfo"] = f"In queue: {job.position + 1}"
    elif state == "running":
        view = job.progress
        reply |= {"progress": view.fraction, "eta": view.eta, "id_live_preview": shown, "textinfo": view.stage}
        if want_preview and view.preview_id > max(shown, 0):
            reply |= {"live_preview": _data(job.preview()), "id_live_preview": view.preview_id}
    elif state in ("done", "cancelled"):
        reply["textinfo"] = ""
    return reply


def _data(image: Any) -> str | None:
    if image is None:
        return None
    out = io.BytesIO()
    image.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")
