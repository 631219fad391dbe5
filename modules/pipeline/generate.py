"""THE SPINE: one request from words to pictures. Read this file first; everything else is a room it walks through."""
from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from modules.core.errors import Cancelled, RequestError
from modules.core.progress import Progress
from modules.families.base import Model
from modules.imaging import convert
from modules.imaging.metadata import pixels_sha256
from modules.networks.changes import merged_tokens
from modules.pipeline import infotext, latents, parameters, preview, provenance
from modules.pipeline.doors import Doors
from modules.pipeline.opening import Opening, closed
from modules.pipeline.plan import Batch, Slot, plan
from modules.pipeline.request import Picture, Request, Resources, Result
from modules.pipeline.start import Begin, knobs, start
from modules.prompts import grammar, timeline
from modules.prompts.encode import Encoded, encode_program
from modules.prompts.vocabularies import CLIP
from modules.sampling import catalogue
from modules.sampling.conditioning import Conditioning
from modules.sampling.denoise import Relay, WrapModel, denoise
from modules.sampling.guidance import ConditioningAt, PictureTexts, Skip, skips
from modules.sampling.prediction import Prediction
from modules.sampling.steering import changed

log = logging.getLogger("easel.pipeline")


def generate(request: Request, resources: Resources) -> Result:
    """Words to pictures. Each is delivered (on disk and in the store) before the next batch begins.

    An interrupt gives the picture as far as it came, marked incomplete, and leaves out the rest; before the first step it gives nothing.
    Raises Cancelled when nothing at all was made, or a WebUIError that says what the user can do.
    """
    doors = Doors(resources.extensions, request)
    request = doors.prepare(request)
    spine = Numbered(resources, doors)
    driven = doors.drive(request, spine)
    if driven is None:                                      # none was asked to, or it failed: then what it had made is the result
        driven = Result(request=request, pictures=tuple(spine.made)) if spine.made else pictures_of(request, resources, doors)
    return doors.finish(driven)


class Numbered:
    """The spine as an extension that drives it calls it: pictures are numbered on from call to call, delivered ones are not made again."""

    def __init__(self, resources: Resources, doors: Doors) -> None:
        self._resources, self._doors, self._first = resources, doors, 0
        self.made: list[Picture] = []

    def __call__(self, request: Request) -> Result:
        parameters.check(request)
        first, self._first = self._first, self._first + request.batch_size * request.n_iter
        here = dataclasses.replace(
            self._resources, done=frozenset(index - first for index in self._resources.done if index >= first),
            deliver=lambda picture: self._resources.deliver(dataclasses.replace(picture, index=picture.index + first)))
        result = pictures_of(request, here, self._doors)
        self.made += result.pictures
        return result


def pictures_of(request: Request, resources: Resources, doors: Doors) -> Result:
    """All batches of a prepared request."""
    progress = resources.progress
    batches = doors.plan(list(plan(request, resources.styles, resources.extensions, resources.done, resources.wildcards)))
    pictures: list[Picture] = []
    progress.at(stage="loading", batches=len(batches), steps=request.steps)
    opening = Opening(request, resources.inputs)
    with Refiner(request, resources, opening) as refiner:
        for number, batch in enumerate(batches):
            if progress.interrupted:
                break
            with resources.models.borrow(request.checkpoint, request.vae, request.prediction) as model:
                progress.at(stage="sampling", batch=number, step=0)
                doors.borrowed(model)
                try:
                    pictures += [resources.deliver(picture) for picture in compute(batch, model, refiner, resources, opening, doors)]
                except Cancelled:                           # before this batch's first step: there is nothing to show of it
                    log.info("Batch %d of %d was stopped before its first step.", number + 1, len(batches))
                progress.unskip()
    if not pictures and progress.interrupted:
        raise Cancelled("Stopped by the user before the first picture.")
    return Result(request=request, pictures=tuple(pictures), warnings=(
        *opening.notices, *unused(batches), *dict.fromkeys(warning for picture in pictures for warning in picture.warnings)))


