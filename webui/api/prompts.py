"""/easel/v1: what a prompt box asks: how many tokens a text has, which wildcards and styles there are, and styles kept or thrown away."""
from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from modules.engine import Engine


class TokensBody(BaseModel):
    """styles: names of those that are merged in before it is counted."""

    text: str = ""
    negative: bool = False
    styles: list[str] = []


class StyleBody(BaseModel):
    name: str
    prompt: str = ""
    negative_prompt: str = ""


def routes(engine: Engine) -> APIRouter:
    """The routes under /easel/v1."""
    router = APIRouter()

    @router.post("/tokens")
    def tokens(body: TokensBody) -> dict[str, int]:
        """How many tokens, and where the chunk that they fill ends: 75, 150, ..."""
        count, limit = engine.tools.token_count(body.text, negative=body.negative, styles=body.styles)
        return {"tokens": count, "limit": limit}

    @router.get("/wildcards")
    def wildcards() -> list[str]:
        """The names that a prompt may write between two underscores on either side."""
        return list(engine.tools.wildcards())

    @router.get("/styles")
    def styles() -> list[dict[str, Any]]:
        return [{"name": style.name, "prompt": style.prompt, "negative_prompt": style.negative_prompt} for style in engine.tools.styles()]

    @router.put("/styles")
    def keep(body: StyleBody) -> None:
        """A new style, or another text for the one of this name."""
        engine.tools.keep_style(body.name, body.prompt, body.negative_prompt)

    @router.delete("/styles")
    def remove(name: str) -> None:
        engine.tools.remove_style(name)

    return router
