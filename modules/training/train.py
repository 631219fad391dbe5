"""A recipe from beginning to end: pictures in, a checkpoint out."""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from modules.core import hardware
from modules.core.errors import Cancelled, SettingsError
from modules.core.files import remove_parts
from modules.prompts.tokens import Tokenizer
from modules.training import checkpoint, latents, samples
from modules.training.autoencoder import Autoencoder, vae_for
from modules.training.dataset import Folder, Remembered, Source
from modules.training.diffusion import Batches, Diffusion, FromLatents, FromPictures, networks_for
from modules.training.ema import LitEma
from modules.training.loop import ProgressLike, Run, Task
from modules.training.recipe import Recipe

Sheet = Callable[[Task, int], Image.Image]                  # (task, step) -> samples; for callers with a sampler of their own


def train(recipe: Recipe, *, folder: Path, progress: ProgressLike, data: Source | None = None, device: torch.device | None = None,
          sheet: Sheet | None = None, tokenizer: Tokenizer | None = None) -> Path:
    """Train what the recipe says until its steps are done or its minutes over; the checkpoint that was written.

    folder: gets the checkpoint `<title>.safetensors`, `state.safetensors` to go on from, `loss.csv`, `loss.png`, `samples/` and
    `latents/`. A state that is there already is taken up; a run that was stopped and one that was not then give the same weights, on a
    CPU bit for bit.
    data: pictures from elsewhere than recipe.data.folder. sheet: draws the samples instead of samples.py.
    Raises Cancelled after progress was interrupted (the state is on disk, no checkpoint is written), NanError, DiskFullError, SaveError,
    OutOfMemoryError with the last good state on disk; SettingsError or CheckpointError before anything was begun.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_parts(folder)
    source = data if data is not None else _folder(recipe)
    where = device or hardware.device()
    if recipe.kind == "vae":
        return _train_vae(recipe, folder, progress, source, where, sheet)
    return _train_diffusion(recipe, folder, progress, source, where, sheet, tokenizer or Tokenizer())


def _folder(recipe: Recipe) -> Source:
    if not recipe.data.folder:
        raise SettingsError("The recipe names no pictures; set data.folder to a folder of pictures with .txt captions.")
    return Folder(recipe.path(recipe.data.folder), recipe.data.size, buckets=recipe.data.buckets)


def _train_vae(recipe: Recipe, folder: Path, progress: ProgressLike, source: Source, device: torch.device, sheet: Sheet | None) -> Path:
    task = Autoencoder(recipe, vae_for(recipe), Remembered(source) if recipe.data.cache else source, device)
    run = _run(recipe, task, folder, progress, sheet or (lambda task, step: samples.reconstructions(task)))     # type: ignore[arg-type]
    run.go()
    _check_stopped(run, progress)

    def write(extra: Mapping[str, Tensor]) -> Path:
        return checkpoint.write_vae(_file(recipe, folder), task.vae, title=recipe.model.title, size=recipe.data.size,
                                    dtype=checkpoint.DTYPES[recipe.model.dtype], extra=extra, metadata=_said(run))

    return _written(recipe, run, write)


def _train_diffusion(recipe: Recipe, folder: Path, progress: ProgressLike, source: Source, device: torch.device, sheet: Sheet | None,
                     tokenizer: Tokenizer) -> Path:
    networks = networks_for(recipe)
    networks.vae.to(device, memory_format=torch.channels_last).eval()     # type: ignore[call-overload]
    task = Diffusion(recipe, networks, _batches(recipe, networks, folder, progress, source, device), tokenizer, device)
    run = _run(recipe, task, folder, progress, sheet or (lambda task, step: samples.sheet(task)))     # type: ignore[arg-type]
    run.go()
    _check_stopped(run, progress)

    def write(extra: Mapping[str, Tensor]) -> Path:
        return checkpoint.write(_file(recipe, folder), task.finished(), task.schedule, kind=recipe.objective.prediction,     # type: ignore[arg-type]
                                title=recipe.model.title, size=recipe.data.size, dtype=checkpoint.DTYPES[recipe.model.dtype], extra=extra,
                                metadata=_said(run))

    return _written(recipe, run, write)


def _batches(recipe: Recipe, networks: checkpoint.Networks, folder: Path, progress: ProgressLike, source: Source,
             device: torch.device) -> Batches:
    batch, seed, flip = recipe.training.batch, recipe.seed, recipe.data.flip
    if not recipe.data.cache:
        return FromPictures(source, networks.vae, batch, seed, device, flip=flip)

    def check(done: int, of: int) -> None:
        progress.at(stage="encoding", batches=1, step=done, steps=of)
        if progress.interrupted:
            raise Cancelled(f"Training was stopped after {done} of {of} latents; start it again to go on from there.")

    return FromLatents(latents.encoded(source, networks.vae, folder / "latents", flip=flip, check=check), source, batch, seed, device)


def _run(recipe: Recipe, task: Task, folder: Path, progress: ProgressLike, sheet: Sheet) -> Run:
    ema = LitEma(task.averaged(), recipe.ema.decay, warm_up=recipe.ema.warm_up) if recipe.ema.decay else None
    run = Run(task=task, settings=recipe.training, folder=folder, progress=progress, seed=recipe.seed, ema=ema,
              sheet=lambda step: sheet(task, step))
    run.resume()
    return run


def _check_stopped(run: Run, progress: ProgressLike) -> None:
    if run.step < run.settings.steps and progress.interrupted:
        raise Cancelled(f"Training was stopped at step {run.step} of {run.settings.steps}; start it again to go on from there.")


def _written(recipe: Recipe, run: Run, write: Callable[[Mapping[str, Tensor]], Path]) -> Path:
    """The file, with the weights that the recipe wants kept."""
    mean = run.ema is not None and recipe.ema.keep == "mean"
    with run.ema.applied() if run.ema and mean else nullcontext():
        return write(run.ema.published() if run.ema and recipe.ema.keep == "both" else {})


def _said(run: Run) -> dict[str, str]:
    return {"ss_steps": str(run.step), "ss_max_train_steps": str(run.settings.steps), "ss_seed": str(run.seed)}


def _file(recipe: Recipe, folder: Path) -> Path:
    name = re.sub(r"[^\w.-]+", "-", recipe.model.title).strip(".-")
    return folder / f"{name or 'trained'}.safetensors"