class Refiner:
    """The request's second checkpoint, borrowed when its first batch wants it and kept to the job's end."""

    def __init__(self, request: Request, resources: Resources, opening: Opening) -> None:
        self._request, self._resources, self._opening = request, resources, opening
        self._stack = contextlib.ExitStack()
        self.model: Model | None = None

    def __enter__(self) -> Refiner:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def relay(self, batch: Batch, model: Model, work: contextlib.ExitStack) -> Relay | None:
        """Where it takes over from `model`: when a level's index t has (999 - t) / 1000 at refiner_switch_at. None where it does not."""
        request, sigmas = self._request, model.prediction.sigmas
        first = len(sigmas) - 1 - math.ceil(len(sigmas) * request.refiner_switch_at - 1e-6)     # the highest index that is its own
        if request.refiner in ("", request.checkpoint) or first < 0:
            return None
        until = float(sigmas[first:first + 2].mean())       # a level belongs to the nearest index

        def take() -> tuple[nn.Module, Prediction, ConditioningAt]:
            if self.model is None:
                self.model = self._stack.enter_context(self._resources.models.borrow(request.refiner, "None"))
            if self.model.latent.channels != model.latent.channels:
                raise RequestError(f"The refiner {model_name(self.model)} works on other latents than {model_name(model)}; choose another.",
                                   "refiner")
            told = texts_of(batch, self.model, self._resources, self._opening)
            work.enter_context(self.model.at_work(self.model.unet))
            return self.model.unet, self.model.prediction, lambda call: [texts.at(call) for texts in told]

        return Relay(until, take)


def compute(batch: Batch, model: Model, refiner: Refiner, resources: Resources, opening: Opening, doors: Doors) -> list[Picture]:
    """The pictures of one batch, finished but not delivered. Raises Cancelled when stopped before the first step."""
    with doors.adapted(model, batch):
        return _compute(batch, model, refiner, resources, opening, doors)


def _compute(batch: Batch, model: Model, refiner: Refiner, resources: Resources, opening: Opening, doors: Doors) -> list[Picture]:
    told = texts_of(batch, model, resources, opening)
    begin = start(batch, model, opening)
    progress = resources.progress
    progress.at(steps=len(begin.sigmas) - 1)
    on_step = watcher(model, batch.request, progress)
    with contextlib.ExitStack() as work:
        work.enter_context(model.at_work(model.unet))
        done = denoise(
            model.unet, model.prediction, begin.x, begin.sigmas, catalogue.sampler(batch.request.sampler),
            conditioning_at=told_at(told, model, opening), noise=begin.noise, image_cfg_scale=opening.image_cfg_scale,
            cfg_scale=batch.request.cfg_scale, guided_model=model.guided, relay=refiner.relay(batch, model, work),
            knobs=knobs(batch.request), on_step=on_step, check=progress.check, skip=left_out(batch.request, begin),
            wrap_models=[*inside(batch.request), *doors.wrap_models(batch)],
            wraps=[*([begin.mask.wrap] if begin.mask else []), *doors.wraps(batch)])
    progress.at(stage="decoding")
    with model.at_work(model.vae):
        pixels = latents.decode(model, doors.latent(begin.mask.ended(done.latent) if begin.mask else done.latent, batch))
    found, init = opening.of(model), batch.request.init
    images = (convert.to_images(one.float().cpu())[0] for one in pixels.split(1))
    images = (closed(one, found, init) if found and init else one for one in images)
    pictures = (picture_of(slot, batch.request, model, refiner.model, texts, one, done.complete)
                for slot, texts, one in zip(batch.slots, told, images, strict=True))
    return [doors.picture(picture, batch) for picture in pictures]


def left_out(request: Request, begin: Begin) -> Skip | None:
    """At which calls the negative prompt is not asked."""
    calls = catalogue.sampler(request.sampler).calls(len(begin.sigmas) - 1)
    return skips(request.s_min_uncond, request.s_min_uncond_all, request.skip_early_cond, calls)


def inside(request: Request) -> list[WrapModel]:
    """What the request itself changes in the network."""
    return [lambda rows_denoise: changed(rows_denoise, merged_tokens(request.token_merging_ratio))] if request.token_merging_ratio else []


