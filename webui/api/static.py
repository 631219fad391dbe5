"""The page's own scripts and icon, by name from a fixed list."""
from pathlib import Path
from types import MappingProxyType

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

FOLDER = Path(__file__).resolve().parent.parent / "static"
FILES = MappingProxyType({"easel.js": "text/javascript", "drawing.js": "text/javascript", "favicon.svg": "image/svg+xml"})


def routes() -> APIRouter:
    """GET /easel/static/<name>"""
    router = APIRouter()

    @router.get("/{name}")
    def file(name: str) -> Response:
        if name not in FILES:
            return Response(status_code=404)
        return FileResponse(FOLDER / name, media_type=FILES[name], headers={"Cache-Control": "no-cache"})

    return router
