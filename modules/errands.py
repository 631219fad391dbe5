"""What the faces ask for that needs no living engine: long work on model files, training, measuring, and what a data folder tells.

Each is a function that is given the paths and comes back with what was made. Heavy packages are loaded in the one that needs them.
"""
from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from modules.core.errors import NotFoundError, RequestError, SaveError
from modules.core.files import copy_atomically
from modules.core.paths import Paths, clean_name, safe_join
from modules.core.progress import Progress
from modules.jobs.lock import Lock, holder
from modules.jobs.store import JobRow, Store
from modules.pipeline.request import Request
from modules.sampling import catalogue
from modules.tools import Library

SCENE = "vae-bench"                                         # the seed of the scene that is drawn where no picture is given


def train(recipe: Path, paths: Paths, progress: Progress) -> Path:
    """Train what a recipe's file says, or go on with it, and put the checkpoint (or VAE) among the models; its path there.

    States, samples and the loss curve lie in data/training/<recipe's name>. A model of that name that this recipe did not make stays.
    Raises a WebUIError, Cancelled after progress.interrupt().
    """
    # Heavy: torch.
    from modules.training import recipe as recipes
    from modules.training.train import train as run
    told = recipes.Recipe.read(recipe)
    folder = safe_join(paths.data, "training", clean_name(recipe.stem))
    shelf = (paths.vae if told.kind == "vae" else paths.checkpoints)[0]
    mine = folder.exists()
    file = run(told, folder=folder, progress=progress)
    if (shelf / file.name).exists() and not mine:
        raise SaveError(f"There is a {file.name} in {shelf} already, so what was trained stays in {file}; move it, or choose another "
                        "model.title.")
    return copy_atomically(file, shelf / file.name)


def describe_model(paths: Paths, name: str, *, hashed: bool = True) -> Any:
    """What a model file is, found by path or name: checkpoints.describe.Description. hashed: with its SHA-256, which reads all of it.

    Raises NotFoundError, CheckpointError.
    """
    from modules.checkpoints import errands  # torch, here and below
    return errands.description(paths, name, hashed)


def convert_model(paths: Paths, source: str, target: Path | None, progress: Progress, **how: Any) -> Path:
    """A model as a safetensors file, see checkpoints.convert.convert. target: None = beside the source. Raises a WebUIError, Cancelled."""
    from modules.checkpoints import errands
    return errands.converted(paths, source, target, progress, **how)


def merge_models(paths: Paths, models: Sequence[str], target: Path, progress: Progress, **how: Any) -> tuple[Path, tuple[str, ...]]:
    """One model of several, see checkpoints.merge.merge; its path, and sentences about it. Raises a WebUIError, Cancelled."""
    from modules.checkpoints import errands
    made = errands.merged(paths, models, target, progress, **how)
    return made.path, made.notes


def fetch_model(paths: Paths, url: str, sha256: str, kind: str, progress: Progress, name: str = "") -> Path:
    """A file from an address into the folder of its kind ("checkpoint", "vae", "lora", "embedding"), see checkpoints.fetch.get.

    Only where the user asked for this file. Raises a WebUIError, Cancelled.
    """
    from modules.checkpoints import errands
    return errands.fetched(paths, url, sha256, kind, progress, name)


def import_a1111(paths: Paths, folder: Path, read_page: Callable[[str, Any], Any], *, what: Sequence[str], dry: bool) -> Any:
    """Take over what A1111 has in this folder, see checkpoints.foreign.import_a1111: its Moved. Raises a WebUIError."""
    from modules.checkpoints.foreign import import_a1111 as move
    lock = Lock(paths.data)                                 # a running Easel would write its own settings over ours
    try:
        return move(folder, paths, read_page, what=what, dry=dry)
    finally:
        lock.release()


def demo_report(paths: Paths, checkpoint: str, count: int, tell: Callable[[int, int], None]) -> tuple[tuple[str, ...], Any]:
    """How well a checkpoint ("" = the embedded one) follows words about storybook scenes: lines of a table, and a contact sheet.

    count: prompts, each drawn twice at the checkpoint's own size in 20 steps. tell(done, of) after each picture and may raise to stop.
    Raises a WebUIError.
    """
    # Heavy: torch.
    from modules.demo.artist import Artist
    from modules.demo.report import report
    library = Library(paths)
    name, _ = library.choose_checkpoint(checkpoint, "")
    width, height = library.native_size(name, "")
    artist = Artist(library.shelf, library.tokenizer, Request(checkpoint=name, width=width, height=height, steps=20))
    made = report(artist.draw, size=min(width, height), count=count, decoded=artist.there_and_back, tell=tell)
    return (f"{name}, 20 steps", *made.lines()), made.sheet


