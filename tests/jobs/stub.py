"""A spine that draws noise instead of denoising it: for faults and races, where the model does not matter. Picture i has seed + i."""
from __future__ import annotations

import random
import time
from pathlib import Path

from PIL import Image

from modules.core.errors import Cancelled
from modules.core.paths import Paths
from modules.pipeline.request import Picture, Request, Resources, Result

STEP = 0.002                                                # seconds


def house(root: Path) -> Paths:
    """Paths with a checkpoint that is a name only: the stub never opens it."""
    paths = Paths.of(root)
    paths.checkpoints[0].mkdir(parents=True, exist_ok=True)
    (paths.checkpoints[0] / "name.safetensors").write_bytes(b"no model")
    return paths


def noise(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    return Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(width * height * 3))


def spine(request: Request, resources: Resources) -> Result:
    """As pipeline.generate behaves: interrupts give what there is, a skip ends one batch, done pictures are not made again."""
    progress, pictures = resources.progress, []
    total = request.n_iter * request.batch_size
    progress.at(stage="sampling", batches=total, steps=request.steps)
    for index in range(total):
        if index in resources.done:
            continue
        if progress.interrupted:
            break
        complete, step = True, 0
        for step in range(request.steps):
            progress.at(batch=index, step=step)
            time.sleep(STEP)
            if progress.stopping:
                complete = False
                break
        if complete or step:
            seed = request.seed + index
            pictures.append(resources.deliver(Picture(
                index=index, seed=seed, subseed=0, prompt=request.prompt, negative_prompt="", complete=complete,
                image=noise(seed, request.width, request.height), infotext=f"{request.prompt}\nSeed: {seed}")))
        progress.unskip()
    if not pictures and progress.interrupted:
        raise Cancelled("Stopped by the user before the first picture.")
    return Result(request=request, pictures=tuple(pictures))
