"""Options, command-line flags and memory."""
from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body

from modules.engine import Engine
from webui.api.listings import homely

SECRET = ("users", "auth", "token", "password", "secret")   # flags whose names hold one of these are not told
SIZES = ("free", "used", "total")                           # bytes


def routes(engine: Engine, flags: Any) -> APIRouter:
    """The routes under /sdapi/v1."""
    router = APIRouter()

    @router.get("/options")
    def options() -> dict[str, Any]:
        return {key: homely(value) if isinstance(value, str) else value for key, value in engine.tools.options().items()}

    @router.post("/options")
    def set_options(changes: Annotated[dict[str, Any], Body()]) -> None:
        engine.tools.set_options({key: value for key, value in changes.items() if value is not None})

    @router.get("/cmd-flags")
    def cmd_flags() -> dict[str, Any]:
        return flags_told(flags)

    @router.get("/memory")
    def memory() -> dict[str, Any]:
        return {"ram": ram(), "cuda": cuda(dict(engine.readiness()).get("torch") == "ready")}

    return router


def flags_told(flags: Any) -> dict[str, Any]:
    """The flags by name, without what nobody is to know."""
    values = dataclasses.asdict(flags) if dataclasses.is_dataclass(flags) and not isinstance(flags, type) else dict(vars(flags))
    told = {name: value for name, value in values.items() if not any(word in name for word in SECRET)}
    return {name: homely(value) if isinstance(value, str | Path) else value for name, value in told.items()}


def ram() -> dict[str, Any]:
    """What this process uses, in bytes, where the system tells it in /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        page, count = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return {"error": "unavailable"}
    return dict(zip(SIZES, (count * page - pages * page, pages * page, count * page), strict=True))


def cuda(ready: bool) -> dict[str, Any]:
    """The card's memory in bytes. ready: torch is loaded; it is not loaded for this question."""
    if not ready:
        return {"error": "unavailable"}
    import torch  # heavy, and only looked at when it is there already
    if not torch.cuda.is_available():
        return {"error": "unavailable"}
    free, total = torch.cuda.mem_get_info()
    stats = dict(torch.cuda.memory_stats())

    def pair(name: str) -> dict[str, Any]:
        return {"current": stats.get(f"{name}.all.current", 0), "peak": stats.get(f"{name}.all.peak", 0)}

    return {
        "system": {"free": free, "used": total - free, "total": total},
        "active": pair("active_bytes"), "allocated": pair("allocated_bytes"),
        "reserved": pair("reserved_bytes"), "inactive": pair("inactive_split_bytes"),
        "events": {"retries": stats.get("num_alloc_retries", 0), "oom": stats.get("num_ooms", 0)},
    }