def samplers(names: Sequence[str] = ()) -> tuple[dict[str, Any], ...]:
    """The samplers of these names or aliases, all of them for none: name, aliases, order of its error or None, model calls a step, its
    own schedule or "", and options as the API lists them. Raises NotFoundError."""
    entries = [catalogue.sampler(name) for name in names] or catalogue.SAMPLERS
    return tuple({"name": entry.name, "aliases": entry.aliases, "order": entry.order, "calls": entry.calls(1),
                  "schedule": entry.default_schedule or "", "options": entry.options} for entry in entries)


def sampler_grid(paths: Paths, checkpoint: str, names: Sequence[str], steps: Sequence[int], *, reference: int, prompt: str, seed: int,
                 cfg_scale: float, size: int, tell: Callable[[int, int], None]) -> tuple[tuple[str, ...], str, Any]:
    """Samplers side by side on a checkpoint ("" = the one chosen at start), see pipeline.sampler_grid: lines of a table, the same as CSV,
    and a picture of all.

    names: of samplers; none = all of them. size: pixels of an edge, 0 = the checkpoint's own. tell(done, of) after each picture, in
    steps, and may raise to stop. Raises a WebUIError.
    """
    # Heavy: torch.
    from modules.demo.artist import Artist
    from modules.pipeline import sampler_grid as grids
    library = Library(paths)
    name, _ = library.choose_checkpoint(checkpoint, "")
    width, height = (size, size) if size else library.native_size(name, "")
    request = Request(checkpoint=name, width=width, height=height, prompt=prompt, seed=seed, cfg_scale=cfg_scale)
    made = grids.sampler_grid(Artist(library.shelf, library.tokenizer, request).picture, request, tuple(names) or
                              tuple(entry.name for entry in catalogue.SAMPLERS), tuple(steps), reference=reference, tell=tell)
    return (f"{name}, {width} x {height}, seed {seed}", *made.lines()), made.csv(), made.sheet()


def vae_bench(paths: Paths, vaes: Sequence[str], *, image: Path | None, latent: Path | None, scale: float, size: int,
              tell: Callable[[int, int], None]) -> tuple[tuple[str, ...], str, Any]:
    """VAEs side by side, see pipeline.vae_bench.bench: lines of a table, the same as CSV, and a picture of all.

    vaes: paths, names of VAEs, or names of checkpoints for the VAE inside. image: what goes there and back, a drawn scene where there is
    neither a picture nor a latent; size: its longest edge in pixels. tell(done, of) after each VAE and may raise to stop.
    Raises a WebUIError.
    """
    # Heavy: torch.
    from modules.checkpoints.errands import found
    from modules.core import hardware
    from modules.pipeline import vae_bench as benches
    device = hardware.device()
    shelf, dtype = Library(paths).shelf, hardware.dtype(device)

    def place(name: str) -> Path:
        try:
            return shelf.find_vae(name).path                # before a checkpoint of the same name
        except NotFoundError:
            return found(paths, name)

    opens = {name: partial(benches.open_vae, place(name), device=device, dtype=dtype, scale=scale) for name in vaes}
    picture = None if latent else benches.fitting(_picture(image) if image else _scene(size), size)
    z = benches.read_latent(latent) if latent else None
    made = benches.bench(opens, image=picture, latent=z, scale=scale, device=device, tell=tell)
    return made.lines(), made.csv(), made.sheet


def _picture(path: Path) -> Any:
    """The picture in a file. Raises RequestError."""
    from PIL import Image  # kept off the start
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError(f"{path} cannot be read as a picture; give a PNG, JPEG or WebP file.", field="image") from error


def _scene(size: int) -> Any:
    """A storybook scene, size × size pixels, always the same one."""
    from modules.demo import scenes  # numpy
    return scenes.draw(scenes.draw_layout(random.Random(SCENE)), size).image


def serving(paths: Paths) -> str:
    """The address of the Easel that holds this data folder now; "" when none does or it serves no page."""
    held = holder(paths.data)
    return held.address if held else ""


def history(paths: Paths, limit: int = 50) -> tuple[JobRow, ...]:
    """The newest jobs of a data folder, newest first, whoever holds it."""
    if not paths.database.exists():
        return ()
    store = Store(paths.database)
    try:
        return store.jobs(limit=limit)
    finally:
        store.close()
