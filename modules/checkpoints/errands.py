"""What is asked of model files by name: found on the shelf or by path, and done by the rooms beside this one."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modules.checkpoints import convert, fetch, merge
from modules.checkpoints.describe import Description, describe
from modules.checkpoints.shelf import Entry, Shelf
from modules.core.errors import NotFoundError, RequestError
from modules.core.hashing import Hashes
from modules.core.paths import Paths
from modules.core.progress import Progress

KINDS = ("checkpoint", "vae", "lora", "embedding")


def found(paths: Paths, name: str) -> Path:
    """A model by its path, or by any name that the shelf knows. Raises NotFoundError."""
    try:
        if name and Path(name).exists():
            return Path(name)
    except (OSError, ValueError):                           # too long, or with a NUL: no path then
        pass
    shelf = _shelf(paths)
    try:
        return shelf.find_checkpoint(name).path
    except NotFoundError as error:
        try:
            return shelf.find_vae(name).path
        except NotFoundError:
            raise error from None


def _shelf(paths: Paths) -> Shelf:
    return Shelf(paths, Hashes(paths.hashes_file))


def _hasher(paths: Paths) -> Callable[[Path], str]:
    """The hash of a file or folder, wherever it lies, from the cache if it is known."""
    shelf = _shelf(paths)
    return lambda path: shelf.hashed(Entry(path=path, name=path.name, is_folder=path.is_dir())).sha256 or ""


def description(paths: Paths, name: str, hashed: bool) -> Description:
    """Raises NotFoundError, CheckpointError."""
    return describe(found(paths, name), _hasher(paths) if hashed else None)


def converted(paths: Paths, source: str, target: Path | None, progress: Progress, **how: Any) -> Path:
    """target: a file, a folder, or None = beside the source. how: as convert.convert takes it. Raises as that, or NotFoundError."""
    file = found(paths, source)
    stem = file.name if file.is_dir() else file.stem
    name = f"{stem}-pruned.safetensors" if how.get("prune") else f"{stem}.safetensors"
    place = file.with_name(name) if target is None else target / name if target.is_dir() else target
    return convert.convert(file, place, progress=progress, **how)


def merged(paths: Paths, models: Sequence[str], target: Path, progress: Progress, *, method: str, vae: str, **how: Any) -> merge.Merged:
    """method: "" = by how many models there are. vae: "" = A's own. how: as merge.merge takes it. Raises as that, or NotFoundError."""
    method = method or {1: "no_interpolation", 2: "weighted_sum"}.get(len(models), "add_difference")
    return merge.merge([found(paths, name) for name in models], target, _hasher(paths), method=method,
                       vae=found(paths, vae) if vae else None, progress=progress, **how)


def fetched(paths: Paths, url: str, sha256: str, kind: str, progress: Progress, name: str = "") -> Path:
    """Into the folder of its kind. Whoever calls this was asked by the user for this very file. Raises as fetch.get."""
    if kind not in KINDS:
        raise RequestError(f"“{kind[:40]}” is no kind of model; choose {', '.join(KINDS)}.", field="kind")
    folder = dict(zip(KINDS, (paths.checkpoints[0], paths.vae[0], paths.lora[0], paths.embeddings), strict=True))[kind]
    return fetch.get(url, sha256, folder, name=name, allow=fetch.Allow(outbound=True), progress=progress)
