"""What there is to choose from, as lists under A1111's names."""
from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from modules.engine import Engine

LATENT_MODES = (
    "Latent", "Latent (antialiased)", "Latent (bicubic)", "Latent (bicubic antialiased)", "Latent (nearest)", "Latent (nearest-exact)",
)


def routes(engine: Engine) -> APIRouter:
    """The lists under /sdapi/v1. Lists of features that are not here yet are empty."""
    router = APIRouter()
    _models(router, engine)
    _methods(router, engine)
    _nothing_yet(router)
    return router


def _models(router: APIRouter, engine: Engine) -> None:
    @router.get("/sd-models")
    def sd_models() -> list[dict[str, Any]]:
        return [{"title": entry.title, "model_name": entry.model_name, "hash": entry.shorthash or None, "sha256": entry.sha256 or None,
                 "filename": homely(entry.path), "config": _config(entry)} for entry in engine.tools.checkpoints()]

    @router.get("/sd-vae")
    def sd_vae() -> list[dict[str, Any]]:
        return [{"model_name": Path(entry.path).name, "filename": homely(entry.path)} for entry in engine.tools.vaes()]

    @router.post("/refresh-checkpoints")
    def refresh_checkpoints() -> None:
        engine.tools.checkpoints(refresh=True)

    @router.post("/refresh-vae")
    def refresh_vae() -> None:
        engine.tools.vaes(refresh=True)

    @router.post("/unload-checkpoint")
    async def unload_checkpoint() -> dict[str, Any]:
        await asyncio.wrap_future(engine.unload())
        return {}

    @router.post("/reload-checkpoint")
    async def reload_checkpoint() -> dict[str, Any]:
        await asyncio.wrap_future(engine.reload())
        return {}

    @router.post("/refresh-embeddings")
    def refresh_embeddings() -> None:
        engine.tools.embeddings(refresh=True)

    @router.get("/embeddings")
    def embeddings() -> dict[str, dict[str, Any]]:
        loaded, skipped = engine.tools.embeddings()
        return {"loaded": {name: _embedding(one) for name, one in loaded.items()},
                "skipped": {name: _embedding(one) for name, one in skipped.items()}}

    @router.post("/refresh-loras")
    def refresh_loras() -> None:
        return None


def _embedding(one: Any) -> dict[str, Any]:
    """An embedding of the list; the numbers of a file that cannot be read are 0."""
    unreadable = isinstance(one, str)
    return {"step": None if unreadable else one.step, "sd_checkpoint": None if unreadable else one.sd_checkpoint,
            "sd_checkpoint_name": None if unreadable else one.sd_checkpoint_name,
            "shape": 0 if unreadable else sum(one.widths), "vectors": 0 if unreadable else one.count}


def _config(entry: Any) -> str | None:
    """The configuration that lies beside a model, where there is one."""
    beside = entry.path.parent / f"{entry.base}.yaml"
    return homely(beside) if beside.is_file() else None


def _methods(router: APIRouter, engine: Engine) -> None:
    @router.get("/samplers")
    def samplers() -> list[dict[str, Any]]:
        return [{"name": entry.name, "aliases": list(entry.aliases), "options": dict(entry.options)} for entry in engine.tools.samplers()]

    @router.get("/schedulers")
    def schedulers() -> list[dict[str, Any]]:
        return [{"name": entry.name, "label": entry.label, "aliases": list(entry.aliases) or None, "default_rho": entry.default_rho,
                 "need_inner_model": entry.need_inner_model} for entry in engine.tools.schedulers()]

    @router.get("/prompt-styles")
    def prompt_styles() -> list[dict[str, Any]]:
        return [{"name": style.name, "prompt": style.prompt, "negative_prompt": style.negative_prompt} for style in engine.tools.styles()]


def _nothing_yet(router: APIRouter) -> None:
    @router.get("/upscalers")
    def upscalers() -> list[dict[str, Any]]:
        return [{"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 4.0}]

    @router.get("/latent-upscale-modes")
    def latent_upscale_modes() -> list[dict[str, str]]:
        return [{"name": name} for name in LATENT_MODES]

    for name in ("loras", "hypernetworks", "face-restorers", "realesrgan-models"):
        router.add_api_route(f"/{name}", _empty, methods=["GET"], name=name)


def _empty() -> list[Any]:
    return []


def homely(path: str | Path) -> str:
    """A path with the home folder as ~, so that no listing tells a user's name."""
    text = str(path)
    home = str(Path.home())
    return "~" + text[len(home):] if home != "/" and (text == home or text.startswith((home + "/", home + "\\"))) else text