def texts_of(batch: Batch, model: Model, resources: Resources, opening: Opening) -> list[Encoded]:
    """What the model is told of each picture: its texts, and beside them what its family wants to know."""
    with model.at_work(*model.text):
        told = [encode(batch.request, slot, model, resources) for slot in batch.slots]
    each = batch.slots if model.variant == "upscale" else batch.slots[:1]       # its noise on the picture is each seed's own
    beside = [around(slot, model, opening) for slot in each]
    beside = beside * len(told) if len(each) == 1 else beside
    return [texts.beside(*more) if more[0] else texts for texts, more in zip(told, beside, strict=True)]


def around(slot: Slot, model: Model, opening: Opening) -> tuple[list[Conditioning], list[Conditioning]]:
    """What the model's family wants to know of this picture beside prompt and negative prompt."""
    family, framing = model.family, opening.framing(model, slot)
    with model.at_work(*([model.vae] if model.variant else [])):
        shown = [family.around(model, framing)] if family.around else []
    prompt, negative = ([*shown, family.beside(model, framing, which)] if family.beside else shown for which in (False, True))
    return prompt, negative


def told_at(told: Sequence[Encoded], model: Model, opening: Opening) -> ConditioningAt:
    """The texts of all pictures at a call; for models that edit a picture with a third, the negative prompt without the picture."""
    if model.variant != "edit" or opening.init is None:
        return lambda call: [texts.at(call) for texts in told]
    blanks: dict[int, Conditioning] = {}                    # one for each negative text, so that equal calls are seen as equal

    def at(call: int) -> list[PictureTexts]:
        pairs = [texts.at(call) for texts in told]
        for _, negative in pairs:
            if id(negative) not in blanks and negative.concat is not None:
                blanks[id(negative)] = dataclasses.replace(negative, concat=torch.zeros_like(negative.concat))
        return [(parts, negative, blanks[id(negative)]) for parts, negative in pairs]

    return at


def encode(request: Request, slot: Slot, model: Model, resources: Resources) -> Encoded:
    """This picture's texts at every call of the denoiser, on the model's device. No other picture's text is seen."""
    calls = catalogue.sampler(request.sampler).calls(request.steps)
    widths = tuple(tower.width for tower in model.text if tower.vocabulary == CLIP)
    words = resources.embeddings.words(resources.tokenizer, widths) if resources.embeddings and widths else None
    (prompt, behind), (negative, negative_behind) = grammar.split_towers(slot.text), grammar.split_towers(slot.negative_prompt)
    others = (slot.text_2 or behind or prompt, slot.negative_prompt_2 or negative_behind or negative)
    old, apart = request.use_old_scheduling, others != (prompt, negative)
    second = timeline.program(*others, calls, old=old) if apart and len(model.text) > 1 else None
    texts = encode_program(
        timeline.program(prompt, negative, calls, old=old), model.text, resources.tokenizer, clip_skip=request.clip_skip,
        emphasis=request.emphasis, comma_padding_backtrack=request.comma_padding_backtrack, device=model.device,
        cache=resources.encodings, identity=(model.sha256, model.title, str(model.dtype)),
        zero_empty_negative=model.family.zero_empty_negative, words=words, second=second,
        padding="v0" if request.pad_cond_uncond_v0 else "empty" if request.pad_cond_uncond else "")
    warnings = tuple(words.skipped.values()) if words else ()
    if apart and second is None:
        warnings += (f"The second prompt was left out: {model_name(model)} has not two text encoders.",)
    return dataclasses.replace(texts, warnings=warnings) if warnings else texts


def watcher(model: Model, request: Request, progress: Progress) -> Callable[[int, Tensor], None]:
    """After each step: count it, offer a preview, and stop when the user asked to."""
    if model.colours is None:
        with model.at_work(model.vae):
            model.colours = preview.colours(model)
    colours = model.colours
    progress.at(started=progress.view().started or progress.clock())

    def on_step(index: int, denoised: Tensor) -> None:
        progress.at(step=index + 1)
        progress.show(lambda: preview.draw(denoised, colours, (request.width, request.height)))
        progress.check()

    return on_step


