"""From a finished picture to a file and a row: encode, save to outputs or the spool, then commit. And back again."""
from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from PIL import Image

from modules.core.errors import NotFoundError
from modules.core.files import write_atomically
from modules.core.paths import Paths, relative_components, safe_join
from modules.core.settings import Settings
from modules.imaging import save
from modules.imaging.names import Naming
from modules.jobs.job import Job
from modules.jobs.store import PictureRow, Store
from modules.pipeline import infotext, provenance
from modules.pipeline.request import Picture, Result

SPOOL_FILES = 2_000                                         # pictures kept for fetching by job id
SPOOL_BYTES = 2 << 30


class Delivery:
    """Saves pictures and finds them again. paths of rows are relative to the data folder."""

    def __init__(self, paths: Paths, store: Store, *, spool_files: int = SPOOL_FILES, spool_bytes: int = SPOOL_BYTES) -> None:
        self._paths = paths
        self._store = store
        self._files = spool_files
        self._bytes = spool_bytes
        self._spool_grew = True

    def deliver(self, job: Job, settings: Settings) -> Callable[[Picture], Picture]:
        """The function that the pipeline calls with each finished picture of this job: on disk and in the store when it returns.

        It raises DiskFullError or SaveError; nothing half-written stays.
        """
        def one(picture: Picture) -> Picture:
            warnings: list[str] = []
            file = self._encoded(job, picture, settings, warnings.append)
            wanted = job.save and settings["samples_save"] and (picture.complete or settings["save_incomplete_images"])
            path = self._save(job, picture, file, settings) if wanted else self._spool(job, picture, file)
            kept = dataclasses.replace(picture, file=file, sha256=hashlib.sha256(file).hexdigest(), path=path if wanted else None,
                                       warnings=(*picture.warnings, *warnings))
            self._store.add_picture(PictureRow(
                job=job.id, index=kept.index, place="outputs" if wanted else "spool", path=path.relative_to(self._paths.data).as_posix(),
                sha256=kept.sha256, seed=kept.seed, subseed=kept.subseed, infotext=kept.infotext, width=kept.image.width,
                height=kept.image.height, complete=kept.complete))
            return kept
        return one

    @staticmethod
    def _encoded(job: Job, picture: Picture, settings: Settings, warn: save.Warn) -> bytes:
        told = settings["enable_pnginfo"]
        return save.encode(
            picture.image, picture.infotext if told else "", provenance.write(picture.record) if told and picture.record else "",
            job.request.image_format, quality=settings["jpeg_quality"], lossless=settings["webp_lossless"], warn=warn)

    def _save(self, job: Job, picture: Picture, file: bytes, settings: Settings) -> Path:
        own = settings["outdir_img2img_samples" if job.request.init else "outdir_txt2img_samples"]
        root = safe_join(self._paths.data, *relative_components(settings["outdir_samples"] or own))
        path = save.save(
            file, root, self._naming(job, picture), pattern=settings["samples_filename_pattern"],
            folders=settings["directories_filename_pattern"] if settings["save_to_dirs"] else "",
            add_number=settings["save_images_add_number"])
        if settings["save_txt"]:
            write_atomically(path.with_suffix(".txt"), picture.infotext.encode("utf-8", "replace"))
        return path

    @staticmethod
    def _naming(job: Job, picture: Picture) -> Naming:
        request, model = job.request, picture.record.get("model", {})
        return Naming(
            now=datetime.now(), started=datetime.fromtimestamp(job.created), seed=picture.seed, prompt=picture.prompt,
            negative_prompt=picture.negative_prompt, styles=request.styles, steps=request.steps, cfg_scale=request.cfg_scale,
            sampler=request.sampler, scheduler=request.scheduler, width=picture.image.width, height=picture.image.height,
            clip_skip=request.clip_skip, model_name=model.get("name", ""), model_hash=(model.get("sha256") or "")[:10],
            vae_name=(picture.record.get("vae") or {}).get("name", ""), batch_number=picture.index // request.batch_size + 1,
            batch_size=request.batch_size, generation_number=picture.index + 1)

    def _spool(self, job: Job, picture: Picture, file: bytes) -> Path:
        self._spool_grew = True
        path = safe_join(self._paths.spool, f"{job.id}-{picture.index}.{save.ending(file)}")
        return write_atomically(path, file)

    def file_of(self, row: PictureRow) -> Path:
        """The file of a picture. Raises NotFoundError when it is gone."""
        path = safe_join(self._paths.data, *row.path.split("/")) if row.path else None
        if path is None or not path.is_file():
            raise NotFoundError(f"The file of picture {row.index} of job {row.job} is gone from {path or 'the spool'}.")
        return path

    def done(self, job: Job) -> frozenset[int]:
        """Indices of the complete pictures whose files still lie on disk."""
        return frozenset(row.index for row in self._store.pictures(job.id) if row.complete and self._there(row))

    def _there(self, row: PictureRow) -> bool:
        try:
            return bool(self.file_of(row))
        except NotFoundError:
            return False

    def load(self, job: Job) -> Result:
        """The pictures of a job, read back from disk; a removed file becomes a warning."""
        pictures, warnings = [], list(job.warnings)
        for row in self._store.pictures(job.id):
            try:
                pictures.append(self._picture(row))
            except NotFoundError as error:
                warnings.append(str(error))
        return Result(request=job.request, pictures=tuple(pictures), warnings=tuple(warnings))

    def _picture(self, row: PictureRow) -> Picture:
        path = self.file_of(row)
        file = path.read_bytes()
        told = infotext.read(row.infotext)
        return Picture(
            index=row.index, seed=row.seed, subseed=row.subseed, prompt=told.prompt, negative_prompt=told.negative_prompt,
            image=Image.open(io.BytesIO(file)), infotext=row.infotext, complete=row.complete, file=file, sha256=row.sha256,
            path=path if row.place == "outputs" else None)

    def joined(self, job: Job, result: Result) -> Result:
        """The result of a resumed job with the pictures that were there before, by index."""
        new = {picture.index: picture for picture in result.pictures}
        old = {picture.index: picture for picture in self.load(job).pictures}
        pictures = {**old, **new}
        return dataclasses.replace(result, pictures=tuple(pictures[index] for index in sorted(pictures)))

    def trim(self) -> None:
        """Drop the oldest files of the spool beyond its caps."""
        if not self._spool_grew:
            return
        self._spool_grew = False
        count = size = 0
        for row in reversed(self._store.spooled()):
            path = self._paths.data / row.path
            count += 1
            size += path.stat().st_size if path.is_file() else 0
            if count > self._files or size > self._bytes:
                self._store.forget_file(row.job, row.index)     # the row first: a file without a row is taken by the next start
                path.unlink(missing_ok=True)