def picture_of(slot: Slot, request: Request, model: Model, refiner: Model | None, texts: Encoded, image: Image.Image,
               complete: bool) -> Picture:
    """One picture with its text and its record."""
    facts = infotext.Facts(
        seed=slot.seed, subseed=slot.subseed, prompt=slot.prompt, negative_prompt=slot.negative_prompt,
        model_name=model_name(model), model_hash=model.sha256[:10], vae_name=model.vae_name, vae_hash=model.vae_sha256[:10],
        refiner=f"{model_name(refiner)} [{refiner.sha256[:10]}]" if refiner else "",
        notes={**notes_of(slot, texts), **told_beside(request, model)})
    return Picture(
        index=slot.index, seed=slot.seed, subseed=slot.subseed, prompt=slot.prompt, negative_prompt=slot.negative_prompt, image=image,
        infotext=infotext.write(request, facts), record=record_of(slot, request, model, refiner, texts, image, complete), complete=complete,
        warnings=texts.warnings)


def notes_of(slot: Slot, texts: Encoded) -> dict[str, str]:
    """What only this picture's text says: what its words were chosen from, which embeddings are in it. Labels as other tools have them."""
    hashes = ", ".join(f"{word.name}: {word.sha256[:12]}" for word in texts.learned)
    pairs = {"Prompt 2": slot.prompt_2, "Negative prompt 2": slot.negative_prompt_2, "TI hashes": hashes, **dict(slot.templates)}
    return {label: text for label, text in pairs.items() if text}


def told_beside(request: Request, model: Model) -> dict[str, Any]:
    """What the text says of an init that only this kind of model looks at."""
    init = request.init
    if init is None:
        return {}
    values = {"edit": ("Image CFG scale", init.image_cfg_scale), "inpaint": ("Conditional mask weight", init.inpainting_mask_weight),
              "upscale": ("Upscaler noise level", init.noise_level)}
    return dict([values[model.variant]]) if model.variant in values else {}


def record_of(slot: Slot, request: Request, model: Model, refiner: Model | None, texts: Encoded, image: Image.Image,
              complete: bool) -> dict[str, Any]:
    """What made this picture, see provenance.record."""
    return provenance.record(
        request, index=slot.index, seed=slot.seed, subseed=slot.subseed, prompt=slot.prompt, negative_prompt=slot.negative_prompt,
        prompt_2=slot.prompt_2, negative_prompt_2=slot.negative_prompt_2,
        model={"name": model_name(model), "sha256": model.sha256, "family": model.family.name, "prediction": model.prediction.kind},
        vae={"name": model.vae_name, "sha256": model.vae_sha256} if model.vae_name else None, libraries=libraries(),
        refiner={"name": model_name(refiner), "sha256": refiner.sha256} if refiner else None,
        files=[{"kind": "embedding", "name": word.name, "sha256": word.sha256, "weight": 1} for word in texts.learned],
        device=model.device.type, dtype=str(model.dtype).removeprefix("torch."), layers=model.layers,
        pixels={"sha256": pixels_sha256(image), "width": image.width, "height": image.height}, complete=complete)


def model_name(model: Model) -> str:
    """The checkpoint's file name without folder, hash and ending, as the infotext has it."""
    name = model.title.rsplit(" [", 1)[0].replace("\\", "/").rsplit("/", 1)[-1]
    return name.rsplit(".", 1)[0]


def libraries() -> dict[str, str]:
    """The packages whose version can change a picture's last bits."""
    return {"easel": infotext.VERSION.removeprefix("easel-"), "torch": torch.__version__, "pillow": metadata.version("pillow")}


def unused(batches: Sequence[Batch]) -> tuple[str, ...]:
    """A sentence for each tag that asks for a network which cannot be put on yet."""
    names = {f"<{use.kind}:{use.get('name', 0)}>" for batch in batches for use in batch.uses}
    return tuple(f"{name} was left out: this version of Easel puts no extra networks on a model yet." for name in sorted(names))
